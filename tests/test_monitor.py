"""simsiam/monitor.py: the kNN monitor against scikit-learn on the same network; the collapse monitor."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.neighbors import KNeighborsClassifier

from simsiam import CollapseMonitor, KNNMonitor, SimSiam
from simsiam.data import ViewsDataModule
from simsiam.monitor import extract_features
from utils.errors import RunFailure


def trained(callback: pl.Callback, **changes: Any) -> tuple[pl.Trainer, SimSiam, ViewsDataModule]:
    pl.seed_everything(0, verbose=False)
    data = ViewsDataModule("patterns", train_images=600, test_images=200, batch_size=100)
    model = SimSiam("resnet10", width=4, out_dim=32, h_dim=16, warmup_epochs=0, **changes)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return trainer, model, data


def test_the_logged_accuracy_is_scikit_learns_on_clean_images() -> None:
    trainer, model, data = trained(KNNMonitor(k=20, temperature=0.1))
    assert data.train is not None and data.test is not None
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
    features = extract_features(model.backbone, images, torch.zeros(3), torch.ones(3), chunk=100)
    assert model.backbone.training and not features.requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(features.norm(dim=1), torch.ones(250))
    whole = extract_features(model.backbone, images, torch.zeros(3), torch.ones(3), chunk=250)
    torch.testing.assert_close(features, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("every", "measured"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (10, [5]), (0, [])])
def test_it_measures_each_n_epochs_and_the_last(
    every: int, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = KNNMonitor(every=every)
    monkeypatch.setattr(monitor, "accuracy", lambda trainer, module: 50.0)
    module = SimpleNamespace(log=lambda name, value: None)
    seen = []
    for epoch in range(5):
        monitor.on_train_epoch_end(SimpleNamespace(current_epoch=epoch, max_epochs=5), module)  # type: ignore[arg-type]
        seen += [epoch + 1] if monitor.latest is not None else []
    assert seen == measured


def collapsed_trainer(z_std: float) -> Any:
    return SimpleNamespace(callback_metrics={"z_std": torch.tensor(z_std)}, current_epoch=3)


def test_a_collapse_is_warned_of_once() -> None:
    said: list[str] = []
    monitor = CollapseMonitor(report=said.append)
    for z_std in (0.9, 0.5, 0.01, 0.005):
        monitor.on_train_epoch_end(collapsed_trainer(z_std), None)  # type: ignore[arg-type]
    assert len(said) == 1 and "warning" in said[0] and "z_std is 0.010" in said[0]


def test_a_collapse_ends_the_run_where_asked() -> None:
    with pytest.raises(RunFailure) as failure:
        CollapseMonitor(stop=True).on_train_epoch_end(collapsed_trainer(0.01), None)  # type: ignore[arg-type]
    assert failure.value.status == 3 and "collapsed in epoch 4" in str(failure.value)
