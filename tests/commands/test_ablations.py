"""What the paper says of each switch (4.1, 4.2), on a small run: SimSiam learns; without either part, not."""

from dataclasses import dataclass
from typing import Any

import pytest
import pytorch_lightning as pl

from simsiam import KNNMonitor, SimSiam
from simsiam.data.datamodule import ViewsDataModule


@dataclass
class Outcome:
    untrained: float
    knn: float
    loss: float
    z_std: float


def outcome(epochs: int, **switches: Any) -> Outcome:
    """Train for so many epochs of 20 steps, on views of 16 pixels."""
    pl.seed_everything(0, verbose=False)
    data = ViewsDataModule(
        "patterns",
        train_images=1000,
        test_images=500,
        batch_size=50,
        image_schedule=(f"16:{epochs}",),
    )
    model = SimSiam(
        "resnet10", width=8, out_dim=32, h_dim=16, learning_rate=0.2, warmup_epochs=0, **switches
    )
    monitor = KNNMonitor(k=20, every=epochs)
    quiet: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    last = LastStep()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[monitor, last], logger=False, **quiet
    )
    trainer.fit(model, datamodule=data)
    assert monitor.untrained is not None and monitor.latest
    return Outcome(monitor.untrained, monitor.latest["kNN_accuracy"], last.loss, last.z_std)


class LastStep(pl.Callback):
    """What the step returned, of the latest step."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.loss, self.z_std = outputs["loss"].item(), outputs["z_std"].item()


# Measured on two kinds of processors, with learning rates that differ in the last digits: from such differences a run
# on so few images soon is another run.


@pytest.fixture(scope="module")
def healthy() -> Outcome:
    return outcome(epochs=4)


def test_simsiam_learns_and_stays_healthy(healthy: Outcome) -> None:
    assert healthy.knn > healthy.untrained + 4  # 40.6 to 41.2, from 32.0
    assert healthy.z_std > 0.85 and healthy.loss > -0.45  # .94, -.36


@pytest.mark.parametrize(
    "switch",
    [
        "stop_grad",
        pytest.param("predictor", marks=pytest.mark.slow("a training more, as the one beside it")),
    ],
)
def test_without_either_part_it_begins_to_collapse(switch: str, healthy: Outcome) -> None:
    """The loss falls faster, and the projections spread less."""
    ablated = outcome(epochs=4, **{switch: False})
    assert (
        ablated.z_std < healthy.z_std - 0.2
    )  # .32 to .48 without stop-gradient, .62 to .65 without h
    assert ablated.loss < healthy.loss - 0.1  # -.93 to -.88, -.56 to -.54


@pytest.mark.slow("three trainings of 16 epochs; that the collapse begins is a quick test")
def test_without_either_part_it_learns_less() -> None:
    healthy = outcome(epochs=16)
    ablated = [outcome(epochs=16, stop_grad=False), outcome(epochs=16, predictor=False)]
    assert healthy.knn > healthy.untrained + 20  # 67.4, from 32.0
    for one in ablated:
        assert one.knn < healthy.knn - 15 and one.z_std < 0.5  # 30.2 and 38.6; .29 and .30
