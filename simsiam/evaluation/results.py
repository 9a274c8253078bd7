"""The folder in which a command leaves its figures."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.tensorboard.writer import SummaryWriter

from simsiam.evaluation.checkpoint import Trained
from simsiam.evaluation.context import Config
from utils.cli import flatten
from utils.console import print_line
from utils.device import git_commit, versions
from utils.errors import UserError, check
from utils.filesystem import PARTIAL, check_writable, lock_folder, write_json
from utils.run_dir import RunDirectory


class Results:
    """The folder that one command leaves in the run's `results/`: `summary.json`, TensorBoard's events, what it makes.

    Args:
        name: of the folder.
        resumes: the command itself looks at what is there already.

    Raises:
        UserError: it cannot be written, or an earlier call's figures are there and `--overwrite` is not given.
    """

    def __init__(self, config: Config, trained: Trained, name: str, resumes: bool = False) -> None:
        self.config, self.trained = config, trained
        self.path = results_root(config, trained.file) / name
        self.summary = self.path / "summary.json"
        check_writable(self.path, "--results-dir")
        check(
            resumes or config.checkpoint.overwrite or not self.summary.exists(),
            f"{self.summary} is there already: --overwrite measures anew; or give another --results-dir",
        )
        row = trained.about.get("row", {})
        self.epoch, self.step = row.get("epoch"), row.get("step", 0)  # of the checkpoint
        self.started, self.cleared = time.perf_counter(), False

    def output(self, given: str | None, name: str) -> Path:
        """The file to make: `--output`, else one of this name in the folder.

        Raises:
            UserError: it is there already and `--overwrite` is not given, or it cannot be written.
        """
        file = Path(given).expanduser() if given else self.path / name
        check(len(file.name) <= 200, f"--output: {len(file.name)} letters are too long for a file's name")
        check(not file.is_dir(), f"{file} is a folder: give the name of a file with --output")
        check(
            self.config.checkpoint.overwrite or not file.exists(),
            f"{file} is there already: --overwrite would replace it",
        )
        check_writable(file.parent, "--output")
        return file

    def clear(self) -> None:
        """Remove what an earlier call of this command left, and nothing else; a training calls it before it begins."""
        names = ("summary.json", "head.safetensors", "hparams.yaml", "projector_config.pbtxt")
        ours = [self.path / name for name in names]
        ours += [*self.path.glob("events.out.tfevents.*"), *self.path.glob(f".*{PARTIAL}")]
        for file in ours:
            file.unlink(missing_ok=True)
        for folder in self.path.glob("[0-9][0-9][0-9][0-9][0-9]"):  # the projector's
            if (folder / "embedding").is_dir():
                shutil.rmtree(folder)
        self.cleared = True

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep a second process out of the folder meanwhile.

        Raises:
            UserError: another process is in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with lock_folder(self.path, f"another process is at work in {self.path}: wait, or give another --results-dir"):
            yield

    def write(
        self,
        figures: dict[str, Any],
        scalars: dict[str, float] | None = None,
        pictures: Callable[[SummaryWriter, int], None] | None = None,
        step: int | None = None,
    ) -> None:
        """Leave figures as JSON, with all that says where they are from; scalars and pictures go into TensorBoard.

        Args:
            step: of the scalars; the checkpoint's own if left out, so that they stand at the end of the run's curves.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.cleared:
            self.clear()
        at = self.step if step is None else step
        if scalars or pictures:
            with SummaryWriter(str(self.path)) as writer:
                for name, value in (scalars or {}).items():
                    writer.add_scalar(name, value, at)
                if pictures:
                    pictures(writer, at)
        origin = {"command": type(self.config).__name__.lower(), "checkpoint": str(self.trained.file)}
        origin |= {"weights": fingerprint(self.trained.backbone), "epoch": self.epoch}
        rest = {
            "settings": plain_settings(self.config),
            "seconds": round(time.perf_counter() - self.started, 1),
            "versions": versions(),
            "commit": git_commit(),
        }
        write_json(self.summary, origin | figures | rest)
        print_line(f"figures   {self.summary}")


def plain_settings(config: Config) -> dict[str, Any]:
    """A configuration as JSON gives it back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flatten(config).items()}


def fingerprint(network: nn.Module) -> str:
    """What tells one set of weights from another: 16 hexadecimal digits of a hash over all of them."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def results_root(config: Config, file: Path) -> Path:
    """`--results-dir`, else `results/` of the run that a file belongs to, else a folder beside the file."""
    if config.checkpoint.results_dir:
        return Path(config.checkpoint.results_dir).expanduser()
    for run in (RunDirectory(file.parent), RunDirectory(file.parent.parent)):
        if run.config.exists() and (file == run.backbone or file.parent == run.checkpoints):
            return run.results
    return file.with_name(f"{file.stem}_results")


def results_name(command: str, output: str | None) -> str:
    """The folder of a command of which one may want several: named after what it makes."""
    return f"{command}_{Path(output).name.replace('.', '_')}" if output else command


def read_json(file: Path, keys: Iterable[str]) -> dict[str, Any]:
    """A JSON file of ours that has at least these keys.

    Raises:
        UserError: damaged.
    """
    try:
        content = dict(json.loads(file.read_text()))
        return content | {key: content[key] for key in keys}
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{file} is damaged: give --overwrite to measure anew") from None
