"""Where the commands that evaluate save results, and what they leave alone."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import main
from simsiam.evaluation import results
from tests.at_steps import start_with_events
from tests.helpers import SMALL, Program, read_summary
from tests.processes import Started, run_as_nobody
from utils.filesystem import lock_folder

COMMANDS = ("knn", "linear", "finetune", "embed", "neighbours", "export")
QUICK_FINETUNE = ["--label-fraction", "0.25", "--epochs", "1"]


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, to write into."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def read_files(folder: Path) -> dict[Path, bytes]:
    """The content of all files in a folder and below it."""
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def results_folder(run: Path, command: str) -> Path:
    """Where a command saves its results if it is called with `quick_flags`."""
    names = {"finetune": "finetune_0.25", "export": "export_safetensors"}
    return run / "results" / names.get(command, command)


def quick_flags(command: str) -> list[str]:
    return QUICK_FINETUNE if command == "finetune" else []


# ---------------------------------------------------------------- where results are saved


@pytest.mark.parametrize(
    "command", ["knn", pytest.param("neighbours", marks=pytest.mark.slow("as knn"))]
)
def test_results_are_saved_in_the_run_of_the_checkpoint(
    command: str, copy: Path, program: Program
) -> None:
    """The best epoch has a folder of its own. The checkpoint may be named without its flag."""
    for arguments, results_name in (
        ([str(copy)], "results"),
        ([str(copy / "checkpoints" / "last.ckpt")], "results"),
        (["--checkpoint", str(copy / "checkpoints" / "best.ckpt")], "results/best"),
        ([str(copy / "backbone.safetensors")], "results"),
    ):
        folder = copy / results_name / command
        status, out, err = program(command, *arguments, "--overwrite")
        assert (status, err) == (0, "")
        assert str(folder / "summary.json") in out
        saved = read_summary(folder)
        assert saved["epoch"] in (1, 2)
        assert saved["command"] == command
        assert "torch" in saved["versions"]


def test_results_are_saved_in_the_run_also_if_called_among_its_checkpoints(
    copy: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy / "checkpoints")
    for name, parent in (("last.ckpt", "results"), ("best.ckpt", "results/best")):
        assert program("knn", name)[::2] == (0, "")
        assert (copy / parent / "knn" / "summary.json").exists()


@pytest.mark.parametrize("name", ["checkpoints/last.ckpt", "backbone.safetensors"])
def test_results_of_a_file_outside_its_run_are_saved_next_to_it(
    name: str, copy: Path, tmp_path: Path, program: Program
) -> None:
    """The file knows which images it was trained on."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    file = Path(shutil.copy(copy / name, folder))
    assert program("knn", "--checkpoint", str(file))[0] == 0
    saved = read_summary(folder / f"{file.stem}_results" / "knn")
    assert saved["dataset"] == "patterns"
    assert (saved["train_images"], saved["test_images"]) == (200, 100)


def test_results_dir_is_used_instead_of_the_run(
    copy: Path, tmp_path: Path, program: Program
) -> None:
    folder = tmp_path / "there"
    assert program("knn", "--checkpoint", str(copy), "--results-dir", str(folder))[0] == 0
    assert (folder / "knn" / "summary.json").exists()
    assert not (copy / "results").exists()


# ---------------------------------------------------------------- what stays as it is


def test_results_are_replaced_only_with_overwrite(copy: Path, program: Program) -> None:
    assert program("knn", "--checkpoint", str(copy))[0] == 0
    notes = copy / "results" / "knn" / "notes.txt"
    notes.write_text("mine")
    before = {file: file.stat().st_mtime_ns for file in copy.rglob("*")}

    status, _, err = program("knn", "--checkpoint", str(copy))
    assert status == 2
    assert "--overwrite" in err and err.count("\n") == 1
    assert {file: file.stat().st_mtime_ns for file in copy.rglob("*")} == before

    assert program("knn", "--checkpoint", str(copy), "--overwrite")[0] == 0
    assert notes.read_text() == "mine"


@pytest.mark.slow("two further runs for one folder")
def test_an_overwritten_run_loses_its_results(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    flags = [*SMALL, "--epochs", "1", "--save-dir", str(tmp_path), "--exp-name", "run"]
    assert program(*flags)[0] == 0
    assert program("knn", "--checkpoint", str(tmp_path / "run"))[0] == 0
    assert program(*flags, "--overwrite")[0] == 0
    assert not (tmp_path / "run" / "results").exists()


def test_a_command_changes_nothing_of_the_run(copy: Path, program: Program) -> None:
    before = read_files(copy)
    for command, *flags in (
        ("knn",),
        ("linear",),
        ("linear", "--augment", "--epochs", "2"),
        ("finetune", *QUICK_FINETUNE),
        ("embed",),
        ("neighbours",),
        ("export",),
    ):
        status, _, err = program(command, "--checkpoint", str(copy), *flags)
        assert (status, err) == (0, ""), command
    shutil.rmtree(copy / "results")
    assert read_files(copy) == before


@pytest.mark.slow("each command twice; that a command replaces nothing unasked is a quick test")
@pytest.mark.parametrize("command", COMMANDS)
def test_other_files_among_the_results_stay(command: str, copy: Path, program: Program) -> None:
    folder = results_folder(copy, command)
    names = ["2024-2025/thesis.txt", "12345/notes.txt", "mine.safetensors", "seed_0/mine.txt"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    for overwrite in ([], ["--overwrite"]):
        flags = [*quick_flags(command), *overwrite]
        assert program(command, "--checkpoint", str(copy), *flags)[0] == 0
        assert all((folder / name).read_text() == "mine" for name in names)


def make_bad_images(tmp_path: Path) -> Path:
    """Return a folder with a file that is no image."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "bad.png").write_text("no image")
    return images


@pytest.mark.slow("each command twice; that wrong flags leave all as it is is a quick test")
def test_a_failed_call_leaves_earlier_results_alone(
    copy: Path, program: Program, tmp_path: Path
) -> None:
    images = make_bad_images(tmp_path)
    for command, *flags in (
        ("embed", "--images", str(images)),
        ("neighbours", "--images", str(images)),
        ("linear", "--held-out", "0.001"),
        ("linear", "--precision", "bf16"),
        ("knn", "--train-images", "0"),
    ):
        assert program(command, "--checkpoint", str(copy), "--overwrite")[0] == 0
        before = read_files(copy)
        assert program(command, "--checkpoint", str(copy), "--overwrite", *flags)[0] == 2
        assert read_files(copy) == before


# ---------------------------------------------------------------- signals, pipes, other processes


def run_with_closed_stdout(args: list[str]) -> int:
    """Call main.py with a pipe whose reader has gone, as in `| head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    # A fresh process would find the pipe at its start. The forked one has a stream for a file.
    sys.stdout = os.fdopen(1, "w", closefd=False)
    return main.main(args)


def test_a_closed_pipe_ends_a_command_quietly(trained: Path, tmp_path: Path) -> None:
    flags = ["--checkpoint", str(trained), "--results-dir", str(tmp_path)]
    process = Started(run_with_closed_stdout, ["knn", *flags])
    assert process.communicate()[1] == ""
    assert process.returncode == 141  # 128 + SIGPIPE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_finetune_keeps_finished_seeds(
    number: signal.Signals, trained: Path, tmp_path: Path
) -> None:
    flags = ["--checkpoint", str(trained), "--results-dir", str(tmp_path)]
    flags += ["--label-fraction", "0.25", "--epochs", "2", "--seeds", "0", "1"]
    # Each seed takes two steps, so the signal comes at the end of the second seed.
    process = start_with_events({4: [number.name]}, "finetune", *flags)
    _, err = process.communicate()
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}" in err and err.count("\n") == 1
    folder = tmp_path / "finetune_0.25"
    assert (folder / "seed_0" / "summary.json").exists()
    assert not (folder / "seed_1" / "summary.json").exists()
    assert not (folder / "summary.json").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_in_use_by_another_process_is_refused(
    command: str, copy: Path, program: Program
) -> None:
    folder = results_folder(copy, command)
    folder.mkdir(parents=True)
    with lock_folder(folder, ""):
        status, _, err = program(command, str(copy), *quick_flags(command))
    assert status == 2
    assert "another process is working" in err and err.count("\n") == 1
    assert not list(folder.iterdir())


def test_results_that_another_process_has_just_saved_are_not_replaced(
    trained: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def lock_after_the_other(folder: Path, message: str) -> Iterator[None]:
        (folder / "summary.json").write_text("of the other")
        yield

    monkeypatch.setattr(results, "lock_folder", lock_after_the_other)
    status, _, err = program("knn", str(trained), "--results-dir", str(tmp_path))
    assert status == 2 and "summary.json exists already" in err
    assert (tmp_path / "knn" / "summary.json").read_text() == "of the other"


def test_a_failed_command_leaves_no_empty_folders(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    images = make_bad_images(tmp_path)
    flags = ["--images", str(images), "--results-dir", str(tmp_path / "new" / "results")]
    assert program("embed", str(trained), *flags)[0] == 2
    assert list(tmp_path.iterdir()) == [images]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_folder_without_permission_is_named(trained: Path, tmp_path: Path) -> None:
    unreadable = tmp_path / "secret"
    shutil.copytree(trained, unreadable / "run")
    unreadable.chmod(0o700)
    readable = tmp_path / "open"
    shutil.copytree(trained, readable)
    for folder in (tmp_path, *tmp_path.parents[:2]):  # pytest keeps others out of its folders
        folder.chmod(0o755)
    for flags in (
        ["--checkpoint", str(unreadable / "run")],
        ["--checkpoint", str(readable)],
        ["--checkpoint", str(readable), "--results-dir", str(unreadable / "results")],
    ):
        process = Started(run_as_nobody, ["knn", *flags])
        _, err = process.communicate()
        assert process.returncode == 2
        assert err.count("\n") == 1
        assert "ermission" in err or "cannot be written" in err
