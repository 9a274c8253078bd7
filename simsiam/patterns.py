"""The embedded data set: grey textures of ten kinds. A demonstration, not a benchmark."""
