"""Options and commands as dataclasses; nothing here imports torch."""
