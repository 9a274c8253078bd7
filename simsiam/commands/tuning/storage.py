"""Where Optuna keeps the trials of a search, and how a trial gets into its queue again."""

import os
import re
import time
import warnings
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import DBAPIError

from utils.console import print_line
from utils.errors import UserError

JOURNAL = "journal.log"

HEARTBEAT_SECONDS = 10  # between two signs of life of a worker
# A worker on another machine counts as dead after this time without a sign of life. On the same
# machine its lock says so at once.
SILENCE_SECONDS = 300
DATABASE_ATTEMPTS = 3  # to open a database

# Optuna logs each trial and warns of functions that are new; the search prints its own lines.
optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", module=r"optuna\.")
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", message="Heartbeat of storage")


def name_run(trial: optuna.Trial | FrozenTrial) -> str:
    """Return the name of the run of a trial. One that was handed on keeps its run."""
    return trial.user_attrs.get("run") or f"trial_{trial.number:04}"


def find_trial_id(study: optuna.Study, storage: BaseStorage, number: int) -> int:
    """Return the id of a trial in the storage, which may hold several studies."""
    study_id = storage.get_study_id_from_name(study.study_name)
    return storage.get_trial_id_from_study_id_trial_number(study_id, number)


def requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Put a trial into the queue again, under a new number. Its run stays the same."""
    attributes = {name: trial.user_attrs[name] for name in ("start",) if name in trial.user_attrs}
    attributes["run"] = name_run(trial)
    fixed = {}
    if "fixed_params" in trial.system_attrs:  # values of the queue that were not drawn yet
        fixed["fixed_params"] = trial.system_attrs["fixed_params"]
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attributes,
            system_attrs=fixed,
        )
    )


class JournalLock(JournalFileSymlinkLock):
    """Optuna's lock of a journal. It is held while a process appends lines.

    A full disk or a power cut may leave half a line at the end. Optuna ignores it there, but would
    append the next line to it, and could not read the journal any more. So it is cut off first.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal

    def acquire(self) -> bool:
        is_acquired = super().acquire()
        try:
            self._cut_half_line()
        except BaseException:
            self.release()
            raise
        return is_acquired

    def _cut_half_line(self) -> None:
        with self._journal.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if file.read() in (b"", b"\n"):
                return
        whole_lines = self._journal.read_bytes().rfind(b"\n") + 1
        os.truncate(self._journal, whole_lines)
        print_line(f"{self._journal} ended with half a line, which was cut off")


def open_journal(file: Path) -> JournalStorage:
    """Return the storage in a file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return JournalStorage(JournalFileBackend(str(file), JournalLock(file)))
    except ValueError as error:  # json.JSONDecodeError is one
        raise UserError(
            f"{file} is damaged ({error}). Restore it from a backup, or give another --exp-name."
        ) from None


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """Return the storage of a search: a journal in its folder, or the database of a URL.

    Raises:
        UserError: the journal is damaged, or the database cannot be used.
    """
    if url is None:
        return open_journal(folder / JOURNAL)
    attempts = 0
    while True:
        attempts += 1
        try:
            return open_database(url)
        except DBAPIError as error:
            # Two machines that start at once both create the tables: one of them gets an error.
            if attempts == DATABASE_ATTEMPTS:
                raise database_error(url, error) from None
            time.sleep(1)  # until the other machine has created them
        except Exception as error:  # noqa: BLE001  (SQLAlchemy and its drivers raise many kinds)
            raise database_error(url, error) from None


def open_database(url: str) -> RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return RDBStorage(
            url,
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=SILENCE_SECONDS,
            heartbeat_stale_trial_callback=requeue,
        )


def database_error(url: str, error: Exception) -> UserError:
    """Return the error about a database that cannot be opened."""
    reason = " ".join(str(error).split())[:200].replace(url, hide_password(url))
    if isinstance(error.__cause__, ModuleNotFoundError):
        package = error.__cause__.name
        reason = f"the package {package} is not installed. Run: pip install {package}"
    return UserError(f"--storage {hide_password(url)} cannot be used: {reason}")


def hide_password(url: str) -> str:
    """Return the URL of a database with *** in place of its password."""
    return re.sub(r"(://[^/@:]*):[^/]*@", r"\1:***@", url)
