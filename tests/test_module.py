"""simsiam/module.py: Algorithm 1, step by step, and what the switches do."""

from typing import Any

import pytest
import torch
from torch import Tensor

from simsiam import SimSiam
from simsiam.loss import D

SIZES: dict[str, Any] = {"backbone": "resnet10", "width": 4, "out_dim": 32, "h_dim": 8}


def views(n: int = 2, batch: int = 16) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, 3, 32, 32) for _ in range(n)]


def model(**changes: Any) -> SimSiam:
    torch.manual_seed(0)
    module = SimSiam(**{**SIZES, **changes})
    module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]  # no Trainer here to log to
    return module


def test_a_step_is_algorithm_1() -> None:
    a, b = model(), model()
    x1, x2 = views()
    loss = a.training_step([x1, x2], 0)

    f = torch.nn.Sequential(b.backbone, b.projector)
    z1, z2 = f(x1), f(x2)
    p1, p2 = b.predictor(z1), b.predictor(z2)
    expected = D(p1, z2) / 2 + D(p2, z1) / 2
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name


def test_each_view_has_batch_statistics_of_its_own() -> None:
    x1, x2 = views()
    # the first BN takes a view's scale out, up to eps, unless the views share statistics
    torch.testing.assert_close(
        model().training_step([x1, 3 * x2], 0), model().training_step([x1, x2], 0), atol=1e-3, rtol=0
    )


def test_the_gradient_stops_at_z() -> None:
    """With the predictor's weights at zero p does not depend on z: only through a z without stop would f learn."""
    for stop_grad, learns in ((True, False), (False, True)):
        module = model(stop_grad=stop_grad)
        with torch.no_grad():
            module.predictor[3].weight.zero_()
            module.predictor[3].bias.normal_()
        module.training_step(views(), 0).backward()
        gradient = module.backbone.conv1.weight.grad
        assert (gradient is not None and gradient.abs().sum().item() > 0) == learns


def test_without_predictor_p_is_z() -> None:
    module = model(predictor=False)
    x1, x2 = views()
    z = [module.projector(module.backbone(x)) for x in (x1, x2)]
    torch.testing.assert_close(module.training_step([x1, x2], 0), D(z[0], z[1]), atol=1e-5, rtol=0)


def test_four_views_are_trained_together() -> None:
    module = model()
    module.training_step(views(4), 0).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_forward_gives_pooled_backbone_features() -> None:
    module = model().eval()
    x = views()[0]
    assert torch.equal(module(x), module.backbone(x)) and module(x).shape == (16, 32)


def test_weight_decay_is_on_every_parameter_and_the_rate_on_every_group() -> None:
    class Trainer:
        estimated_stepping_batches, max_epochs = 100, 10

    module = model(constant_predictor_lr=True, weight_decay=0.123, learning_rate=0.5, warmup_epochs=2)
    module._trainer = Trainer()  # type: ignore[assignment]
    module._fabric = None
    plan = module.configure_optimizers()
    optimizer, schedule = plan["optimizer"], plan["lr_scheduler"]["scheduler"]
    counted = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert counted == sum(p.numel() for p in module.parameters())
    assert all(group["weight_decay"] == 0.123 for group in optimizer.param_groups)
    for _ in range(60):
        optimizer.step()
        schedule.step()
    encoder, predictor = (group["lr"] for group in optimizer.param_groups)
    assert encoder == pytest.approx(0.25) and predictor == 0.5  # half of the cosine: steps 20 to 100


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="resnet18"):
        SimSiam(backbone="resnet19")
