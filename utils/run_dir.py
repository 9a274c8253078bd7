"""The folder of a run: its files, its lock and its state."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml

from utils.errors import UserError, require
from utils.filesystem import PARTIAL, check_writable, lock_folder, write_text

PACKAGES = ("python", "torch", "torchvision", "pytorch-lightning")  # whose versions a run notes


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


class RunDirectory:
    """`<save-dir>/<exp-name>/` and the files in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics = path / "config.yaml", path / "metrics.jsonl"
        self.summary, self.backbone = (
            path / "summary.json",
            path / "backbone.safetensors",
        )  # only of a finished run
        self.views = path / "views.png"
        self.checkpoints, self.results = (
            path / "checkpoints",
            path / "results",
        )  # of commands that evaluate the run
        self.last, self.best = self.checkpoints / "last.ckpt", self.checkpoints / "best.ckpt"
        self._locks = ExitStack()
        self._created: dict[str, Any] | None = None  # what `create` wrote

    def state(self) -> Literal["new", "unfinished", "finished"]:
        """Whether a run is there already; UserError if something else is, or nothing can be written there."""
        for folder in (self.path, self.checkpoints):
            check_writable(folder, "--save-dir")
        entries = self.path.iterdir() if self.path.exists() else ()
        if all(
            entry.name.endswith(PARTIAL) for entry in entries
        ):  # empty, or a kill came before the first file
            return "new"
        ours = self.config.is_file() and (
            self.metrics.exists() or b"settings:" in self.config.read_bytes()
        )
        require(ours, f"{self.path} holds something that is not a run: give another --exp-name")
        return "finished" if self.summary.exists() else "unfinished"

    def settings(self, section: str = "settings") -> dict[str, Any]:
        """The settings with which the run was started; section "resolved": what the program chose."""
        try:
            return dict(yaml.safe_load(self.config.read_text(encoding="utf-8"))[section])
        except (
            OSError,
            yaml.YAMLError,
            TypeError,
            KeyError,
            ValueError,
            AttributeError,
            RecursionError,
        ):
            raise UserError(f"{self.config} is damaged: start anew with --overwrite") from None

    def create(self, config: dict[str, Any]) -> None:
        """Write config.yaml, which makes the folder a run's."""
        self._created = config
        write_text(self.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder and keep other processes from training in it; UserError if one does."""
        with self._locks:
            self._lock()
            yield

    def _lock(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        taken = f"another process is training in {self.path}: wait, or give another --exp-name"
        self._locks.enter_context(lock_folder(self.path, taken))

    def delete(self) -> None:
        """Remove what a run writes; other files in the folder stay. A kill in between leaves an unfinished run."""
        for file in (
            self.summary,
            self.metrics,
            self.backbone,
            self.views,
            *self.path.glob("events.out.tfevents.*"),
        ):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.results):
            shutil.rmtree(folder, ignore_errors=True)
        self.config.unlink(missing_ok=True)

    def remove_partial_files(self) -> None:
        """Remove the temporary files of a process that was killed while it wrote."""
        for partial in (*self.path.glob(f".*{PARTIAL}"), *self.checkpoints.glob(f".*{PARTIAL}")):
            partial.unlink(missing_ok=True)

    def resumable(self) -> list[Path]:
        """Checkpoints to resume from, the newest first."""
        kept = [path for path in (self.last, previous(self.last)) if path.exists()]
        times = {
            path: path.stat().st_mtime for path in self.checkpoints.glob("hpc_ckpt_*.ckpt")
        }  # when SLURM requeued
        newer = [path for path in times if not kept or times[path] > kept[0].stat().st_mtime]
        return sorted(newer, key=lambda path: times[path], reverse=True) + kept

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, up to the first damaged one."""
        rows = []
        if not self.metrics.exists():
            return rows
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl, and config.yaml again if someone has removed the folder. Raises OSError if it cannot."""
        if self._created is not None and not self.config.exists():
            self.create(self._created)
            self._locks.close()
            self._lock()  # the lock of a removed folder does not protect the new one
        write_text(self.metrics, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
