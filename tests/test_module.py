"""simsiam/module.py: Algorithm 1 step by step, its switches and its optimizer."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from simsiam import SimSiam
from simsiam.config.optimizer_options import OptimizerOptions
from simsiam.data.datamodule import ViewsDataModule
from simsiam.loss import D, z_std
from simsiam.optimizer import DEFAULT_WARMUP_EPOCHS, _count_warmup_steps

SIZES: dict[str, Any] = {"backbone": "resnet10", "width": 4, "out_dim": 32, "h_dim": 8}
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def views(n: int = 2, batch: int = 16) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, 3, 32, 32) for _ in range(n)]


def model(**changes: Any) -> SimSiam:
    torch.manual_seed(0)
    return SimSiam(**{**SIZES, **changes})


def test_a_step_is_algorithm_1() -> None:
    a, b = model(), model()
    x1, x2 = views()
    step = a.training_step([x1, x2], 0)
    loss = step["loss"]

    f = torch.nn.Sequential(b.backbone, b.projector)
    z1, z2 = f(x1), f(x2)
    p1, p2 = b.predictor(z1), b.predictor(z2)
    expected = D(p1, z2) / 2 + D(p2, z1) / 2
    assert torch.equal(loss, expected) and torch.equal(step["z_std"], z_std(z1))
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name


def test_without_symmetry_the_loss_is_D_of_p1_and_z2() -> None:
    a, b = model(symmetric=False), model()
    x1, x2 = views()
    z1, z2 = (b.projector(b.backbone(x)) for x in (x1, x2))
    assert torch.equal(a.training_step([x1, x2], 0)["loss"], D(b.predictor(z1), z2))


def test_each_view_has_batch_statistics_of_its_own() -> None:
    x1, x2 = views()
    # The first BN removes the scale of a view, up to eps, unless the views share statistics.
    scaled = model().training_step([x1, 3 * x2], 0)["loss"]
    unscaled = model().training_step([x1, x2], 0)["loss"]
    torch.testing.assert_close(scaled, unscaled, atol=1e-3, rtol=0)


def test_the_gradient_stops_at_z() -> None:
    """If the last weights of h are zero, p is constant, and f can learn through z alone."""
    for stop_grad, learns in ((True, False), (False, True)):
        module = model(stop_grad=stop_grad)
        with torch.no_grad():
            module.predictor[3].weight.zero_()
            module.predictor[3].bias.normal_()
        module.training_step(views(), 0)["loss"].backward()
        gradient = module.backbone.conv1.weight.grad
        assert (gradient is not None and gradient.abs().sum().item() > 0) == learns


def test_without_predictor_p_is_z() -> None:
    module = model(predictor=False)
    x1, x2 = views()
    z = [module.projector(module.backbone(x)) for x in (x1, x2)]
    torch.testing.assert_close(
        module.training_step([x1, x2], 0)["loss"], D(z[0], z[1]), atol=1e-5, rtol=0
    )


def test_a_fixed_predictor_keeps_its_initial_weights() -> None:
    trainer = pl.Trainer(max_epochs=1, **QUIET)
    trained, untrained = model(fixed_predictor=True, warmup_epochs=0), model(fixed_predictor=True)
    data = ViewsDataModule("patterns", train_images=40, test_images=10, batch_size=8)
    trainer.fit(trained, datamodule=data)
    initial = untrained.predictor.parameters()
    for a, b in zip(trained.predictor.parameters(), initial, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(trained.projector[0].weight, untrained.projector[0].weight)


def test_a_step_of_four_views_gives_all_parameters_gradients() -> None:
    module = model()
    module.training_step(views(4), 0)["loss"].backward()
    assert all(p.grad is not None for p in module.parameters())


def test_forward_gives_pooled_backbone_features() -> None:
    module = model().eval()
    x = views()[0]
    assert torch.equal(module(x), module.backbone(x)) and module(x).shape == (16, 32)


class Rates(pl.Callback):
    """Record the learning rates (encoder, predictor) after each step."""

    def __init__(self) -> None:
        self.rates: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        encoder, predictor = trainer.optimizers[0].param_groups
        self.rates.append((encoder["lr"], predictor["lr"]))


def test_every_parameter_has_weight_decay_and_a_constant_rate_stays_at_its_peak() -> None:
    record = Rates()
    trainer = pl.Trainer(max_epochs=5, callbacks=[record], **QUIET)
    module = model(
        constant_predictor_lr=True,
        weight_decay=0.123,
        momentum=0.7,
        learning_rate=0.02,
        warmup_epochs=1,
    )
    data = ViewsDataModule("patterns", train_images=32, test_images=10, batch_size=8)
    trainer.fit(module, datamodule=data)

    groups = trainer.optimizers[0].param_groups
    num_optimized = sum(p.numel() for group in groups for p in group["params"])
    assert num_optimized == sum(p.numel() for p in module.parameters())
    assert [group["weight_decay"] for group in groups] == [0.123, 0.123]
    assert [group["momentum"] for group in groups] == [0.7, 0.7]
    assert len(record.rates) == 20
    # The cosine takes steps 4 to 20. Step 12 is in the middle, where its rate is half the peak.
    assert record.rates[11] == (pytest.approx(0.01), 0.02)
    assert record.rates[-1] == (pytest.approx(0, abs=1e-9), 0.02)


@pytest.mark.parametrize("constant", [False, True])
def test_the_predictors_rate_is_scaled_throughout(constant: bool) -> None:
    record = Rates()
    trainer = pl.Trainer(max_epochs=2, callbacks=[record], **QUIET)
    module = model(constant_predictor_lr=constant, learning_rate=0.02, predictor_lr_scale=0.5)
    data = ViewsDataModule("patterns", train_images=80, test_images=10, batch_size=8)
    trainer.fit(module, datamodule=data)
    for encoder_rate, predictor_rate in record.rates:
        expected = 0.01 if constant else 0.5 * encoder_rate
        assert predictor_rate == pytest.approx(expected)


@pytest.mark.parametrize(
    ("warmup_epochs", "epochs", "steps"),
    [(None, 800, 970), (None, 50, 485), (2, 50, 194), (0, 50, 0), (60, 50, 4849)],
)
def test_the_warm_up_takes_ten_epochs_or_a_tenth(
    warmup_epochs: int | None, epochs: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch has 97 steps. A warm-up longer than the run leaves one step for the cosine."""
    monkeypatch.setattr("simsiam.optimizer.count_steps", lambda trainer, epochs: 97 * epochs)
    assert _count_warmup_steps(pl.Trainer(logger=False), warmup_epochs, 97 * epochs) == steps


@pytest.mark.parametrize("epochs", [50, 99, 100, 800])
def test_the_options_know_the_default_warm_up(epochs: int) -> None:
    """The rule is written twice: for the options in epochs, and for a Trainer in steps."""
    expected = min(DEFAULT_WARMUP_EPOCHS, epochs / 10)
    assert OptimizerOptions(epochs=epochs).warmup == expected


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="resnet18"):
        SimSiam(backbone="resnet19")


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"mean": ["a", "b", "c"], "std": [1, 1, 1]}, "mean must have a number for each of 3"),
        ({"mean": [0, 0, 0], "std": [1, float("nan"), 1]}, "std must have a number for each of 3"),
        ({"mean": [0, 0, 0], "std": [1, 0, 1]}, "std must be above 0"),
        ({"mean": [0.5, 0.5, 0.5]}, "pass both mean and std or neither"),
        ({"std": [0.5, 0.5, 0.5]}, "pass both mean and std or neither"),
    ],
)
def test_statistics_that_cannot_normalise_images_are_refused(
    statistics: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SimSiam(**SIZES, **statistics)
