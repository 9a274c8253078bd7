"""What a Trainer does besides training."""
