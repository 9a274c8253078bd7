"""Images, their order and their views."""
