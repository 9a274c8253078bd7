"""A run folder with damaged files is refused in one line, or repaired by the resumed run."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from simsiam import load_backbone
from tests.helpers import SMALL, Program, prints_only_header, read_rows, same_weights
from tests.images import PAGE
from utils.filesystem import is_locked
from utils.run_dir import RunDirectory


def damaged(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda run: (run / file).write_bytes(content)


def both_checkpoints(run: Path) -> None:
    for name in ("last.ckpt", "last.previous.ckpt"):
        (run / "checkpoints" / name).write_bytes(PAGE)


# Each line is a list of three references to the list in the line before it.
BILLION_LAUGHS = b"a: &a [1]\n"
for i in range(ord("b"), ord("n")):
    BILLION_LAUGHS += b"%c: &%c [*%c,*%c,*%c]\n" % (i, i, i - 1, i - 1, i - 1)
BILLION_LAUGHS += b"settings: *m\n"

FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "config.yaml with a tag that would run code": (
        damaged("config.yaml", b"settings: !!python/object/apply:os.system ['touch HACKED']\n"),
        "config.yaml is damaged. Pass --overwrite",
    ),
    "config.yaml empty": (damaged("config.yaml", b""), "config.yaml is damaged"),
    "config.yaml cut short": (
        lambda run: os.truncate(run / "config.yaml", 60),
        "another --exp-name",
    ),
    "config.yaml a page": (damaged("config.yaml", PAGE), "config.yaml is damaged"),
    "config.yaml not text": (
        damaged("config.yaml", b"\xff\xfe\x00settings:"),
        "config.yaml is damaged",
    ),
    "config.yaml without end": (
        damaged("config.yaml", b"settings: " + b"[" * 3000),
        "config.yaml is damaged",
    ),
    "config.yaml a billion laughs": (
        damaged("config.yaml", BILLION_LAUGHS),
        "config.yaml is damaged",
    ),
    "config.yaml with a name that is no text": (
        # In YAML, `on` is a truth value.
        lambda run: (run / "config.yaml").write_text(
            (run / "config.yaml").read_text().replace("settings:\n", "settings:\n  on: 1\n")
        ),
        "another --exp-name",
    ),
    "both checkpoints pages": (both_checkpoints, "Pass --overwrite to start again"),
    "checkpoints a file": (
        lambda run: (shutil.rmtree(run / "checkpoints"), (run / "checkpoints").write_text("x")),
        "checkpoints is a file, not a folder",
    ),
}


@pytest.fixture
def unfinished(program: Program, trained: Path, tmp_path: Path) -> Path:
    """A run that was killed while it finished."""
    run = tmp_path / "runs" / trained.name
    shutil.copytree(trained, run)
    (run / "summary.json").unlink()
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "last.previous.ckpt")
    return run


@pytest.mark.parametrize("what", FOLDERS)
def test_a_damaged_run_folder_is_refused_and_unchanged(
    what: str, unfinished: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damage, answer = FOLDERS[what]
    damage(unfinished)
    before = {file: file.read_bytes() for file in unfinished.rglob("*") if file.is_file()}
    status, out, err = program(*SMALL, "--epochs", "2")
    assert status == 2 and prints_only_header(out) and err.count("\n") == 1 and answer in err, err
    assert {file: file.read_bytes() for file in unfinished.rglob("*") if file.is_file()} == before
    assert not Path("HACKED").exists()


MENDED: dict[str, Callable[[Path], object]] = {
    "metrics.jsonl cut in the middle of a line": lambda run: os.truncate(run / "metrics.jsonl", 50),
    "metrics.jsonl empty": damaged("metrics.jsonl", b""),
    "metrics.jsonl gone": lambda run: (run / "metrics.jsonl").unlink(),
    "metrics.jsonl a page": damaged("metrics.jsonl", PAGE),
    "metrics.jsonl not text": damaged("metrics.jsonl", b"\xff\xfe\x00\n\x80"),
    "metrics.jsonl with a row too many": lambda run: damaged(
        "metrics.jsonl", (run / "metrics.jsonl").read_bytes() * 2
    )(run),
    "last.ckpt cut short": lambda run: os.truncate(run / "checkpoints" / "last.ckpt", 3000),
    "last.ckpt empty": damaged("checkpoints/last.ckpt", b""),
    "last.ckpt gone": lambda run: (run / "checkpoints" / "last.ckpt").unlink(),
    "best.ckpt a page": damaged("checkpoints/best.ckpt", PAGE),
    "backbone.safetensors a page": damaged("backbone.safetensors", PAGE),
    "what a kill left behind": damaged("checkpoints/.last.ckpt.1.partial", b"half"),
}


@pytest.mark.parametrize("what", MENDED)
def test_a_resumed_run_repairs_damaged_files(
    what: str, unfinished: Path, trained: Path, program: Program, tmp_path: Path
) -> None:
    MENDED[what](unfinished)
    status, _, err = program(*SMALL, "--epochs", "2")
    warned = what in ("last.ckpt cut short", "last.ckpt empty")
    assert (status, err.count("\n"), "going back to the checkpoint before it" in err) == (
        0,
        warned,
        warned,
    ), err
    assert read_rows(unfinished) == read_rows(trained) and same_weights(unfinished, trained)
    summary = json.loads((unfinished / "summary.json").read_text())
    assert summary == json.loads((trained / "summary.json").read_text())
    load_backbone(unfinished)
    assert not list(unfinished.rglob("*.partial"))


def test_a_run_locks_its_folder_again_if_it_was_removed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.lock():
        run.create({"settings": {}})
        shutil.rmtree(run.path)
        run.write_rows([])
        assert is_locked(run.path) and run.config.exists()
    assert not is_locked(run.path)


def test_overwrite_removes_the_checkpoints_behind_a_symbolic_link(tmp_path: Path) -> None:
    """As on another file system. A checkpoint that stays there would be resumed."""
    other_disk = tmp_path / "other disk"
    other_disk.mkdir()
    run = RunDirectory(tmp_path / "run")
    run.create({"settings": {}})
    run.checkpoints.symlink_to(other_disk)
    names = ("last.ckpt", "last.previous.ckpt", "best.ckpt", "hpc_ckpt_1.ckpt")
    for name in (*names, "of somebody else.ckpt"):
        (other_disk / name).touch()
    assert all(run.would_delete(other_disk / name) for name in names)

    run.delete()
    assert run.resumable() == []
    assert [file.name for file in other_disk.iterdir()] == ["of somebody else.ckpt"]


def test_overwrite_that_cannot_write_leaves_the_folder_of_a_run(
    unfinished: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    (unfinished / "report").mkdir()  # stays, and is no part of a run

    def fail(run: RunDirectory, config: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), run.config)

    with monkeypatch.context() as full_disk:
        full_disk.setattr(RunDirectory, "create", fail)
        assert program(*SMALL, "--epochs", "2", "--overwrite")[0] == 2
    run = RunDirectory(unfinished)
    assert (run.state(), run.resumable()) == ("unfinished", [])
