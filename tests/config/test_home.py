"""A user without a home folder: no HOME, and an id without an entry in passwd."""

from pathlib import Path

import pytest

from tests.helpers import TINY, Program

FOLDER = ["--dataset", "folder", "--image-size", "32"]


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", refuse)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_home_cache_dir_is_named(photos: Path, program: Program, tmp_path: Path) -> None:
    status, _, err = program(*TINY, *FOLDER, "--data-dir", str(photos))
    assert status == 2 and err.count("\n") == 1 and "give --cache-dir" in err, err
    assert list(tmp_path.iterdir()) == []


def test_with_a_cache_dir_no_home_is_needed(photos: Path, program: Program, tmp_path: Path) -> None:
    cache = ("--cache-dir", str(tmp_path / "cache"))
    status, _, err = program(*TINY, *FOLDER, "--data-dir", str(photos), *cache)
    assert (status, err) == (0, "")


def test_a_flag_with_a_tilde_names_itself(program: Program) -> None:
    status, out, err = program(*TINY, "--dataset", "patterns", "--save-dir", "~/runs")
    assert (status, out) == (2, "") and "--save-dir ~/runs: there is no such home folder" in err
