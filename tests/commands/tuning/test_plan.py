"""What a search finds out about the images before its first trial."""

from pathlib import Path

import pytest

from simsiam.commands.tuning.plan import Plan, make_plan
from simsiam.config.commands import Search
from tests.helpers import NETWORK
from tests.images import patterns, write_images
from utils.cli import parse


def make_folder_plan(images: Path, folder: Path) -> Plan:
    data = ["--dataset", "folder", "--data-dir", str(images), "--image-size", "32"]
    cache = ["--image-cache", "on", "--cache-dir", str(folder / "cache")]
    where = ["--save-dir", str(folder), "--accelerator", "cpu", "--train-images", "100"]
    flags = [*data, *cache, *where, *NETWORK.split()]
    return make_plan(parse(Search, flags, "test"))


def test_search_opens_no_test_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "photos"
    write_images(images, patterns(120))
    (images / "test" / "0").mkdir(parents=True)
    (images / "test" / "0" / "damaged.png").write_bytes(b"not an image")
    plan = make_folder_plan(images, tmp_path)
    assert (plan.objective, plan.queries, plan.train_images) == ("knn", 30, 70)
    out = capsys.readouterr().out
    assert out.count("not used: test/") == 1  # the images are listed twice, but reported once


def test_labels_of_test_images_judge_trials_if_there_are_no_others(tmp_path: Path) -> None:
    images = tmp_path / "photos"
    write_images(images, patterns(120), "train/{i:05d}.png")
    write_images(images, patterns(40, split=1), "test/{name}/{i:05d}.png")
    plan = make_folder_plan(images, tmp_path)
    assert (plan.objective, plan.leave_one_out, plan.queries) == ("knn", True, 40)
    assert plan.config.data.held_out_images == 0
