"""The batch size and k fit a small data set, unless they are given."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from simsiam.commands.fit import choose_batch_size, fit_k
from simsiam.data.dataset import ImageDataset, make_blank_split
from tests.helpers import Program, read_rows, read_summary

SMALL_NETWORK = "--backbone resnet10 --width 4 --out-dim 32 --h-dim 16 --accelerator cpu"
CHEAP = "--precision 32 --image-schedule 8:1000 --pictures-every 50"
FEW_IMAGES = "--dataset patterns --train-images 140 --test-images 40"
FLAGS = f"{FEW_IMAGES} {SMALL_NETWORK} {CHEAP}".split()


def split(*images_per_class: int) -> ImageDataset:
    labels = torch.arange(len(images_per_class)).repeat_interleave(torch.tensor(images_per_class))
    classes = tuple(f"class {i}" for i in range(len(images_per_class)))
    return make_blank_split(8, labels, classes)


@pytest.mark.parametrize(
    ("images", "batch_size"),
    [(50_000, 512), (8192, 512), (8191, 256), (2048, 128), (2047, 64)]
    + [(500, 64), (255, 32), (140, 32), (32, 8), (20, 8), (7, 4)],
)
def test_an_epoch_has_16_steps_or_4_small_ones(images: int, batch_size: int) -> None:
    assert choose_batch_size(images, parts=1) == batch_size


def test_each_process_gets_two_images() -> None:
    assert choose_batch_size(140, parts=32) == 64


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_powers_of_two_share_the_default(parts: int) -> None:
    assert choose_batch_size(50_000, parts) == 512


@pytest.mark.parametrize(
    ("images", "parts", "batch_size"),
    [(50_000, 3, 510), (50_000, 6, 510), (50_000, 12, 504), (50_000, 384, 768), (140, 3, 30)],
)
def test_any_number_of_parts_shares_a_batch(images: int, parts: int, batch_size: int) -> None:
    assert choose_batch_size(images, parts) == batch_size


def test_three_devices_share_a_batch_and_the_reason_is_printed(program: Program) -> None:
    flags = ["--train-images", "9000", "--devices", "3", "--dry-run"]
    status, out, err = program(*FLAGS, *flags)
    assert (status, err) == (0, "")
    assert "  training  up to 512 images" in out
    assert "batch     510 images instead of 512, to split into 3 equal parts" in out


def test_k_is_the_size_of_a_typical_class() -> None:
    assert fit_k(split(*[5000] * 10), split(10, 10)) == 200  # CIFAR-10
    assert fit_k(split(*[500] * 100), split(10, 10)) == 200  # CIFAR-100
    assert fit_k(split(*[20] * 7), split(10, 10)) == 20
    assert fit_k(split(30, 1, 40), split(10, 10)) == 30  # a rare class decides nothing
    assert fit_k(split(1, 1), split(1, 1)) == 1


def test_without_labels_k_is_at_most_the_number_of_images() -> None:
    unlabelled = ImageDataset(split(50).images, torch.full((50,), -1), ())
    assert fit_k(unlabelled, unlabelled) == 50


def read_config(run: Path) -> dict[str, dict[str, object]]:
    return yaml.safe_load((run / "config.yaml").read_text())


def test_140_images_train_and_the_choice_is_printed_saved_and_kept(
    program: Program, tmp_path: Path
) -> None:
    status, out, err = program(*FLAGS, "--epochs", "1")
    assert (status, err) == (0, "")
    assert "batch     32 images instead of 512, to fit 140 train images; learning rate 0.06" in out
    assert "kNN       k 14 instead of 200: a typical class has only 14 images" in out
    run = tmp_path / "runs" / "simsiam_patterns"
    assert read_summary(run)["step"] == 4
    config = read_config(run)
    assert config["settings"]["batch_size"] == 32 and config["settings"]["knn_k"] == 14
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["settings"]["batch_size"] == 32 and checkpoint["settings"]["knn_k"] == 14

    assert "is finished already" in program(*FLAGS, "--epochs", "1")[1]
    chosen = ["--batch-size", "32", "--knn-k", "14"]
    assert "is finished already" in program(*FLAGS, "--epochs", "1", *chosen)[1]
    status, _, err = program(*FLAGS, "--epochs", "1", "--batch-size", "64")
    assert status == 2 and "--batch-size 32, now 64" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "512"], "--batch-size 512 is more than the 140 train images"),
        (["--knn-k", "200"], "--knn-k 200 is more than the 140 train images"),
        (["--accumulate", "128"], "--batch-size 128 must split into 128 equal parts"),
    ],
)
def test_what_is_given_stays(
    flags: list[str], message: str, program: Program, tmp_path: Path
) -> None:
    status, _, err = program(*FLAGS, "--epochs", "1", *flags)
    assert status == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_resumed_run_keeps_its_batch_size_and_k(program: Program, tmp_path: Path) -> None:
    """A run of an earlier version had the defaults of that version, whatever would fit today."""
    flags = [*FLAGS, "--epochs", "2", "--train-images", "600"]
    assert program(*flags, "--batch-size", "512", "--knn-k", "200")[0] == 0
    run = tmp_path / "runs" / "simsiam_patterns"
    (run / "summary.json").unlink()  # the run was killed at its end
    config = read_config(run)
    del config["resolved"]["fitted"], config["settings"]["recipe"]
    del config["settings"]["base_learning_rate"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))

    status, out, err = program(*flags)
    assert (status, err) == (0, "") and "resumed from" in out
    assert read_summary(run)["step"] == 2
    config = read_config(run)
    assert config["settings"]["batch_size"] == 512 and config["settings"]["knn_k"] == 200

    # With other values than the defaults, the flags must be repeated, as before.
    name = ["--exp-name", "given"]
    assert program(*flags, *name, "--batch-size", "100")[0] == 0
    status, _, err = program(*flags, *name)
    assert status == 2 and "--batch-size 100, now 512" in err


def test_a_damaged_choice_is_refused_in_one_line(program: Program, tmp_path: Path) -> None:
    assert program(*FLAGS, "--epochs", "1")[0] == 0
    run = tmp_path / "runs" / "simsiam_patterns"
    config = read_config(run)
    config["settings"]["batch_size"] = "many"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    status, _, err = program(*FLAGS, "--epochs", "1")
    assert status == 2 and "--batch-size many" in err and err.count("\n") == 1


def test_the_auto_rate_follows_the_chosen_batch(program: Program) -> None:
    status, out, _ = program(*FLAGS, "--learning-rate", "auto", "--dry-run")
    assert status == 0 and "to fit 140 train images; learning rate 0.00375" in out


def test_k_of_a_run_without_labels_is_fitted_when_labels_count(
    program: Program, tmp_path: Path
) -> None:
    """An earlier version measured no kNN among train images, and took k for their number."""
    flags = [*FLAGS, "--epochs", "2", "--checkpoint-every", "1"]
    assert program(*flags)[0] == 0
    run = tmp_path / "runs" / "simsiam_patterns"
    (run / "summary.json").unlink()
    (run / "checkpoints" / "best.ckpt").unlink()
    last = run / "checkpoints" / "last.ckpt"
    last.with_name("last.previous.ckpt").replace(last)  # of the first epoch
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["settings"]["knn_k"] = 140
    row = checkpoint["row"]
    del row["kNN_accuracy"]
    checkpoint["row"] = row
    checkpoint["callbacks"]["MetricsRecorder"]["rows"] = [row]
    torch.save(checkpoint, last)
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    config = read_config(run)
    config["settings"]["knn_k"] = 140
    (run / "config.yaml").write_text(yaml.safe_dump(config))

    moved = ["--exp-name", "moved", "--ckpt-dir", str(run)]
    for more in (moved, []):
        status, out, err = program(*flags, *more)
        assert (status, err) == (0, "") and "resumed from" in out
        assert "kNN       k 14 instead of 200: a typical class has only 14 images" in out
    assert read_config(run)["settings"]["knn_k"] == 14
    assert "kNN_accuracy" in read_rows(run)[1]
