"""simsiam/callbacks/knn.py against scikit-learn on the same network; collapse.py."""

from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.neighbors import KNeighborsClassifier

from simsiam import KNNMonitor, SimSiam
from simsiam.config.options import is_collapsed
from simsiam.data.datamodule import ViewsDataModule
from simsiam.evaluation.features import extract_features


def trained(
    *callbacks: pl.Callback, epochs: int = 2, images: int = 600, batch_size: int = 100
) -> tuple[pl.Trainer, SimSiam, ViewsDataModule]:
    pl.seed_everything(0, verbose=False)
    data = ViewsDataModule("patterns", train_images=images, test_images=images // 3, batch_size=batch_size)
    model = SimSiam("resnet10", width=4, out_dim=32, h_dim=16, warmup_epochs=0)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), logger=False, **quiet)
    trainer.fit(model, datamodule=data)
    return trainer, model, data


def test_the_logged_accuracy_is_scikit_learns_on_clean_images() -> None:
    trainer, model, data = trained(KNNMonitor(k=20, temperature=0.1))
    model.eval()

    def features(images: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            x = (images.float() / 255 - data.mean[:, None, None]) / data.std[:, None, None]
            f = model(x)
        return (f / f.norm(dim=1, keepdim=True)).numpy()

    vote = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1))
    vote.fit(features(data.train.images), data.train.labels.numpy())
    expected = 100 * vote.score(features(data.test.images), data.test.labels.numpy())
    assert trainer.callback_metrics["kNN_accuracy"].item() == pytest.approx(expected, abs=1e-4)


def test_measuring_changes_nothing_in_the_network() -> None:
    model = SimSiam("resnet10", width=4, out_dim=32, h_dim=16).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randint(0, 256, (250, 3, 32, 32), dtype=torch.uint8)
    features = extract_features(model.backbone, images, torch.zeros(3), torch.ones(3))
    assert model.backbone.training and not features.requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(features.norm(dim=1), torch.ones(250))
    whole = extract_features(model.backbone, images.split(100), torch.zeros(3), torch.ones(3), n=250)
    torch.testing.assert_close(features, whole, atol=1e-5, rtol=0)


class Measured(pl.Callback):
    """The epochs after which the monitor before it had a fresh figure."""

    def __init__(self, monitor: KNNMonitor) -> None:
        self.monitor, self.epochs = monitor, list[int]()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor.latest:
            self.epochs.append(trainer.current_epoch + 1)


@pytest.mark.parametrize(("every", "measured"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (10, [5]), (0, [])])
def test_it_measures_each_n_epochs_and_the_last(every: int, measured: list[int]) -> None:
    monitor = KNNMonitor(k=5, every=every)
    after = Measured(monitor)
    trained(monitor, after, epochs=5, images=40, batch_size=20)
    assert after.epochs == measured
    assert (monitor.untrained is None) == (every == 0)


@pytest.mark.parametrize(
    ("z_std", "rank", "collapsed"),
    [(0.33, 40.0, False), (0.33, 1.5, True), (0.33, None, False), (0.05, None, True), (0.97, 1.5, False)],
)
def test_a_collapse_is_low_z_std_and_low_rank_where_that_is_known(
    z_std: float, rank: float | None, collapsed: bool
) -> None:
    assert is_collapsed(z_std, rank) == collapsed
