"""The folder in which a command leaves its figures."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from simsiam.config.commands import Evaluation
from simsiam.evaluation.checkpoint import LoadedCheckpoint, hash_weights
from simsiam.evaluation.context import EvaluationContext
from utils.cli import flatten
from utils.console import print_line
from utils.device import git_commit, versions
from utils.errors import require
from utils.filesystem import check_writable, lock_folder, write_json
from utils.run_dir import RunDirectory
from utils.weights import HEAD, write_weights


class Results:
    """One command's folder below the run's `results/`: `summary.json`, and the files that it makes.

    With `--overwrite` files are replaced one by one, so whatever a person keeps in the folder stays. Without, a folder
    with figures is refused, unless the command `resumes`.
    """

    def __init__(
        self, config: Evaluation, checkpoint: LoadedCheckpoint, name: str, resumes: bool = False
    ) -> None:
        self.config, self.checkpoint = config, checkpoint
        self.path = find_results_dir(config, checkpoint.file) / name
        self.summary = self.path / "summary.json"
        check_writable(self.path, "--results-dir")
        self.overwrite = config.checkpoint.overwrite
        earlier = f"{self.summary} is there already: --overwrite measures anew; or give another --results-dir"
        require(resumes or self.overwrite or not self.summary.exists(), earlier)
        self.started = time.perf_counter()

    def choose_output(self, given: str | None, name: str) -> Path:
        """The file to make: `given` by `--output`, else `name` in the folder; UserError as for the folder."""
        file = Path(given).expanduser() if given else self.path / name
        require(
            len(file.name) <= 200,
            f"--output: {len(file.name)} letters are too long for a file's name",
        )
        require(
            self.overwrite or not file.exists(),
            f"{file} is there already: --overwrite would replace it",
        )
        check_writable(file.parent, "--output")
        return file

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and keep other processes out meanwhile; UserError if another is in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with lock_folder(
            self.path,
            f"another process is at work in {self.path}: wait, or give another --results-dir",
        ):
            yield

    def save_head(
        self, context: EvaluationContext, head: nn.Linear, figures: dict[str, Any]
    ) -> None:
        """Write `head.safetensors`, then the figures: `summary.json` marks a measurement as finished."""
        self.summary.unlink(missing_ok=True)
        right, file = figures["test_accuracy"], str(context.checkpoint.file)
        about = {
            "classes": context.classes,
            "dataset": context.dataset,
            "checkpoint": file,
            "test_accuracy": right,
        }
        write_weights(self.path / "head.safetensors", HEAD, head.state_dict(), about)
        self.write(figures)

    def write(self, figures: dict[str, Any]) -> None:
        """Write figures and their provenance as JSON."""
        origin = {
            "command": type(self.config).__name__.lower(),
            "checkpoint": str(self.checkpoint.file),
        }
        origin |= {
            "weights": hash_weights(self.checkpoint.backbone),
            "epoch": self.checkpoint.facts.row.get("epoch"),
        }
        how = {
            "settings": flatten(self.config),
            "seconds": round(time.perf_counter() - self.started, 1),
        }
        write_json(
            self.summary, origin | figures | how | {"versions": versions(), "commit": git_commit()}
        )
        print_line(f"figures   {self.summary}")


def find_results_dir(config: Evaluation, file: Path) -> Path:
    """`--results-dir`, else `results/` of the run that a checkpoint lies in, else a folder beside the checkpoint."""
    if config.checkpoint.results_dir:
        return Path(config.checkpoint.results_dir).expanduser()
    for run in (RunDirectory(file.parent), RunDirectory(file.parent.parent)):
        if run.config.exists() and file in (run.backbone, run.last):
            return run.results
        if run.config.exists() and file.parent == run.checkpoints:
            return run.results / file.stem  # of another state of the run
    return file.with_name(f"{file.stem}_results")


def name_results(command: str, output: str | None) -> str:
    """The name of a command's folder: its own, and with `--output` also that of the file."""
    return f"{command}_{Path(output).name.replace('.', '_')}" if output else command
