"""--held-out-images: training images in the place of the test images, for choosing settings."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from simsiam.config.options import DataOptions
from simsiam.data import load_dataset, make_placeholders, prepare_dataset
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import ImageDataset
from simsiam.data.held_out import choose_held_out
from simsiam.data.synthetic import make_patterns
from tests.at_steps import start_with_events
from tests.helpers import SMALL, Program, same_run
from tests.processes import start

# SMALL without --test-images, which --held-out-images excludes
TEST_IMAGES_AT = SMALL.index("--test-images")
FLAGS = SMALL[:TEST_IMAGES_AT] + SMALL[TEST_IMAGES_AT + 2 :]


def contents(*splits: ImageDataset) -> list[bytes]:
    """Return the pixels of all images, sorted."""
    return sorted(image.numpy().tobytes() for split in splits for image in split.images)


@pytest.fixture
def options(photos: Path, tmp_path: Path) -> dict[str, DataOptions]:
    """Options of three small data sets. Of each, 50 train images are held out."""
    images, labels = make_patterns(200)
    arrays = {"x_train": images.numpy(), "y_train": labels.numpy()}
    np.savez(
        tmp_path / "images.npz",
        **arrays,
        x_test=arrays["x_train"][:9],
        y_test=arrays["y_train"][:9],
    )
    folder = {"data_dir": str(photos), "image_size": 32, "cache_dir": str(tmp_path / "cache")}
    return {
        "patterns": DataOptions("patterns", train_images=200, held_out_images=50),
        "arrays": DataOptions("arrays", str(tmp_path / "images.npz"), held_out_images=50),
        "folder": DataOptions("folder", **folder, held_out_images=50),
    }


@pytest.mark.parametrize("name", ["patterns", "arrays", "folder"])
def test_held_out_images_are_removed_from_train(
    name: str, options: dict[str, DataOptions], photos: Path
) -> None:
    prepare_dataset(options[name])
    train, held_out = load_dataset(options[name])
    assert (len(train), len(held_out)) == (150, 50)
    all_images = ImageDataset(*make_patterns(200), train.classes)
    # The 200 train images are different, and no test image is among them.
    assert contents(train, held_out) == contents(all_images)
    assert held_out.labels.bincount().tolist() == [5] * 10
    assert train.labels.bincount().tolist() == [15] * 10


def test_a_dry_run_counts_held_out_images(options: dict[str, DataOptions], tmp_path: Path) -> None:
    absent = DataOptions("cifar10", str(tmp_path / "nowhere"), held_out_images=5000)
    for data_options, sizes in ((absent, [45_000, 5_000]), (options["folder"], [150, 50])):
        splits = make_placeholders(data_options)
        assert splits is not None
        assert [len(split) for split in splits] == sizes and splits[1].held_out


def test_held_out_images_do_not_depend_on_the_seed() -> None:
    images = []
    for seed in (0, 7):
        data = ViewsDataModule(
            "patterns", train_images=200, held_out_images=50, batch_size=10, seed=seed
        )
        data.setup()
        images.append(data.test.images)
    assert torch.equal(*images)


def test_each_class_is_held_out_by_its_share() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    chosen = choose_held_out(labels, 20)
    assert labels[chosen].bincount().tolist() == [12, 6, 2]
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert set(choose_held_out(labels, 10).tolist()) != set(range(10))
    assert len(choose_held_out(torch.full((100,), -1), 20)) == 20  # without labels


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--held-out-images 200",
            "--held-out-images 200 must be less than the 200 training images",
        ),
        ("--held-out-images 50 --test-images 9", "--test-images 9: with --held-out-images 50"),
        ("--held-out-images -1", "--held-out-images -1: should be greater"),
        ("--held-out 50", "--held-out is called --held-out-images here"),
    ],
)
def test_impossible_numbers_are_refused_in_one_line(
    flags: str, message: str, program: Program, tmp_path: Path
) -> None:
    arguments = ["--dataset", "patterns", "--train-images", "200", *flags.split()]
    status, _, err = program(*arguments)
    assert status == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_and_its_evaluations_name_held_out_images(program: Program, tmp_path: Path) -> None:
    status, out, _ = program(*FLAGS, "--held-out-images", "50", "--epochs", "1")
    assert status == 0 and "150 train and 50 held-out training images" in out
    run = tmp_path / "runs" / "simsiam_patterns"
    assert yaml.safe_load((run / "config.yaml").read_text())["settings"]["held_out_images"] == 50
    status, _, err = program(*FLAGS, "--epochs", "1")
    assert status == 2 and "--held-out-images 50, now 0" in err

    status, out, _ = program("knn", str(run))
    assert status == 0 and "% on 50 held-out training images" in out and "bank of 150" in out
    evaluation = json.loads((run / "results" / "knn" / "summary.json").read_text())
    training = json.loads((run / "summary.json").read_text())
    assert evaluation["held_out_images"] == 50
    with_the_k_of_the_run = [
        row["accuracy"]
        for row in evaluation["table"]
        if (row["features"], row["k"], row["temperature"]) == ("backbone", 20, 0.1)
    ]
    assert with_the_k_of_the_run == [training["kNN_accuracy"]]
    status, out, _ = program("linear", str(run), "--held-out", "0.2")
    assert status == 0 and "% on 50 held-out training images" in out
    status, out, _ = program("knn", str(run), "--held-out-images", "0", "--overwrite")
    assert status == 0 and "% on 2,000 test images" in out and "bank of 200" in out


def test_evaluation_can_hold_out_images_after_the_run(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    status, out, err = program("knn", str(run), "--held-out-images", "40")
    assert (status, err) == (0, "") and "% on 40 held-out training images" in out


def test_a_killed_run_with_held_out_images_resumes_exactly(tmp_path: Path) -> None:
    flags = [*FLAGS, "--held-out-images", "50", "--epochs", "4", "--checkpoint-every", "1"]
    flags += ["--conv-init", "torch", "--predictor-lr-scale", "0.5", "--save-dir", str(tmp_path)]
    start(*flags, "--exp-name", "whole").communicate()
    # An epoch has three steps, so step 8 is within the third epoch.
    killed = start_with_events({8: ["SIGKILL"]}, *flags, "--exp-name", "killed")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    out, _ = start(*flags, "--exp-name", "killed").communicate()
    assert "resumed from" in out
    assert same_run(tmp_path / "killed", tmp_path / "whole")
