"""Where a file is from: the versions and the commit of the code that made it."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "pytorch-lightning")


def versions() -> dict[str, str]:
    return {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}}


def git_commit() -> str | None:
    """The commit of this program, with "-dirty" behind it where the files differ; None outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # a folder inside somebody else's checkout is not that checkout
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
