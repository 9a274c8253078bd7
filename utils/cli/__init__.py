"""The command line: parse arguments into a command, and explain every mistake in one line."""

from utils.cli.parser import parse

__all__ = ["parse"]
