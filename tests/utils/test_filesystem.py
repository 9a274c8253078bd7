"""Locks on file systems that have none, or only for files that are open for writing; full disks."""

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from simsiam.commands.tuning.study import Study
from tests.helpers import SMALL, Program, prints_only_header
from utils.errors import UserError, describe_os_error
from utils.filesystem import is_locked, lock_folder, write_atomically

real_flock = fcntl.flock


def flock_of_nfs4(descriptor: int, operation: int) -> None:
    """Refuse a lock as NFSv4 does, which locks folders on this machine alone."""
    is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    if is_file and access == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    real_flock(descriptor, operation)


def test_files_are_locked_on_nfs4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", flock_of_nfs4)
    study = Study(tmp_path / "study", None, 0)
    with study.lock():
        assert is_locked(tmp_path / "study" / "study.lock")
    with lock_folder(tmp_path, ""):
        assert is_locked(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_file_system_without_locks_is_named_in_one_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    answer = f"cannot be locked on its file system ({os.strerror(number)})"
    with pytest.raises(UserError) as raised:
        Study(tmp_path / "study", None, 0)
    assert str(raised.value).startswith(f"{tmp_path}/study/study.lock {answer}")
    status, out, err = program(*SMALL, "--epochs", "1")
    assert (status, err.count("\n")) == (2, 1) and prints_only_header(out)
    assert f"{tmp_path}/runs/simsiam_patterns {answer}" in err


def test_error_of_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def write(partial: Path) -> None:
        partial.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # an open file's write has no name

    file = tmp_path / "features.npz"
    with pytest.raises(OSError, match="No space left") as raised:
        write_atomically(file, write)
    assert describe_os_error(raised.value) == f"{file}: No space left on device"
    assert list(tmp_path.iterdir()) == []
