"""The folder of a run: what lies where, who may write, and what an earlier run has left there."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml

from utils.checkpoint_io import previous
from utils.errors import UserError, check
from utils.filesystem import PARTIAL, check_writable, lock_folder, write_text


def check_whole(written: int | None, content: bytes) -> None:
    if written != len(content):  # a disk that has room for a part takes a part
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class RunDirectory:
    """`<save-dir>/<exp-name>/` and the names in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.backbone = path / "backbone.safetensors"
        self.views = path / "views.png"
        self.locks = ExitStack()
        self.made: dict[str, Any] | None = None  # what `create` wrote, should it be gone
        self.results = path / "results"  # of the commands that use what was learned

    def state(self) -> Literal["new", "unfinished", "finished"]:
        """What is there already.

        Raises:
            UserError: something that is not a run, or a place that cannot be written.
        """
        try:
            return self._state()
        except OSError as error:
            raise UserError(f"{self.path} cannot be used ({error.strerror}): give another --save-dir") from None

    def _state(self) -> Literal["new", "unfinished", "finished"]:
        for folder in (self.path, self.checkpoints, self.tensorboard):
            check_writable(folder, "--save-dir")
        module = self.path.with_name(self.path.name + ".py")
        check(not module.exists(), f"{self.path} would lie beside the module {module}: give another --exp-name")
        entries = self.path.iterdir() if self.path.exists() else ()
        if all(entry.name.endswith(PARTIAL) for entry in entries):  # nothing, or what a kill left of the first write
            return "new"
        ours = self.config.is_file() and (
            self.metrics.exists() or "settings:" in self.config.read_text(errors="replace")
        )
        check(ours, f"{self.path} holds something that is not a run: give another --exp-name")
        return "finished" if self.summary.exists() else "unfinished"

    def settings(self) -> dict[str, Any]:
        """What the run in this folder was started with."""
        try:
            content = yaml.safe_load(self.config.read_text())
            return dict(content["settings"])
        except (OSError, yaml.YAMLError, TypeError, KeyError, ValueError, RecursionError):
            raise UserError(f"{self.config} is damaged: start anew with --overwrite") from None

    def images(self) -> str | None:
        """What told the images of the run in this folder from others, if it noted that."""
        try:
            return yaml.safe_load(self.config.read_text())["resolved"].get("images")
        except (OSError, yaml.YAMLError, TypeError, KeyError, ValueError, AttributeError, RecursionError):
            return None

    def create(self, config: dict[str, Any]) -> None:
        """Write down what the run is."""
        self.made = config
        write_text(self.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and keep a second process out meanwhile. A dead process holds nothing.

        Raises:
            UserError: another process has it, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be made ({error.strerror}): give another --save-dir") from None
        with self.locks:
            self._lock()
            yield

    def _lock(self) -> None:
        taken = f"another process is training in {self.path}: wait, or give another --exp-name"
        self.locks.enter_context(lock_folder(self.path, taken))

    def delete(self) -> None:
        """Remove what a run writes, and nothing else."""
        for file in (self.summary, self.metrics, self.backbone, self.views):
            file.unlink(missing_ok=True)
        for folder in (self.tensorboard, self.checkpoints, self.results):
            shutil.rmtree(folder, ignore_errors=True)
        self.config.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove the temporary files of a process that was killed while it wrote."""
        for folder in (self.path, self.checkpoints):
            for partial in folder.glob(f".*{PARTIAL}"):
                partial.unlink(missing_ok=True)

    def resumable(self) -> list[Path]:
        """Checkpoints to resume from, the newest first."""
        kept = [path for path in (self.last, previous(self.last)) if path.exists()]
        requeued = list(self.checkpoints.glob("hpc_ckpt_*.ckpt"))  # by Lightning's SLURM plugin
        newer = [path for path in requeued if not kept or path.stat().st_mtime > kept[0].stat().st_mtime]
        return sorted(newer, key=lambda path: path.stat().st_mtime, reverse=True) + kept

    def rows(self) -> list[dict[str, Any]]:
        """The epochs recorded so far; a last line that a kill cut short does not count."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text(errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Make `metrics.jsonl` these rows: by a line at its end where it holds the others already, else anew.

        Raises:
            OSError: it cannot be written; what was there is kept.
        """
        if self.made is not None and not self.config.exists():  # somebody removed the folder under the run
            self.create(self.made)
            self.locks.close()
            self._lock()  # the new folder: what we hold of the old one keeps nobody out
        lines = [(json.dumps(row, allow_nan=False) + "\n").encode() for row in rows]
        size = self.metrics.stat().st_size if self.metrics.exists() else -1
        if not lines or size != sum(map(len, lines[:-1])):
            write_text(self.metrics, b"".join(lines).decode())
            return
        with open(self.metrics, "ab", buffering=0) as file:
            try:
                check_whole(file.write(lines[-1]), lines[-1])
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), size)  # half a line would spoil the next one
                raise
