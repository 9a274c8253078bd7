"""Faster ways to compute give the same results: compiled or eager, one pass or several, bf16."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.batch_norm import expect_views
from simsiam import SimSiam
from simsiam.data.datamodule import ViewsDataModule
from tests.helpers import Program, read_rows, read_summary, start_small


def make_model() -> SimSiam:
    # A narrower network would not use channels_last: see NARROW in models/resnet.py.
    return SimSiam("resnet10", width=16, out_dim=32, h_dim=8)


def random_views(images: int) -> list[torch.Tensor]:
    return [torch.randn(images, 3, 32, 32) for _ in range(2)]


class Learned(NamedTuple):
    losses: list[float]  # of three steps
    weights: dict[str, torch.Tensor]
    features: torch.Tensor  # in eval mode


def train_three_steps(compiled: bool) -> Learned:
    """Train as on a GPU (compiled, all views in one pass) or as on a CPU."""
    torch.manual_seed(0)
    module = make_model().train()
    module.one_pass = compiled
    if compiled:
        module.compile_networks()
    optimizer = torch.optim.SGD(module.parameters(), 0.06, 0.9, weight_decay=5e-4, fused=True)
    losses = []
    for _ in range(3):
        loss = module.training_step(random_views(32), 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        features = module.eval()(torch.randn(8, 3, 32, 32))
    return Learned(losses, module.state_dict(), features)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's dynamo reads it
@pytest.mark.slow(
    "waits for a C++ compiler; that views in one pass equal views one by one is a quick test"
)
def test_compiled_networks_learn_what_eager_ones_learn() -> None:
    """Weights and running statistics agree to 1e-5 after three steps."""
    compiled = train_three_steps(compiled=True)
    eager = train_three_steps(compiled=False)
    assert compiled.losses == pytest.approx(eager.losses, abs=1e-5)
    assert compiled.weights.keys() == eager.weights.keys()
    for name, weight in compiled.weights.items():
        torch.testing.assert_close(weight, eager.weights[name], atol=1e-5, rtol=0, msg=name)
    torch.testing.assert_close(compiled.features, eager.features, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore")  # of torch's dynamo
def test_a_step_is_one_graph() -> None:
    module = make_model()
    with expect_views(module, 2, compiled=True):
        explanation = torch._dynamo.explain(module.loss_and_metrics)(random_views(4), True)
    assert explanation.graph_count == 1
    assert explanation.graph_break_count == 0


class OperationsOnCPU(TorchDispatchMode):
    """Records the name of each operation with a tensor on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, out)):
            if isinstance(value, torch.Tensor) and value.device.type == "cpu":
                self.names.append(str(func))
        return out


def test_a_step_neither_waits_for_the_device_nor_copies_to_it() -> None:
    """Tensors on the device "meta" have no values, so `item()` or a boolean index would fail."""
    data = ViewsDataModule("patterns", train_images=64, test_images=10, batch_size=16)
    data.setup()
    data.train = replace(data.train, images=data.train.images.to("meta"))
    data.mean = data.mean.to("meta")
    data.std = data.std.to("meta")
    indices = torch.empty(16, dtype=torch.int64, device="meta")
    module = make_model().to("meta")
    module.one_pass = True
    optimizer = torch.optim.SGD(module.parameters(), 0.06, 0.9, weight_decay=5e-4)
    with OperationsOnCPU() as on_cpu:
        for epoch in (0, 7):
            views = data.make_views(indices, epoch)
            loss = module.training_step(views, 0)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert on_cpu.names == []


@pytest.mark.slow("waits for a C++ compiler; that augmentation is compiled once is a quick test")
def test_compiled_augmentation_equals_eager_augmentation() -> None:
    """Views agree to 1e-4 of a standard deviation. All epochs and views share one compilation."""
    views = []
    for compiled in (True, False):
        data = ViewsDataModule(
            "patterns", train_images=100, test_images=10, batch_size=50, compile=compiled
        )
        data.setup()
        indices = torch.arange(0, 100, 2)
        views.append(data.make_views(indices, 0) + data.make_views(indices, 7))
    for compiled_view, eager_view in zip(*views, strict=True):
        torch.testing.assert_close(compiled_view, eager_view, atol=1e-4, rtol=0)


@pytest.mark.slow("processors without bf16 emulate it, a hundred times slower")
def test_bf16_learns_what_fp32_learns(program: Program, tmp_path: Path) -> None:
    """A number in bf16 has 8 significant bits, so results agree to about 1 %."""
    data = "--dataset patterns --train-images 200 --test-images 200 --batch-size 50 --epochs 3"
    network = "--backbone resnet10 --width 8 --out-dim 64 --h-dim 16 --accelerator cpu"
    for precision in ("32", "bf16"):
        flags = f"{data} {network} --precision {precision} --exp-name {precision}".split()
        status, _, err = program(*flags)
        assert (status, err) == (0, "")

    fp32 = tmp_path / "runs" / "32"
    bf16 = tmp_path / "runs" / "bf16"
    # Both runs have the same weights before training.
    untrained = read_summary(bf16)["kNN_untrained"]
    assert untrained == pytest.approx(read_summary(fp32)["kNN_untrained"], abs=2)
    for row_bf16, row_fp32 in zip(read_rows(bf16), read_rows(fp32), strict=True):
        assert row_bf16["train_loss"] == pytest.approx(row_fp32["train_loss"], abs=0.01)
        assert row_bf16["z_std"] == pytest.approx(row_fp32["z_std"], abs=0.01)


@pytest.mark.slow("a further run; on a CPU nothing is compiled unless asked for")
def test_a_cpu_without_a_compiler_trains(tmp_path: Path) -> None:
    no_compiler = {"PATH": str(tmp_path), "CXX": "none", "CC": "none"}
    process = start_small("run", tmp_path, "--epochs", "1", **no_compiler)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "finished 1 epoch " in out
