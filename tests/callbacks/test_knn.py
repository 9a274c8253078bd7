"""simsiam/callbacks/knn.py against features of the same network."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.nn.functional import normalize

from simsiam import KNNMonitor, SimSiam
from simsiam.data.datamodule import ViewsDataModule
from simsiam.evaluation.features import extract_features
from simsiam.evaluation.metrics import rankme
from tests.trainers import fit, make_model
from utils.errors import UserError
from utils.knn import knn_predict


def trained(
    *callbacks: pl.Callback, epochs: int = 2, images: int = 600, batch_size: int = 100
) -> tuple[pl.Trainer, SimSiam, ViewsDataModule]:
    pl.seed_everything(0, verbose=False)
    data = ViewsDataModule(
        "patterns", train_images=images, test_images=images // 3, batch_size=batch_size
    )
    model = SimSiam("resnet10", width=4, out_dim=32, h_dim=16, warmup_epochs=0)
    quiet: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), logger=False, **quiet
    )
    trainer.fit(model, datamodule=data)
    return trainer, model, data


def test_knn_and_rankme_are_those_of_clean_images() -> None:
    trainer, model, data = trained(KNNMonitor(k=20, temperature=0.1), images=200, batch_size=50)
    model.eval()

    def features(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(
                (images.float() / 255 - data.mean[:, None, None]) / data.std[:, None, None]
            )

    bank, queries = features(data.train.images), features(data.test.images)
    predicted = knn_predict(
        normalize(queries), normalize(bank), data.train.labels, 10, k=20, temperature=0.1
    )
    right = (predicted == data.test.labels).float().mean().item()
    assert float(trainer.callback_metrics["kNN_accuracy"]) == pytest.approx(100 * right, abs=1e-4)
    assert float(trainer.callback_metrics["rankme"]) == pytest.approx(rankme(bank), rel=1e-4)


def test_measuring_changes_nothing_in_the_network() -> None:
    model = SimSiam("resnet10", width=4, out_dim=32, h_dim=16).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randint(0, 256, (250, 3, 32, 32), dtype=torch.uint8)
    features = extract_features(model.backbone, images, torch.zeros(3), torch.ones(3))
    assert model.backbone.training and not features.requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(features.norm(dim=1), torch.ones(250))
    whole = extract_features(
        model.backbone, images.split(100), torch.zeros(3), torch.ones(3), n=250
    )
    torch.testing.assert_close(features, whole, atol=1e-5, rtol=0)


class Measured(pl.Callback):
    """The epochs after which the monitor before it had a fresh figure."""

    def __init__(self, monitor: KNNMonitor) -> None:
        self.monitor, self.epochs = monitor, list[int]()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor.epoch_metrics:
            self.epochs.append(trainer.current_epoch + 1)


@pytest.mark.parametrize(
    ("every", "measured"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (10, [5]), (0, [])]
)
def test_knn_is_measured_every_n_epochs_and_after_the_last(every: int, measured: list[int]) -> None:
    monitor = KNNMonitor(k=5, every=every)
    after = Measured(monitor)
    trained(monitor, after, epochs=5, images=40, batch_size=20)
    assert after.epochs == measured
    assert (monitor.initial is None) == (every == 0)


class Folding(KNNMonitor):
    """Folds the network on a CPU too, and keeps the latest result."""

    def _extract(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        self.folded = self._network.fold(pl_module.backbone)  # pyright: ignore[reportArgumentType]
        return super()._extract(trainer, pl_module)


def test_a_monitor_folds_the_network_of_a_second_fit() -> None:
    """The second network has another width, the third one another precision."""
    monitor = Folding(k=5)
    images = torch.randn(2, 3, 8, 8)
    for width, precision in ((2, "bf16-true"), (4, "bf16-true"), (4, "32-true")):
        model = make_model(width=width)
        fit(monitor, model=model, max_epochs=1, precision=precision)
        weight = model.backbone.conv1.weight  # pyright: ignore[reportAttributeAccessIssue]
        assert monitor.folded.conv1.weight.dtype == weight.dtype
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(monitor.folded(images), model(images))


def test_a_second_model_does_not_show_the_accuracy_of_the_first() -> None:
    monitor = KNNMonitor(k=5, every=2, before_training=False)
    trainer = fit(monitor, max_epochs=2)
    assert "kNN_accuracy" in trainer.callback_metrics
    trainer = fit(monitor, max_epochs=3, limit_train_batches=0)
    assert "kNN_accuracy" not in trainer.callback_metrics
    seen: list[bool] = []

    class Recorder(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            seen.append("kNN_accuracy" in trainer.callback_metrics)

    fit(monitor, Recorder(), max_epochs=3)
    assert seen == [False, False, True]


@pytest.mark.parametrize(
    "numbers", [{"k": 0}, {"k": 2.5}, {"every": -1}, {"every": True}, {"temperature": 0}]
)
def test_a_number_out_of_range_is_named(numbers: dict[str, Any]) -> None:
    """A temperature of 0 gave accuracies that meant nothing."""
    (name,) = numbers
    with pytest.raises(UserError, match=f"^KNNMonitor: {name} must be"):
        KNNMonitor(**numbers)


def test_rankme_is_the_effective_rank_of_the_singular_values() -> None:
    features = torch.randn(300, 16) @ torch.diag(torch.logspace(0, -2, 16))
    p = torch.linalg.svdvals(features.double())
    p = p / p.sum()
    assert rankme(features) == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-4)
    assert rankme(torch.randn(300, 1) @ torch.randn(1, 16)) == pytest.approx(1, abs=1e-3)
