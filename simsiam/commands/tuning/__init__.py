"""The parts of the command `search`: what is varied, how trials are run, and what they show."""
