"""--heavy-views: DSSL's one-way loss, in the module, the datamodule and a run."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.batch_norm import expect_views
from simsiam import ViewsDataModule, load_backbone
from simsiam.commands import estimate
from simsiam.config.commands import Pretrain, find_differences
from simsiam.config.options import MethodOptions
from simsiam.evaluation.gallery import draw_views
from simsiam.loss import D, heavy_loss, siamese_loss
from tests.at_steps import start_small_with_events
from tests.helpers import same_run, start_small
from tests.trainers import fit, make_data, make_model
from utils.settings import flatten

HEAVY_FLAGS = ("heavy_views", "heavy_loss", "heavy_weight_in", "heavy_weight_out")


def leaves(n: int) -> list[Tensor]:
    return [torch.randn(8, 4, requires_grad=True) for _ in range(n)]


def views(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 16, 16, generator=generator) for _ in range(n)]


def get_gradients(*tensors: Tensor) -> list[bool]:
    return [x.grad is not None and bool(x.grad.abs().sum() > 0) for x in tensors]


# ---------------------------------------------------------------- loss


def test_two_heavy_views_give_dssls_loss() -> None:
    p1, p2, z1, z2, p11, p21, z11, z21 = leaves(8)
    incoming = D(p11, z1) / 2 + D(p21, z2) / 2
    outgoing = D(p1, z11) / 2 + D(p2, z21) / 2
    loss = heavy_loss([p1, p2], [z1, z2], [p11, p21], [z11, z21], 0.9, 0.1)
    torch.testing.assert_close(loss, 0.9 * incoming + 0.1 * outgoing)


@pytest.mark.parametrize("stop_grad", [True, False])
def test_no_gradient_reaches_the_z_of_a_heavy_view(stop_grad: bool) -> None:
    p, z, heavy_p, heavy_z = leaves(2), leaves(2), leaves(2), leaves(2)
    heavy_loss(p, z, heavy_p, heavy_z, 0.9, 0.1, stop_grad).backward()
    assert get_gradients(*heavy_z) == [False, False]
    assert get_gradients(*z) == [not stop_grad] * 2
    assert get_gradients(*p, *heavy_p) == [True] * 4


def test_a_heavy_view_is_compared_with_its_own_view_alone() -> None:
    p, z, heavy_p, heavy_z = leaves(4), leaves(4), leaves(1), leaves(1)
    heavy_loss(p, z, heavy_p, heavy_z, 0.9, 0.1, stop_grad=False).backward()
    assert get_gradients(*p) == get_gradients(*z) == [True, False, False, False]


# ---------------------------------------------------------------- module


@pytest.mark.parametrize(("standard", "heavy"), [(2, 2), (2, 1), (4, 2)])
def test_a_step_adds_the_heavy_terms(standard: int, heavy: int) -> None:
    ours = make_model(heavy_views=heavy, heavy_weight_in=0.7, heavy_weight_out=0.2)
    plain = make_model()
    x = views(standard + heavy)
    z = [plain.f(view) for view in x]
    p = [plain.predictor(z_i) for z_i in z]
    n = standard
    expected = siamese_loss(p[:n], z[:n]) + heavy_loss(p[:n], z[:n], p[n:], z[n:], 0.7, 0.2)
    loss = ours.training_step(x, 0)["loss"]
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_symmetric_heavy_views_are_ordinary_views() -> None:
    symmetric = make_model(heavy_views=2, heavy_loss="symmetric")
    x = views(4)
    assert torch.equal(
        symmetric.training_step(x, 0)["loss"], make_model().training_step(x, 0)["loss"]
    )


def test_all_views_in_one_pass_and_one_graph_give_the_same_loss() -> None:
    """BN normalises a heavy view by itself, as any view."""
    x = views(6)
    expected = make_model(heavy_views=2).training_step(x, 0)["loss"]
    module = make_model(heavy_views=2)
    module.one_pass = True
    torch.testing.assert_close(module.training_step(x, 0)["loss"], expected)

    torch.compiler.reset()
    module = make_model(heavy_views=2)
    compiled = torch.compile(
        module.loss_and_metrics, fullgraph=True, dynamic=False, backend="aot_eager"
    )
    with expect_views(module, 6, compiled=True):
        torch.testing.assert_close(compiled(x, True)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("count", "heavy"), [(3, 2), (4, 3), (2, 1)])
def test_too_few_views_are_refused(count: int, heavy: int) -> None:
    with pytest.raises(ValueError, match=f"heavy_views={heavy}.*has {count} views in all"):
        make_model(heavy_views=heavy).training_step(views(count), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heavy_views": -1}, "heavy_views must be a whole number of at least 0, got -1"),
        ({"heavy_views": 1.5}, "heavy_views must be a whole number"),
        ({"heavy_loss": "both"}, "heavy_loss must be one of .* got 'both'"),
    ],
)
def test_an_invalid_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**arguments)


# ---------------------------------------------------------------- datamodule


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_trainer_trains_on_heavy_views(accumulate: int) -> None:
    data = make_data(views=4, heavy_views=2, accumulate=accumulate)
    flags = {"max_epochs": 1, "accumulate_grad_batches": accumulate}
    module = make_model(heavy_views=2)
    seen: list[int] = []
    step = module.training_step
    module.training_step = lambda batch, batch_idx: (
        seen.append(len(batch)) or step(batch, batch_idx)
    )
    fit(data=data, model=module, **flags)
    assert set(seen) == {6}


def test_the_loader_without_a_trainer_gives_them_too() -> None:
    data = make_data(heavy_views=1)
    data.setup()
    standard = make_data()
    standard.setup()
    batch = next(iter(data.train_dataloader()))
    expected = next(iter(standard.train_dataloader()))
    assert len(batch) == 3
    for ours, theirs in zip(batch[:2], expected, strict=True):
        assert torch.equal(ours, theirs)
    assert batch[2].shape == batch[0].shape and not torch.equal(batch[2], batch[0])


def test_pictures_show_them_after_the_other_views() -> None:
    def draw(heavy: int) -> Tensor:
        data = ViewsDataModule(
            "patterns", train_images=40, test_images=10, batch_size=4, heavy_views=heavy
        )
        data.setup()
        return draw_views(data)

    with_heavy, without = draw(1), draw(0)
    tile = 34  # a view of 32 pixels and its margin
    assert with_heavy.shape[2] - without.shape[2] == 4 * tile  # one more in each of 4 epochs
    first = 2 + 3 * tile  # the image and its two views of the first epoch
    assert torch.equal(with_heavy[..., :first], without[..., :first])


def test_their_cost_counts_in_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """75 images are measured. An epoch is 3 passes of 2 or 4 views of 60 images."""
    monkeypatch.setattr(estimate, "FEW_IMAGES", 0)
    measures: list[bool] = []
    for heavy_views in (0, 2):
        data = make_data(8, 60, test_images=15, image_schedule=(), heavy_views=heavy_views)
        data.setup()
        measures.append(estimate.measures_before_training(data, epochs=2))
    assert measures == [False, True]


# ---------------------------------------------------------------- flags and runs


def test_a_run_from_before_the_flags_has_their_defaults() -> None:
    old = flatten(Pretrain())
    for name in HEAVY_FLAGS:
        del old[name]
    assert find_differences(old, flatten(Pretrain())) == []
    heavy = Pretrain(method=MethodOptions(heavy_views=2))
    assert find_differences(old, flatten(heavy)) == ["heavy_views"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"heavy_views": 3}, "--heavy-views 3: must not be more than --views 2"),
        ({"heavy_loss": "symmetric"}, "--heavy-loss symmetric: there are no heavy views"),
        ({"heavy_weight_in": 0.5}, "--heavy-weight-in 0.5: there are no heavy views"),
        ({"heavy_weight_out": 0.5}, "--heavy-weight-out 0.5: there are no heavy views"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MethodOptions(**flags)


def test_a_run_keeps_them_and_resumes_to_the_bit(tmp_path: Path) -> None:
    flags = ["--train-images", "60", "--batch-size", "10", "--epochs", "2"]
    flags += ["--heavy-views", "2", "--heavy-weight-in", "0.8"]
    out, err = start_small("whole", tmp_path, *flags).communicate()
    assert err == "" and "x 2 + 2 heavy views in a step" in out
    stopped = start_small_with_events("stopped", tmp_path, {8: ["SIGTERM"]}, *flags)
    stopped.communicate()
    assert stopped.returncode == 128 + signal.SIGTERM
    out, err = start_small("stopped", tmp_path, *flags).communicate()
    assert err == "" and "resumed from" in out
    whole = tmp_path / "runs" / "whole"
    assert same_run(tmp_path / "runs" / "stopped", whole)

    file = whole / "checkpoints" / "last.ckpt"
    hparams = torch.load(file, weights_only=True)["hyper_parameters"]
    assert [hparams[name] for name in HEAVY_FLAGS] == [2, "one-way", 0.8, 0.1]
    assert load_backbone(whole)(torch.zeros(2, 3, 32, 32)).shape == (2, 32)
