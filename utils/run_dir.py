"""The folder of a run: its files, its state and its lock.

The names of files and folders in it stand here and nowhere else.
"""

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

# Names of files. The folder of a command's results has some of them, too.
SUMMARY_FILE = "summary.json"
BACKBONE_FILE = "backbone.safetensors"
HEAD_FILE = "head.safetensors"  # of results alone
REPORT_FOLDER = "report"  # in the folder of a run, or in the folder that holds several runs


def seed_folder(seed: int | str) -> str:
    """Return the name of the folder of one of several seeds; "*" gives the pattern of all."""
    return f"seed_{seed}"


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
        self.summary = path / SUMMARY_FILE
        self.backbone = path / BACKBONE_FILE
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
            # A name that is no text, as `on` and `5` are not in YAML, belongs to no option.
            return {str(name): value for name, value in content[section].items()}
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

    def delete(self, keep_config: bool = False) -> None:
        """Remove the files of a run and its results.

        Other files stay, as do the folders of the loggers csv, wandb and mlflow. config.yaml is
        removed last: if this process is killed before that, the folder has an unfinished run.

        Args:
            keep_config: leave config.yaml, which `create` replaces. Other files, such as a report,
                would make the folder one that is not a run if `create` failed on a full disk.
        """
        event_files = self.path.glob("events.out.tfevents.*")
        # `rmtree` refuses a folder that is a symbolic link, as to another file system. A checkpoint
        # left there would be resumed, so each is removed by its name.
        checkpoints = (self.best, previous(self.last), self.last, *self._requeued_checkpoints())
        files = (self.summary, self.metrics, self.backbone, self.views, *event_files)
        for file in (*files, *checkpoints):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.results):
            shutil.rmtree(folder, ignore_errors=True)
        if not keep_config:
            self.config.unlink(missing_ok=True)

    def would_delete(self, checkpoint: Path) -> bool:
        """Return whether `delete` would remove a checkpoint, wherever the folders really are."""
        # The file itself may be a link too: `delete` would remove either the link or its target.
        linked_from = checkpoint.parent.resolve() / checkpoint.name
        parents = {*linked_from.parents, *checkpoint.resolve().parents}
        return any(folder.resolve() in parents for folder in (self.path, self.checkpoints))

    def remove_partial_files(self) -> None:
        """Remove the temporary files of a process that was killed while it wrote."""
        for folder in (self.path, self.checkpoints):
            for file in folder.glob(f".*{PARTIAL_SUFFIX}"):
                file.unlink(missing_ok=True)

    def resumable(self) -> list[Path]:
        """Return the checkpoints to resume from, the newest first."""
        own = [path for path in (self.last, previous(self.last)) if path.exists()]
        # A checkpoint of a requeued job counts only if it is newer than the run's own checkpoint.
        requeued = {path: path.stat().st_mtime for path in self._requeued_checkpoints()}
        if own:
            last_saved = own[0].stat().st_mtime
            requeued = {path: saved for path, saved in requeued.items() if saved > last_saved}
        return sorted(requeued, key=requeued.__getitem__, reverse=True) + own

    def _requeued_checkpoints(self) -> list[Path]:
        """Return the checkpoints that Lightning wrote when SLURM requeued the job."""
        return list(self.checkpoints.glob("hpc_ckpt_*.ckpt"))

    def result_summaries(self) -> list[Path]:
        """Return the summaries of the commands that have evaluated the run."""
        return sorted(self.results.glob(f"*/{SUMMARY_FILE}"))

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


def find_run_of(file: Path) -> RunDirectory | None:
    """Return the run to which a checkpoint or a file of the backbone belongs, or None."""
    for folder in (file.parent, file.parent.parent):
        run = RunDirectory(folder)
        is_in_run = file == run.backbone or file.parent == run.checkpoints
        if is_in_run and run.config.exists():
            return run
    return None
