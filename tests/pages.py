"""README.md and docs/: their pages, the commands and code in them, and a run for these."""

import re
import shlex
import shutil
from collections.abc import Collection
from pathlib import Path

from PIL import Image

import main
from tests.helpers import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
}
# Its commands need a folder of tiles and follow each other: tests/test_tutorial.py runs them.
TUTORIAL = "docs/tutorial.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def blocks(language: str, pages: Collection[str] = PAGES.keys() - {TUTORIAL}) -> list[str]:
    """Return the fenced blocks in a language, of all pages but the tutorial or of these pages."""
    matching = []
    for page_name, page in PAGES.items():
        if page_name not in pages:
            continue
        for name, content in FENCE.findall(page):
            if name == language:
                matching.append(content)
    return matching


def shell_lines(blocks_of_shell: list[str]) -> list[str]:
    """Return the lines of blocks; continued lines are joined."""
    return "\n".join(blocks_of_shell).replace("\\\n", " ").splitlines()


def arguments_of_main(lines: list[str]) -> list[str]:
    """Return the arguments of main.py in each command, without repetitions."""
    arguments = []
    for line in lines:
        if "main.py" in line:
            words = shlex.split(line.split("main.py", 1)[1], comments=True)
            arguments.append(shlex.join(words))
    return list(dict.fromkeys(arguments))


SHELL_LINES = shell_lines(blocks("sh"))
ARGUMENTS = arguments_of_main(SHELL_LINES)
PRETRAININGS = [flags for flags in ARGUMENTS if not flags or flags.startswith("-")]
OTHER_COMMANDS = [flags for flags in ARGUMENTS if flags not in PRETRAININGS]
CODE = blocks("python")


def make_run(folder: Path, flags: str, *more_flags: str) -> Path:
    data = "--dataset patterns --test-images 16 --knn-k 5"
    small = "--epochs 1 --accelerator cpu --out-dim 32 --h-dim 16"
    run = ["--save-dir", str(folder / "runs"), "--exp-name", "simsiam_cifar10"]
    assert main.main([*f"{data} {small} {flags}".split(), *run, *more_flags]) == 0

    photo = Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50).convert("RGB")
    photo.save(folder / "photo.jpg")
    (folder / "photos").mkdir()
    shutil.copy(folder / "photo.jpg", folder / "photos" / "one.jpg")
    return folder
