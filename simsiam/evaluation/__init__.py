"""Load checkpoints, compute features of images, and measure how good the features are."""
