"""The parts with loaders, modules and callbacks of others, in a plain Trainer."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from simsiam import SimSiam
from tests.trainers import fit, make_model

IMAGES = torch.randn(24, 3, 8, 8)


def make_pairs(arrange: Any = lambda a, b: [a, b]) -> DataLoader[Any]:
    return DataLoader([arrange(x, x.flip(2)) for x in IMAGES], batch_size=8)  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------- loaders


def test_views_of_several_loaders_are_refused() -> None:
    """Lightning joins their batches: [[x1, x2], [y1, y2]]. The second pair looks like labels."""
    model = make_model()
    with pytest.raises(ValueError, match=r"several lists of views.*ConcatDataset"):
        fit(model=model, data=[make_pairs(), make_pairs()], max_epochs=1)  # pyright: ignore[reportArgumentType]


def test_an_image_after_the_views_is_no_view() -> None:
    """Some loaders give the image itself next to its views."""
    loader: Any = make_pairs(lambda a, b: ([a, b], a, [a]))
    assert fit(data=loader, max_epochs=1).global_step == 3


# ---------------------------------------------------------------- modules


class WithPart(pl.LightningModule):
    """Has a SimSiam as a part."""

    def __init__(self) -> None:
        super().__init__()
        self.part = make_model()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self.part.training_step(batch, batch_idx)
        self.log_dict(outputs)
        return outputs["loss"]

    def configure_optimizers(self) -> Any:
        return self.part.configure_optimizers()


def test_a_simsiam_can_be_a_part_of_another_module() -> None:
    """Lightning lets only the outer module log. Here every step is logged."""
    trainer = fit(model=WithPart(), data=make_pairs(), max_epochs=2)
    assert trainer.global_step == 6
    assert {"loss", "z_std"} <= set(trainer.callback_metrics)


# ---------------------------------------------------------------- callbacks


class FreezeBackbone(pl.Callback):
    """Lets the backbone learn from the second epoch on."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.backbone.requires_grad_(trainer.current_epoch > 0)


class RemoveGradients(pl.Callback):
    """Lets the last layer of the projector learn from the second epoch on, as DINO does."""

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.current_epoch == 0:
            for parameter in pl_module.projector[-2].parameters():
                parameter.grad = None


@pytest.mark.parametrize("callback", [FreezeBackbone, RemoveGradients])
def test_parameters_may_start_to_learn_in_a_later_epoch(callback: type[pl.Callback]) -> None:
    """torch's fused SGD fails if some parameters have no momentum yet."""
    model: SimSiam = make_model(weight_decay=0.0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    fit(callback(), model=model, max_epochs=2)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
