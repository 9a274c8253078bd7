"""The parts with loaders, modules and callbacks of others, in a plain Trainer."""

import csv
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from simsiam import KNNMonitor, SimSiam
from tests.trainers import BATCHES, fit, make_data, make_model

IMAGES = torch.randn(24, 3, 8, 8)


def make_pairs(arrange: Any = lambda a, b: [a, b]) -> DataLoader[Any]:
    pairs: Any = [arrange(x, x.flip(2)) for x in IMAGES]
    return DataLoader(pairs, batch_size=8)


# ---------------------------------------------------------------- loaders


def test_views_of_several_loaders_are_refused() -> None:
    """Lightning joins their batches: [[x1, x2], [y1, y2]]. The second pair looks like labels."""
    model = make_model()
    loaders: Any = [make_pairs(), make_pairs()]
    with pytest.raises(ValueError, match=r"several lists of views.*ConcatDataset"):
        fit(model=model, data=loaders, max_epochs=1)


def test_an_image_after_the_views_is_no_view() -> None:
    """Some loaders give the image itself next to its views."""
    loader: Any = make_pairs(lambda a, b: ([a, b], a, [a]))
    assert fit(data=loader, max_epochs=1).global_step == 3


class Fail(pl.Callback):
    def on_train_batch_start(self, *_: Any) -> None:
        raise MemoryError


def test_the_datamodule_gives_views_after_an_error_in_a_fit() -> None:
    data = make_data()
    with pytest.raises(MemoryError):
        fit(Fail(), data=data, max_epochs=1)
    x1, x2 = next(iter(data.train_dataloader()))
    assert x1.shape == x2.shape == (8, 3, 8, 8)
    assert fit(data=data, max_epochs=1).global_step == BATCHES


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


class WithTwoOptimizers(SimSiam):
    """Trains backbone and heads by optimizers of their own, as GANs do."""

    def __init__(self) -> None:
        super().__init__("resnet10", width=2, out_dim=16, h_dim=8)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(part.parameters(), 0.01) for part in (self.backbone, self.predictor)
        ]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = super().training_step(batch, batch_idx)
        self.manual_backward(outputs["loss"])
        for optimizer in self.optimizers():  # pyright: ignore[reportGeneralTypeIssues]
            optimizer.step()
            optimizer.zero_grad()


def test_steps_of_a_module_with_two_optimizers_are_logged(tmp_path: Path) -> None:
    """Its `global_step` counts two steps for a batch."""
    logger = CSVLogger(tmp_path)
    model = WithTwoOptimizers()
    fit(model=model, data=make_pairs(), max_epochs=2, logger=logger, log_every_n_steps=2)
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows if row["train_loss_step"]] == ["1", "3", "5"]


class ForeignModule(pl.LightningModule):
    """Has a backbone of another form than that of SimSiam."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.network = make_model().backbone
        self.trained = nn.Parameter(torch.zeros(1))  # not used by the networks
        self.seen = 0

    def forward(self, x: Tensor) -> Any:
        self.seen += len(x)
        return self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.trained.square().sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.trained], 0.1)


def measure(module: ForeignModule, own_loaders: bool) -> dict[str, float]:
    """Return what a monitor measures for a module whose networks do not change."""
    loader = DataLoader(TensorDataset(IMAGES, torch.arange(24) % 4), 8) if own_loaders else None
    monitor = KNNMonitor(k=5, bank=loader, queries=loader)
    fit(monitor, model=module, max_epochs=1, limit_train_batches=1)
    return monitor.epoch_metrics


@pytest.mark.parametrize("own_loaders", [False, True])
def test_the_monitor_measures_backbones_of_any_form(own_loaders: bool) -> None:
    # A backbone of lightly's examples: all layers of a ResNet but the last.
    pooled = nn.Sequential(make_model().backbone, nn.Unflatten(1, (16, 1, 1)))
    with_pooled = ForeignModule(pooled)
    measured = measure(with_pooled, own_loaders)
    assert set(measured) == {"kNN_accuracy", "rankme"}
    assert with_pooled.seen == 0
    # This one has a name and a `forward`.
    assert measure(ForeignModule("resnet10"), own_loaders) == pytest.approx(measured)


class WithTuple(ForeignModule):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


@pytest.mark.parametrize("own_loaders", [False, True])
@pytest.mark.parametrize(
    ("module", "described"),
    [
        (WithTuple("resnet10"), "a tuple of 2"),
        (ForeignModule(nn.Conv2d(3, 4, 3)), "a float32 tensor"),
    ],
)
def test_a_module_without_features_is_refused(
    module: ForeignModule, described: str, own_loaders: bool
) -> None:
    with pytest.raises(ValueError, match=rf"features must be.*this output is {described}"):
        measure(module, own_loaders)


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
