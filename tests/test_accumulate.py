"""--accumulate: the parts of a batch, one after the other, make one step."""

import itertools
import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

import main
from simsiam import SimSiam
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.sampler import EpochSampler
from tests.helpers import SMALL, Program, read_rows, same_run, start_small
from tests.processes import Started

QUIET: dict[str, Any] = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def untrained() -> SimSiam:
    torch.manual_seed(0)
    return SimSiam("resnet10", width=4, out_dim=32, h_dim=8, warmup_epochs=0)


def test_a_step_follows_the_mean_gradient_of_its_parts() -> None:
    """The images and their order are those of a whole batch; BN normalises each part by itself."""
    trained, expected = untrained(), untrained()
    data = ViewsDataModule("patterns", train_images=40, test_images=10, batch_size=40, accumulate=4)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=4,
        logger=False,
        log_every_n_steps=1,
        **QUIET,
    )
    trainer.fit(trained, datamodule=data)
    assert trainer.global_step == 1

    (indices,) = EpochSampler(40, 40, seed=0, epoch=lambda: 0, device=torch.device("cpu"))
    parts = [expected.training_step(data.make_views(part, 0), 0) for part in indices.split(10)]
    torch.stack([part["loss"] for part in parts]).mean().backward()
    for name, logged in (("loss", "train_loss"), ("z_std", "z_std")):
        mean = sum(part[name].item() for part in parts) / 4
        assert float(trainer.callback_metrics[logged]) == pytest.approx(mean, rel=1e-5)
    torch.optim.SGD(expected.parameters(), 0.06, 0.9, weight_decay=5e-4).step()
    for (name, ours), theirs in zip(
        trained.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0, msg=name)


def test_metrics_count_steps_and_images_not_parts(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With this clock, the steps of an epoch take one second.
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr("simsiam.callbacks.metrics.time", clock)
    small = (
        "--dataset patterns --train-images 80 --test-images 20 --knn-every 0 --backbone resnet10 "
        "--width 4 --out-dim 32 --h-dim 8 --accelerator cpu --batch-size 20 --epochs 2"
    )
    for name, flags in (("whole", []), ("parts", ["--accumulate", "2"])):
        status, out, _ = program(*small.split(), "--exp-name", name, *flags)
        assert status == 0
        assert "2 epochs of 4 steps" in out
        assert ("20 images in 2 parts" in out) == (name == "parts")
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["images_per_second"] for line in lines] == [80, 80]
    whole, parts = (
        [(row["step"], row["learning_rate"]) for row in read_rows(tmp_path / "runs" / name)]
        for name in ("whole", "parts")
    )
    assert whole == parts and [step for step, _ in whole] == [4, 8]


def stopped_in_a_part(args: list[str]) -> int:
    """Run main.py and stop it in epoch 2, in the second of the five parts of a step."""
    step = SimSiam.training_step

    def step_with_signal(self: SimSiam, batch: Any, batch_idx: int) -> Any:
        if self._trainer is not None and (self.current_epoch, batch_idx) == (1, 6):
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, batch_idx)

    SimSiam.training_step = step_with_signal
    return main.main(args)


@pytest.mark.slow("three runs; exact resume is a quick test, and that parts make a step")
def test_a_stopped_run_ends_its_step_and_resumes_to_the_bit(tmp_path: Path) -> None:
    # Three steps in an epoch.
    few = ("--train-images", "60", "--batch-size", "20", "--accumulate", "5")
    flags = (*few, "--epochs", "4", "--checkpoint-every", "1")
    start_small("whole", tmp_path, *flags).communicate()
    where = ["--save-dir", str(tmp_path / "runs"), "--exp-name", "stopped"]
    stopped = Started(stopped_in_a_part, [*SMALL, *where, *flags])
    _, err = stopped.communicate()
    assert stopped.returncode == 128 + signal.SIGTERM and "in epoch 2, step 5" in err
    resumed = start_small("stopped", tmp_path, *flags)
    out, err = resumed.communicate()
    assert (resumed.returncode, err) == (0, "") and "resumed from" in out
    assert same_run(tmp_path / "runs" / "stopped", tmp_path / "runs" / "whole")
