"""simsiam/module.py: Algorithm 1, step by step, and what the switches do."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from simsiam import SimSiam
from simsiam.data.datamodule import ViewsDataModule
from simsiam.loss import D, z_std
from simsiam.optimizer import _count_warmup_steps

SIZES: dict[str, Any] = {"backbone": "resnet10", "width": 4, "out_dim": 32, "h_dim": 8}


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


def test_without_symmetry_one_view_is_predicted() -> None:
    a, b = model(symmetric=False), model()
    x1, x2 = views()
    z1, z2 = (b.projector(b.backbone(x)) for x in (x1, x2))
    assert torch.equal(a.training_step([x1, x2], 0)["loss"], D(b.predictor(z1), z2))


def test_each_view_has_batch_statistics_of_its_own() -> None:
    x1, x2 = views()
    # the first BN takes a view's scale out, up to eps, unless the views share statistics
    torch.testing.assert_close(
        model().training_step([x1, 3 * x2], 0)["loss"],
        model().training_step([x1, x2], 0)["loss"],
        atol=1e-3,
        rtol=0,
    )


def test_the_gradient_stops_at_z() -> None:
    """With the predictor's weights at zero p does not depend on z: only through a z without stop would f learn."""
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


def test_a_fixed_predictor_stays_as_it_began() -> None:
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, **quiet)
    module, began = model(fixed_predictor=True, warmup_epochs=0), model(fixed_predictor=True)
    trainer.fit(
        module,
        datamodule=ViewsDataModule("patterns", train_images=40, test_images=10, batch_size=8),
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(module.predictor.parameters(), began.predictor.parameters(), strict=True)
    )
    assert not torch.equal(module.projector[0].weight, began.projector[0].weight)


def test_four_views_are_trained_together() -> None:
    module = model()
    module.training_step(views(4), 0)["loss"].backward()
    assert all(p.grad is not None for p in module.parameters())


def test_forward_gives_pooled_backbone_features() -> None:
    module = model().eval()
    x = views()[0]
    assert torch.equal(module(x), module.backbone(x)) and module(x).shape == (16, 32)


class Rates(pl.Callback):
    """The rates of encoder and predictor after each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        encoder, predictor = trainer.optimizers[0].param_groups
        self.seen.append((encoder["lr"], predictor["lr"]))


def test_weight_decay_is_on_every_parameter_and_the_rate_on_every_group() -> None:
    rates, quiet = (
        Rates(),
        {
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
        },
    )
    trainer = pl.Trainer(accelerator="cpu", max_epochs=5, callbacks=[rates], logger=False, **quiet)
    module = model(
        constant_predictor_lr=True,
        weight_decay=0.123,
        momentum=0.7,
        learning_rate=0.02,
        warmup_epochs=1,
    )
    trainer.fit(
        module,
        datamodule=ViewsDataModule("patterns", train_images=32, test_images=10, batch_size=8),
    )

    groups = trainer.optimizers[0].param_groups
    counted = sum(p.numel() for group in groups for p in group["params"])
    assert counted == sum(p.numel() for p in module.parameters())
    assert [(group["weight_decay"], group["momentum"]) for group in groups] == [(0.123, 0.7)] * 2
    assert len(rates.seen) == 20
    assert rates.seen[11] == (
        pytest.approx(0.01),
        0.02,
    )  # half-way down the cosine, which takes steps 4 to 20
    assert rates.seen[-1] == (pytest.approx(0, abs=1e-9), 0.02)


@pytest.mark.parametrize("constant", [False, True])
def test_the_predictors_rate_is_scaled_throughout(constant: bool) -> None:
    rates = Rates()
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = pl.Trainer(accelerator="cpu", max_epochs=2, callbacks=[rates], logger=False, **quiet)
    module = model(constant_predictor_lr=constant, learning_rate=0.02, predictor_lr_scale=0.5)
    data = ViewsDataModule("patterns", train_images=80, test_images=10, batch_size=8)
    trainer.fit(module, datamodule=data)
    expected = [0.01 if constant else 0.5 * encoder for encoder, _ in rates.seen]
    assert [predictor for _, predictor in rates.seen] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("warmup_epochs", "epochs", "steps"),
    [(None, 800, 970), (None, 50, 485), (2, 50, 194), (0, 50, 0), (60, 50, 4849)],
)
def test_the_warm_up_takes_ten_epochs_or_a_tenth(
    warmup_epochs: int | None, epochs: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 97 steps an epoch; a longer one than the run leaves a step to the cosine."""
    monkeypatch.setattr("simsiam.optimizer.count_steps", lambda trainer, epochs: 97 * epochs)
    assert _count_warmup_steps(pl.Trainer(logger=False), warmup_epochs, 97 * epochs) == steps


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="resnet18"):
        SimSiam(backbone="resnet19")
