"""Means of metrics over an epoch, also of an epoch that is resumed in its middle."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simsiam import SimSiam
from tests.trainers import BATCHES, SaveAt, fit, make_data, make_trainer


class WithGradientNorm(SimSiam):
    """Records a further metric, which is not known until after the backward pass."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.norms: list[Tensor] = []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [weight.grad for weight in self.parameters() if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.norms.append(norm)
        self.add_metrics({"gradient_norm": norm}, batch_size=8)


def make_model() -> WithGradientNorm:
    torch.manual_seed(0)
    return WithGradientNorm(backbone="resnet10", width=2, out_dim=16, h_dim=8)


def mean(norms: list[Tensor]) -> float:
    return torch.stack(norms).double().mean().item()


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_metric_of_a_subclass_has_its_mean_in_the_logs(accumulate: int) -> None:
    model = make_model()
    trainer = fit(model=model, max_epochs=2, accumulate_grad_batches=accumulate)
    last_epoch = model.norms[BATCHES // accumulate :]
    assert len(last_epoch) == BATCHES // accumulate
    assert float(trainer.callback_metrics["gradient_norm"]) == pytest.approx(mean(last_epoch))
    assert trainer.callback_metrics["gradient_norm_step"] == model.norms[-1]


def test_a_resumed_epoch_has_the_mean_of_a_metric_over_all_its_batches(tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    alone = fit(SaveAt(3, file), model=make_model(), max_epochs=1)
    resumed = make_trainer(max_epochs=1)
    resumed.fit(make_model(), datamodule=make_data(), ckpt_path=file)
    for name in ("train_loss", "z_std", "gradient_norm"):
        assert torch.equal(resumed.callback_metrics[name], alone.callback_metrics[name])


def test_a_metric_that_a_checkpoint_lacks_starts_from_no_data(tmp_path: Path) -> None:
    """Earlier versions saved one tensor with the sums of train_loss and z_std."""
    file = tmp_path / "a.ckpt"
    alone = fit(SaveAt(3, file), model=make_model(), max_epochs=1)
    checkpoint = torch.load(file, weights_only=True)
    sums = checkpoint["epoch_so_far"]["sums"]
    both_sums = torch.stack([sums["train_loss"], sums["z_std"]])
    checkpoint["epoch_so_far"] = {"sums": both_sums, "batches": 3}
    torch.save(checkpoint, file)

    model = make_model()
    resumed = make_trainer(max_epochs=1)
    resumed.fit(model, datamodule=make_data(), ckpt_path=file)
    for name in ("train_loss", "z_std"):
        assert torch.equal(resumed.callback_metrics[name], alone.callback_metrics[name])
    assert len(model.norms) == BATCHES - 3
    assert float(resumed.callback_metrics["gradient_norm"]) == pytest.approx(mean(model.norms))
