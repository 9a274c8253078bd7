"""What a search finds out about the images before its first trial."""

from pathlib import Path

import pytest

from simsiam.commands.tuning.judging import Judge, describe_judge, hold_out_images
from simsiam.commands.tuning.plan import Plan, make_plan
from simsiam.config.commands import Search
from tests.helpers import NETWORK
from tests.images import patterns, write_images
from utils.cli import parse


def make_folder_plan(images: Path, folder: Path, *flags: str) -> Plan:
    data = ["--dataset", "folder", "--data-dir", str(images), "--image-size", "32"]
    cache = ["--image-cache", "on", "--cache-dir", str(folder / "cache")]
    where = ["--save-dir", str(folder), "--accelerator", "cpu"]
    return make_plan(parse(Search, [*data, *cache, *where, *NETWORK.split(), *flags], "test"))


def make_patterns_plan(folder: Path, *flags: str) -> Plan:
    where = ["--save-dir", str(folder), "--accelerator", "cpu"]
    return make_plan(
        parse(Search, ["--dataset", "patterns", *where, *NETWORK.split(), *flags], "test")
    )


@pytest.mark.parametrize(
    ("images", "judge", "remaining"),
    [
        ("100", Judge("knn", 100, "train images", True), 100),
        ("1990", Judge("knn", 1990, "train images", True), 1990),
        ("2000", Judge("knn", 200, "held-out training images", False), 1800),
    ],
)
def test_nothing_is_held_out_of_few_images(
    images: str, judge: Judge, remaining: int, tmp_path: Path
) -> None:
    plan = make_patterns_plan(tmp_path, "--train-images", images, "--test-images", "30")
    assert (plan.judge, plan.train_images) == (judge, remaining)
    assert "test images are not used" in describe_judge(plan.judge)


def test_images_that_will_be_downloaded_are_judged_as_later(tmp_path: Path) -> None:
    """The first start of a search must not take test images that a later start leaves alone."""
    flags = ["--data-dir", str(tmp_path), "--train-images", "1000"]
    assert hold_out_images(parse(Search, flags, "test")).data.test_images == 0


def test_images_that_the_flags_hold_out_judge_trials(tmp_path: Path) -> None:
    flags = ("--train-images", "100", "--held-out-images", "20")
    plan = make_patterns_plan(tmp_path, *flags)
    assert plan.judge == Judge("knn", 20, "held-out training images", False)


def test_search_opens_no_test_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "photos"
    write_images(images, patterns(120))
    (images / "test" / "0").mkdir(parents=True)
    (images / "test" / "0" / "damaged.png").write_bytes(b"not an image")
    plan = make_folder_plan(images, tmp_path, "--train-images", "100")
    assert (plan.judge.queries, plan.train_images) == (100, 100)
    out = capsys.readouterr().out
    assert out.count("not used: test/") == 1  # the images are listed twice, but reported once


def test_labels_of_test_images_judge_trials_if_there_are_no_others(tmp_path: Path) -> None:
    images = tmp_path / "photos"
    write_images(images, patterns(120), "train/{i:05d}.png")
    write_images(images, patterns(40, split=1), "test/{name}/{i:05d}.png")
    plan = make_folder_plan(images, tmp_path)
    assert plan.judge == Judge("knn", 40, "test images", True)
    assert plan.config.data.held_out_images == 0
    assert "no test result any more" in describe_judge(plan.judge)


@pytest.mark.parametrize(
    ("labelled", "flags", "judge"),
    [
        (60, (), Judge("knn", 60, "train images", True)),
        (20, (), Judge("knn", 20, "test images", True)),
        (20, ("--objective", "knn"), Judge("knn", 20, "train images", True)),
        (60, ("--objective", "rankme"), Judge("rankme")),
    ],
)
def test_labels_of_some_train_images_judge_trials_if_they_are_enough(
    labelled: int, flags: tuple[str, ...], judge: Judge, tmp_path: Path
) -> None:
    write_images(tmp_path, patterns(90), "train/{i}.png")
    write_images(tmp_path, patterns(20, split=1), "test/{i}.png")
    lines = [f"train/{i}.png,{i % 3 if i < labelled else ''},train" for i in range(90)]
    lines += [f"test/{i}.png,{i % 3},test" for i in range(20)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *lines]))
    plan = make_folder_plan(tmp_path / "list.csv", tmp_path, *flags)
    assert (plan.judge, plan.train_images) == (judge, 90)


@pytest.mark.parametrize("flags", [(), ("--held-out-images", "40")])
def test_few_labels_without_test_images_judge_nothing(
    flags: tuple[str, ...], tmp_path: Path
) -> None:
    write_images(tmp_path, patterns(90), "{i}.png")
    lines = [f"{i}.png,{i % 3 if i < 20 else ''}" for i in range(90)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    assert make_folder_plan(tmp_path / "list.csv", tmp_path, *flags).judge == Judge("rankme")
