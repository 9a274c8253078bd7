"""The folder in which a command saves its results."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

from simsiam.config.evaluation_commands import Evaluation
from simsiam.evaluation.checkpoint import LoadedCheckpoint
from simsiam.evaluation.context import EvaluationContext
from simsiam.evaluation.networks import hash_weights
from utils.console import print_line
from utils.device import git_commit, package_versions
from utils.errors import require
from utils.filesystem import check_writable, lock_folder, write_json
from utils.run_dir import HEAD_FILE, SUMMARY_FILE, find_run_of
from utils.settings import flatten
from utils.weights import HEAD, write_weights

MAX_NAME_BYTES = 200  # of a file's name, of 255 that are possible: its temporary file has some more


class Results:
    """The folder of a command's results: `summary.json`, and the files that the command makes.

    With `--overwrite`, files are replaced one by one, so that other files in the folder stay.

    Args:
        config: options of the command.
        checkpoint: the checkpoint that the command evaluates.
        name: name of the folder.
        resumes: whether the command keeps results that are in the folder, and adds the others.

    Raises:
        UserError: the folder cannot be written; or it has results already, and they may neither be
            resumed nor overwritten.
    """

    def __init__(
        self, config: Evaluation, checkpoint: LoadedCheckpoint, name: str, resumes: bool = False
    ) -> None:
        self.config = config
        self.checkpoint = checkpoint
        self.path = find_results_dir(config, checkpoint.file) / name
        self.summary_file = self.path / SUMMARY_FILE
        self.overwrite = config.checkpoint.overwrite
        self.resumes = resumes
        check_writable(self.path, "--results-dir")
        self._require_no_results()
        self.started = time.perf_counter()

    def _require_no_results(self) -> None:
        """Raise UserError if there are results that may neither be resumed nor overwritten."""
        require(
            self.resumes or self.overwrite or not self.summary_file.exists(),
            f"{self.summary_file} exists already. Use --overwrite to replace it, or another "
            "--results-dir",
        )

    def choose_output(self, output: str | None, default_name: str) -> Path:
        """Return the file to write: `output`, or else `default_name` in the folder.

        Args:
            output: the value of `--output`.
            default_name: name of the file without `--output`.

        Raises:
            UserError: the file exists and may not be overwritten, or it cannot be written.
        """
        file = self.path / default_name
        if output:
            file = Path(output).expanduser()
        length = len(os.fsencode(file.name))
        require(
            length <= MAX_NAME_BYTES,
            f"--output: the name of the file takes {length} bytes, which is too long. "
            f"At most {MAX_NAME_BYTES} are allowed",
        )
        require(
            self.overwrite or not file.exists(),
            f"{file} exists already. Use --overwrite to replace it",
        )
        check_writable(file.parent, "--output")
        return file

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and keep other processes out of it until the block ends.

        Folders that are still empty then are removed.

        Raises:
            UserError: another process is working in the folder, or has just finished there.
        """
        created = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        message = (
            f"another process is working in {self.path}. Wait for it, or use another --results-dir"
        )
        try:
            with lock_folder(self.path, message):
                self._require_no_results()
                yield
        finally:
            for folder in created:
                with suppress(OSError):  # it has files
                    folder.rmdir()

    def save_head(
        self, context: EvaluationContext, head: nn.Linear, summary: dict[str, Any]
    ) -> None:
        """Write `head.safetensors`, then `summary.json`.

        Args:
            context: the checkpoint and the images on which the head was trained.
            head: a classifier of the backbone's features.
            summary: results with a "test_accuracy".
        """
        # A summary.json says that the measurement is finished, so an earlier one is removed first.
        self.summary_file.unlink(missing_ok=True)
        metadata = {
            "classes": context.classes,
            "dataset": context.dataset,
            "checkpoint": str(context.checkpoint.file),
            "test_accuracy": summary["test_accuracy"],
        }
        write_weights(self.path / HEAD_FILE, HEAD, head.state_dict(), metadata)
        self.write(summary)

    def write(self, summary: dict[str, Any]) -> None:
        """Write the results in `summary`, together with their provenance, to `summary.json`."""
        content = {
            "command": type(self.config).__name__.lower(),
            "checkpoint": str(self.checkpoint.file),
            "weights": hash_weights(self.checkpoint.backbone),
            "epoch": self.checkpoint.metadata.row.get("epoch"),
        }
        content.update(summary)
        content["settings"] = flatten(self.config)
        content["seconds"] = round(time.perf_counter() - self.started, 1)
        content["versions"] = package_versions()
        content["commit"] = git_commit()
        write_json(self.summary_file, content)
        print_line(f"results   {self.summary_file}")


def find_results_dir(config: Evaluation, file: Path) -> Path:
    """Return the folder for the results of a checkpoint.

    It is the first of these that applies:
    - `--results-dir`
    - `results/` of a run, for the run's backbone and its `last.ckpt`
    - `results/NAME/` of a run, for another checkpoint NAME.ckpt of the run
    - `NAME_results/` next to a checkpoint that belongs to no run
    """
    if config.checkpoint.results_dir:
        return Path(config.checkpoint.results_dir).expanduser()
    # The name of a file in the current folder does not say in which folder that folder is.
    for path in (file, Path(os.path.abspath(file))):
        run = find_run_of(path)
        if run is None:
            continue
        if path in (run.backbone, run.last):
            return run.results
        return run.results / path.stem
    return file.with_name(f"{file.stem}_results")


def name_results(command: str, output: str | None) -> str:
    """Return the name of a command's folder. With `--output`, it includes the name of the file."""
    if not output:
        return command
    file_name = Path(output).name.replace(".", "_")
    return f"{command}_{file_name}"
