"""The folder of a run: its files, its state and its lock."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml

from utils.errors import UserError, require
from utils.filesystem import PARTIAL_SUFFIX, check_writable, lock_folder, write_text

# Packages whose versions are noted in config.yaml and in checkpoints.
RECORDED_PACKAGES = ("python", "torch", "torchvision", "pytorch-lightning")


def previous(path: Path) -> Path:
    """Return the path of the checkpoint that was saved before the one at `path`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


class RunDirectory:
    """The folder `<save-dir>/<exp-name>/` of a run, and the files in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.views = path / "views.png"
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.results = path / "results"  # of commands that evaluate the run
        # Only a finished run has these two.
        self.summary = path / "summary.json"
        self.backbone = path / "backbone.safetensors"
        # Holds the folder's lock. If somebody removes the folder, `write_rows` releases that lock
        # and locks the new folder. A closed ExitStack can be used again.
        self._lock_holder = ExitStack()
        self._created_config: dict[str, Any] | None = None  # what `create` wrote

    def state(self) -> Literal["new", "unfinished", "finished"]:
        """Return whether the folder holds a run.

        Raises:
            UserError: the folder holds something else, or cannot be written.
        """
        for folder in (self.path, self.checkpoints):
            check_writable(folder, "--save-dir")
        entries = list(self.path.iterdir()) if self.path.exists() else []
        # A run that was killed before it had written its first file leaves a partial file.
        if all(entry.name.endswith(PARTIAL_SUFFIX) for entry in entries):
            return "new"
        require(
            self._is_run(),
            f"{self.path} holds something that is not a run. Pass another --exp-name.",
        )
        return "finished" if self.summary.exists() else "unfinished"

    def _is_run(self) -> bool:
        """Return whether the folder has a config.yaml of this program, which may be damaged."""
        if not self.config.is_file():
            return False
        return self.metrics.exists() or b"settings:" in self.config.read_bytes()

    def settings(self, section: str = "settings") -> dict[str, Any]:
        """Return a section of config.yaml.

        Args:
            section: "settings" for the settings with which the run was started, "resolved" for the
                values that the program chose where a setting was left open.

        Raises:
            UserError: config.yaml is damaged.
        """
        try:
            content = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            return dict(content[section])
        except (
            OSError,
            yaml.YAMLError,
            TypeError,
            KeyError,
            ValueError,
            AttributeError,
            RecursionError,
        ):
            raise UserError(
                f"{self.config} is damaged. Pass --overwrite to start this run again."
            ) from None

    def create(self, config: dict[str, Any]) -> None:
        """Write config.yaml, which marks the folder as that of a run."""
        self._created_config = config
        write_text(self.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and keep other processes from training in it.

        Raises:
            UserError: another process is training in it.
        """
        with self._lock_holder:
            self._acquire_lock()
            yield

    def _acquire_lock(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        message = f"another process is training in {self.path}. Wait, or pass another --exp-name."
        self._lock_holder.enter_context(lock_folder(self.path, message))

    def delete(self) -> None:
        """Remove the files of a run and its results.

        Other files stay, as do the folders of the loggers csv, wandb and mlflow. config.yaml is
        removed last: if this process is killed before that, the folder has an unfinished run.
        """
        event_files = self.path.glob("events.out.tfevents.*")
        for file in (self.summary, self.metrics, self.backbone, self.views, *event_files):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.results):
            shutil.rmtree(folder, ignore_errors=True)
        self.config.unlink(missing_ok=True)

    def remove_partial_files(self) -> None:
        """Remove the temporary files of a process that was killed while it wrote."""
        for folder in (self.path, self.checkpoints):
            for file in folder.glob(f".*{PARTIAL_SUFFIX}"):
                file.unlink(missing_ok=True)

    def resumable(self) -> list[Path]:
        """Return the checkpoints to resume from, the newest first."""
        own = [path for path in (self.last, previous(self.last)) if path.exists()]
        # Lightning writes hpc_ckpt_N.ckpt when SLURM requeues a job. It counts only if it is newer
        # than the run's own checkpoint.
        requeued = {path: path.stat().st_mtime for path in self.checkpoints.glob("hpc_ckpt_*.ckpt")}
        if own:
            last_saved = own[0].stat().st_mtime
            requeued = {path: saved for path, saved in requeued.items() if saved > last_saved}
        return sorted(requeued, key=requeued.__getitem__, reverse=True) + own

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl, up to the first damaged one."""
        rows: list[dict[str, Any]] = []
        if not self.metrics.exists():
            return rows
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl.

        If somebody has removed the folder while the run trains, write config.yaml again too.

        Raises:
            OSError: the file cannot be written.
        """
        if self._created_config is not None and not self.config.exists():
            self.create(self._created_config)
            # The lock is on the removed folder and does not protect the new one.
            self._lock_holder.close()
            self._acquire_lock()
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
        write_text(self.metrics, "".join(lines))
