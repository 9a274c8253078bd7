"""models/batch_norm.py: several views in one pass are normalised as in separate passes."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.batch_norm import BatchNorm1d, BatchNorm2d, expect_views
from models.heads import projection_mlp
from models.resnet import resnet10
from simsiam import SimSiam
from simsiam.commands import launch
from tests.processes import Started, torchrun_environments
from utils import distributed


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("views", [2, 4])
def test_joined_views_give_what_separate_passes_give(views: int, compiled: bool) -> None:
    """Outputs, gradients and running statistics are equal up to rounding.

    Rounding differs because the convolutions see batches of another size.
    """
    torch.manual_seed(0)
    separate = nn.Sequential(resnet10(8), projection_mlp(64, 32, 16)).double().train()
    joined = copy.deepcopy(separate)
    x = [torch.randn(6, 3, 32, 32, dtype=torch.float64) for _ in range(views)]
    theirs = torch.cat([separate(view) for view in x])
    with expect_views(joined, views, compiled):
        ours = joined(torch.cat(x))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(theirs)
    (theirs * weight).sum().backward()
    (ours * weight).sum().backward()
    for a, b in zip(joined.parameters(), separate.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-7)
    state, expected = joined.state_dict(), separate.state_dict()
    assert state.keys() == expected.keys()
    for name in state:
        torch.testing.assert_close(state[name], expected[name], rtol=1e-9, atol=1e-9)
    with expect_views(joined, views, compiled):
        joined(torch.cat(x))
    joined.load_state_dict(expected)  # discards the batches that were counted before
    assert all(torch.equal(value, expected[name]) for name, value in joined.state_dict().items())


@pytest.mark.parametrize(
    ("ours", "theirs"), [(BatchNorm1d, nn.BatchNorm1d), (BatchNorm2d, nn.BatchNorm2d)]
)
def test_one_view_gives_torchs_output_to_the_bit(
    ours: type[nn.BatchNorm2d], theirs: type[nn.BatchNorm2d]
) -> None:
    a, b = ours(5), theirs(5)
    x = torch.randn(7, 5) if ours is BatchNorm1d else torch.randn(7, 5, 4, 4)
    for training in (True, False):
        a.train(training)
        b.train(training)
        assert torch.equal(a(x), b(x)) and a.state_dict().keys() == b.state_dict().keys()
        assert all(
            torch.equal(a.state_dict()[name], b.state_dict()[name]) for name in a.state_dict()
        )


def test_views_are_normalised_by_themselves() -> None:
    layer = BatchNorm1d(4).double()
    x = torch.cat([torch.randn(9, 4), 5 + 3 * torch.randn(9, 4)]).double()
    mixed = layer(x)
    with expect_views(layer, 2):
        apart = layer(x)
    assert (mixed - apart).abs().max() > 0.5
    torch.testing.assert_close(apart[9:].mean(0), torch.zeros(4).double(), atol=1e-9, rtol=0)


def test_in_eval_mode_views_change_nothing() -> None:
    module = SimSiam(backbone="resnet10", width=4, out_dim=8, h_dim=4).eval()
    x = torch.randn(5, 3, 32, 32)
    before = module(x)
    with expect_views(module, 2):
        assert torch.equal(module(x), before)


@pytest.mark.parametrize("views", [2, 4])
def test_a_step_in_one_pass_gives_the_same_gradients_and_state(views: int) -> None:
    module = SimSiam(backbone="resnet10", width=4, out_dim=16, h_dim=8).double()
    twin = copy.deepcopy(module)
    twin.one_pass = True
    x = [torch.randn(8, 3, 32, 32, dtype=torch.float64) for _ in range(views)]
    for each in (module, twin):
        each.training_step(x, 0)["loss"].backward()
    for (name, a), b in zip(module.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6, msg=name)  # D is float32
    for name, value in module.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], value, rtol=1e-9, atol=1e-9, msg=name)


# What callbacks and a Trainer's precision set in torch's BN. SWA averages over an epoch without a
# momentum, and BackboneFinetuning(train_bn=False) stops the running statistics.
BN_SETTINGS: dict[str, dict[str, Any]] = {
    "usual": {},
    "cumulative": {"momentum": None},
    "untracked": {"track_running_stats": False},
    "bf16": {"dtype": torch.bfloat16},
    "cumulative_bf16": {"momentum": None, "dtype": torch.bfloat16},
}


def make_bn_pair(
    momentum: float | None = 0.1,
    track_running_stats: bool = True,
    dtype: torch.dtype = torch.float64,
) -> tuple[BatchNorm1d, nn.BatchNorm1d]:
    """Return our BN and torch's with the same attributes, set as a callback sets them."""
    ours = BatchNorm1d(3, dtype=dtype)
    theirs = nn.BatchNorm1d(3, dtype=dtype)
    for layer in (ours, theirs):
        layer.momentum = momentum
        layer.track_running_stats = track_running_stats
    return ours, theirs


def check_close(ours: Tensor, theirs: Tensor) -> None:
    """Compare up to rounding. In bfloat16, torch's BN itself is wrong by several steps of 2^-8."""
    tolerance = 2**-5 if theirs.dtype == torch.bfloat16 else 1e-9
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def check_states(ours: nn.Module, theirs: nn.Module) -> None:
    for name, expected in theirs.state_dict().items():
        check_close(ours.state_dict()[name], expected)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("setting", BN_SETTINGS)
def test_joined_views_honour_what_torchs_bn_honours(setting: str, compiled: bool) -> None:
    ours, theirs = make_bn_pair(**BN_SETTINGS[setting])
    for _ in range(3):
        x = torch.randn(2, 8, 3).to(ours.weight.dtype)
        with expect_views(ours, 2, compiled):
            y = ours(x.flatten(0, 1))
        expected = torch.cat([theirs(view) for view in x])
        check_close(y, expected)
        check_states(ours, theirs)


def test_compiled_layers_that_swa_resets_average_over_the_batches_that_follow() -> None:
    """No batch from before the reset counts."""
    ours, theirs = make_bn_pair()
    for momentum in (0.1, None):
        for layer in (ours, theirs):
            layer.momentum = momentum
            layer.running_mean = torch.zeros_like(layer.running_mean)
            layer.running_var = torch.ones_like(layer.running_var)
            layer.num_batches_tracked *= 0
        for x in torch.randn(3, 2, 8, 3, dtype=torch.float64):
            with expect_views(ours, 2, compiled=True):
                ours(x.flatten(0, 1))
            for view in x:
                theirs(view)
    check_states(ours, theirs)


def compare_settings_with_torch(args: list[str]) -> int:
    """Compare BN of two views over two processes with torch's BN of the whole batch."""
    torch.manual_seed(0)
    with launch.process_group(None, None, gpu=False):
        for setting in args:
            ours, theirs = make_bn_pair(**BN_SETTINGS[setting])
            for _ in range(3):
                x = torch.randn(2, 8, 3).to(ours.weight.dtype)  # (V, B, C)
                mine = x[:, distributed.rank() :: 2]
                with expect_views(ours, 2):
                    y = ours(mine.flatten(0, 1)).unflatten(0, (2, 4))
                expected = torch.stack([theirs(view) for view in x])
                check_close(y, expected[:, distributed.rank() :: 2])
                check_states(ours, theirs)
    return 0


@pytest.mark.parametrize("setting", BN_SETTINGS)
def test_two_processes_honour_what_torchs_bn_honours(setting: str) -> None:
    processes = [
        Started(compare_settings_with_torch, [setting], **environment)
        for environment in torchrun_environments()
    ]
    for process in processes:
        assert process.communicate() == ("", "") and process.returncode == 0


def compare_with_whole_batch(args: list[str]) -> int:
    """Compare half of a batch in one of two processes with the whole batch in one process."""
    torch.manual_seed(0)
    ours = nn.Sequential(resnet10(8), projection_mlp(64, 32, 16)).double().train()
    whole = copy.deepcopy(ours)
    x = torch.randn(2, 8, 3, 32, 32, dtype=torch.float64)  # (V, B, ...)
    weight = torch.randn(2, 8, 16, dtype=torch.float64)
    with expect_views(whole, 2):
        expected = whole(x.flatten(0, 1)).unflatten(0, (2, 8))
    (expected * weight).sum().backward()
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
    with launch.process_group(None, None, gpu=False):
        mine = slice(distributed.rank(), None, 2)
        with expect_views(ours, 2):
            half = ours(x[:, mine].flatten(0, 1)).unflatten(0, (2, 4))
        close(half, expected[:, mine])
        (half * weight[:, mine]).sum().backward()
        for a, b in zip(ours.parameters(), whole.parameters(), strict=True):
            close(distributed.all_reduce_mean(a.grad) * 2, b.grad)
        for a, b in zip(ours.state_dict().values(), whole.state_dict().values(), strict=True):
            close(a, b)
    return 0


def test_two_processes_normalise_by_the_moments_of_the_whole_batch() -> None:
    """Outputs, gradients and running statistics of each view agree to 1e-9 in float64."""
    processes = [
        Started(compare_with_whole_batch, [], **environment)
        for environment in torchrun_environments()
    ]
    for process in processes:
        assert process.communicate() == ("", "") and process.returncode == 0
