"""Training on a folder of images: from memory, streamed from the disk, and resumed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from simsiam import ViewsDataModule
from simsiam.augment import Policy
from simsiam.config.options import DataOptions
from simsiam.data import load_dataset
from simsiam.data.dataset import ImageDataset
from tests.at_steps import start_with_events
from tests.helpers import ROOT, TINY, Program, read_rows, same_weights
from tests.images import write_images
from tests.processes import start
from tests.trainers import fit


class FirstView(pl.Callback):
    """Keeps the first view of each epoch."""

    def __init__(self) -> None:
        self.views: list[torch.Tensor] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self.views.append(batch[0])


def class_names(images: ImageDataset) -> list[str]:
    return images.names(images.labels.tolist())


@pytest.mark.slow(
    "writes and trains on 5,000 images three times; the golden of a streamed folder is a quick test"
)
def test_files_train_as_the_same_arrays_but_for_the_resizing_of_crops(
    cifar10_dir: Path, train_on_folder: Program, program: Program, tmp_path: Path
) -> None:
    splits = load_dataset(
        DataOptions("cifar10", str(cifar10_dir), train_images=4000, test_images=1000)
    )
    arrays: dict[str, Any] = {"classes": np.array(splits[0].classes)}
    for images, folder, name in zip(splits, ("train", "val"), ("train", "test"), strict=True):
        # Order the images by class, as a folder of files does.
        order = torch.from_numpy(np.argsort(class_names(images), kind="stable"))
        ordered = images.subset(order)
        write_images(tmp_path / "png", ordered, split=folder)
        arrays[f"x_{name}"] = ordered.images.permute(0, 2, 3, 1).numpy()
        arrays[f"y_{name}"] = ordered.labels.numpy()
    np.savez(tmp_path / "x.npz", **arrays)

    batch = ("--batch-size", "500")
    assert train_on_folder(tmp_path / "png", *batch, "--exp-name", "files")[0] == 0
    assert (
        train_on_folder(tmp_path / "png", *batch, "--exp-name", "streamed", "--data-memory", "0")[0]
        == 0
    )
    data = ("--dataset", "arrays", "--data-dir", str(tmp_path / "x.npz"), "--exp-name", "arrays")
    assert program(*TINY, *batch, *data)[0] == 0
    runs = [tmp_path / "runs" / name for name in ("files", "streamed", "arrays")]
    assert read_rows(runs[0]) == read_rows(runs[1])
    assert same_weights(runs[0], runs[1])
    assert read_rows(runs[0])[0]["kNN_accuracy"] > 10
    # Clean images are the same. Crops of files have 8 bits, and those of arrays are not rounded.
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    assert summaries[0]["kNN_untrained"] == summaries[2]["kNN_untrained"]
    assert abs(summaries[0]["train_loss"] - summaries[2]["train_loss"]) < 0.01


def test_a_streamed_run_cut_off_within_an_epoch_resumes_exactly(
    photos: Path, tmp_path: Path
) -> None:
    flags = [*TINY, "--dataset", "folder", "--data-dir", str(photos), "--image-size", "32"]
    flags += ["--data-memory", "0", "--cache-dir", str(tmp_path / "cache")]
    flags += ["--train-images", "60", "--batch-size", "10", "--epochs", "4", "--knn-every", "2"]
    flags += ["--save-dir", str(tmp_path / "runs")]

    # The two runs decode the images at the same time: one waits for the other.
    alone = start(*flags, "--exp-name", "alone")
    cut = start_with_events({9: ["SIGTERM"]}, *flags, "--exp-name", "cut")
    _, err = cut.communicate()
    assert cut.returncode == 143
    assert err.count("\n") == 1 and "in epoch 2, step 9" in err and "saved" in err
    assert alone.communicate()[1] == ""

    out, err = start(*flags, "--exp-name", "cut").communicate()
    assert err == "" and "resumed from" in out
    runs = [tmp_path / "runs" / name for name in ("alone", "cut")]
    assert read_rows(runs[0]) == read_rows(runs[1]) and same_weights(*runs)


TRAIN_WITH_LIMITED_MEMORY = """
import sys
import numpy as np, pytorch_lightning as pl, torch
from simsiam import KNNMonitor, SimSiam
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import ImageDataset
from tests.helpers import limit_memory

data = ViewsDataModule("folder", batch_size=8, image_size=32, data_memory=0)
images = torch.from_numpy(np.load(sys.argv[1], mmap_mode="r"))
n, labels = len(images), torch.arange(len(images)) % 2
train = ImageDataset(images, labels, ("a", "b"), on_disk=True)
data.set_splits((train, train.first(50)))
model = SimSiam("resnet10", width=4, out_dim=16, h_dim=8)
limit_memory(int(sys.argv[2]))
trainer = pl.Trainer(
    accelerator="cpu",
    max_epochs=1,
    callbacks=[KNNMonitor(5)],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, datamodule=data)
assert data.train.on_disk and trainer.global_step == n // 8
"""


@pytest.mark.slow("786 MB are written and read; that images stay on disk is a quick test")
def test_images_larger_than_the_memory_are_streamed(tmp_path: Path) -> None:
    """The kernel refuses more memory than 200 MiB after the program has built its network."""
    n = 1000
    memory = 200 * 2**20
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (n, 3, 512, 512))
    images[:] = np.random.default_rng(0).integers(0, 256, (3, 512, 512), dtype=np.uint8)
    images.flush()
    arguments = [str(tmp_path / "images.npy"), str(memory)]
    command = [sys.executable, "-W", "ignore", "-c", TRAIN_WITH_LIMITED_MEMORY, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert images.nbytes > 3.7 * memory


def test_overfit_batches_crops_the_same_images_anew_in_each_epoch(photos: Path) -> None:
    crops_alone = Policy(flip=0, jitter=0, grayscale=0)
    data = ViewsDataModule(
        "folder",
        str(photos),
        batch_size=10,
        policy=crops_alone,
        image_schedule=["8:2"],
        train_images=40,
        image_size=32,
        image_cache="off",
    )
    first_view = FirstView()
    fit(first_view, data=data, max_epochs=3, overfit_batches=2)
    epoch_1, epoch_2, epoch_3 = first_view.views
    assert epoch_1.shape == epoch_2.shape == (10, 3, 8, 8)
    assert not torch.equal(epoch_1, epoch_2)
    assert epoch_3.shape == (10, 3, 32, 32)
