"""--accumulate: a batch in parts, one after the other, is one step."""

import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from simsiam import SimSiam
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.sampler import EpochSampler
from tests.helpers import Program, rows, same_run, start_small, wait_for_epochs

QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def untrained() -> SimSiam:
    torch.manual_seed(0)
    return SimSiam("resnet10", width=4, out_dim=32, h_dim=8, warmup_epochs=0)


def test_a_step_follows_the_mean_gradient_of_its_parts() -> None:
    """The same images as in one part, in the same order; each part with BN statistics of its own."""
    trained, expected = untrained(), untrained()
    data = ViewsDataModule("patterns", train_images=40, test_images=10, batch_size=40, accumulate=4)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, accumulate_grad_batches=4, logger=False, log_every_n_steps=1, **QUIET
    )
    trainer.fit(trained, datamodule=data)
    assert trainer.global_step == 1

    (whole,) = EpochSampler(40, 40, seed=0, epoch=lambda: 0, device=torch.device("cpu"))
    for part in whole.split(10):
        (expected.training_step(data.make_views(part, 0), 0)["loss"] / 4).backward()
    torch.optim.SGD(expected.parameters(), 0.06, 0.9, weight_decay=5e-4).step()
    for (name, ours), theirs in zip(trained.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0, msg=name)


def test_the_record_counts_steps_and_images_not_parts(program: Program, tmp_path: Path) -> None:
    small = ["--dataset", "patterns", "--train-images", "80", "--test-images", "20", "--knn-every", "0"]
    small += ["--backbone", "resnet10", "--width", "4", "--out-dim", "32", "--h-dim", "8", "--accelerator", "cpu"]
    for name, flags in (("whole", []), ("parts", ["--accumulate", "2"])):
        status, out, _ = program(*small, "--batch-size", "20", "--epochs", "2", "--exp-name", name, *flags)
        assert status == 0 and "2 epochs of 4 steps" in out and ("20 images in 2 parts" in out) == (name == "parts")
    whole, parts = rows(tmp_path / "runs" / "whole"), rows(tmp_path / "runs" / "parts")
    for a, b in zip(whole, parts, strict=True):
        assert (a["step"], a["learning_rate"]) == (b["step"], b["learning_rate"])
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=0.2)  # not half of it


@pytest.mark.slow("three runs; exact resume is a quick test, and that parts make a step")
def test_told_to_stop_it_ends_a_step_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    flags = (
        "--train-images",
        "60",
        "--batch-size",
        "20",
        "--accumulate",
        "5",
        "--epochs",
        "4",
        "--checkpoint-every",
        "1",
    )
    whole, stopped = start_small("whole", tmp_path, *flags), start_small("stopped", tmp_path, *flags)
    wait_for_epochs(stopped, tmp_path / "runs" / "stopped", 1)
    stopped.send_signal(signal.SIGTERM)
    for process in (stopped, whole):
        process.communicate(timeout=120)
    assert (stopped.returncode, whole.returncode) == (128 + signal.SIGTERM, 0)
    resumed = start_small("stopped", tmp_path, *flags)
    out, err = resumed.communicate(timeout=120)
    assert (resumed.returncode, err) == (0, "") and "resumed from" in out
    assert same_run(tmp_path / "runs" / "stopped", tmp_path / "runs" / "whole")
