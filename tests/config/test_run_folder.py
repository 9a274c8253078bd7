"""What the folder of a run may hold, and where it may be."""

from pathlib import Path

import pytest

from simsiam.config.commands import Pretrain, settings_to_keep
from simsiam.config.run_state import check_folder
from utils.cli import parse
from utils.errors import UserError
from utils.run_dir import RunDirectory


def check(images: Path, save_dir: Path, *flags: str) -> None:
    where = ["--dataset", "folder", "--data-dir", str(images), "--save-dir", str(save_dir)]
    config = parse(Pretrain, [*where, *flags], "main.py")
    check_folder(config, RunDirectory(config.run_dir))


@pytest.mark.parametrize("train", ["train", "training", "Train", "TRAINING"])
def test_a_run_next_to_the_train_images_is_allowed(train: str, tmp_path: Path) -> None:
    (tmp_path / train).mkdir()
    check(tmp_path, tmp_path / "runs")
    with pytest.raises(UserError, match="its pictures would be taken for images"):
        check(tmp_path, tmp_path / train / "runs")


@pytest.mark.parametrize("exists", [True, False])
def test_a_run_among_the_test_images_is_refused(exists: bool, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    if exists:
        (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match="its pictures would be taken for images"):
        check(tmp_path, tmp_path / "val")
    # With held-out images, val/ is not used.
    check(tmp_path, tmp_path / "val", "--held-out-images", "4")


def test_a_linked_folder_is_the_folder_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "train").symlink_to(tmp_path / "disk")
    with pytest.raises(UserError, match="its pictures would be taken for images"):
        check(tmp_path / "photos", tmp_path / "disk" / "runs")


def test_without_train_images_of_their_own_all_folders_have_images(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    with pytest.raises(UserError, match="its pictures would be taken for images"):
        check(tmp_path, tmp_path / "runs")
    check(tmp_path / "cats", tmp_path / "runs")


@pytest.mark.parametrize(
    ("variables", "state"),
    [
        ({}, "discarded"),
        ({"SLURM_JOB_ID": "77"}, "discarded"),  # the command is typed again in the same job
        ({"SLURM_JOB_ID": "78", "SLURM_RESTART_COUNT": "1"}, "discarded"),  # an older run
        ({"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "1"}, "unfinished"),
    ],
)
def test_overwrite_spares_only_the_run_of_a_requeued_job(
    variables: dict[str, str], state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    flags = ["--overwrite", "--batch-size", "512", "--knn-k", "200"]
    flags += ["--save-dir", str(tmp_path), "--exp-name", "run"]
    config = parse(Pretrain, flags, "main.py")
    run = RunDirectory(config.run_dir)
    assert check_folder(config, run) == "new"
    run.create({"settings": settings_to_keep(config), "resolved": {"slurm_job": "77"}})
    assert check_folder(config, run) == state
