"""Checkpoints and what their features are worth."""
