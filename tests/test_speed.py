"""What makes it fast changes nothing: compiled or eager, one pass or several, bf16 or fp32."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.batch_norm import expect_views
from simsiam import SimSiam
from simsiam.data.datamodule import ViewsDataModule
from tests.helpers import Program, rows, start_small

Learned = tuple[list[float], dict[str, torch.Tensor], torch.Tensor]


def learned(compiled: bool) -> Learned:
    """Losses of three steps, the weights after them, and features in eval mode; as on a GPU, or as on a CPU."""
    torch.manual_seed(0)
    module = SimSiam(
        "resnet10", width=16, out_dim=32, h_dim=8
    ).train()  # narrower: oneDNN, see models/resnet.py
    module.one_pass = compiled
    if compiled:
        module.compile_networks()
    optimizer = torch.optim.SGD(module.parameters(), 0.06, 0.9, weight_decay=5e-4, fused=True)
    losses = []
    for _ in range(3):
        loss = module.training_step([torch.randn(32, 3, 32, 32) for _ in range(2)], 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        return losses, module.state_dict(), module.eval()(torch.randn(8, 3, 32, 32))


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # dynamo looks at it, and says so to itself
@pytest.mark.slow(
    "waits for a C++ compiler; that views in one pass equal views one by one is a quick test"
)
def test_compiled_networks_in_one_pass_learn_what_eager_ones_do_view_by_view() -> None:
    """To 1e-5 of each weight and running statistic after three steps; the keys of the state dict stay the same."""
    (losses, weights, features), (theirs, their_weights, their_features) = (
        learned(True),
        learned(False),
    )
    assert losses == pytest.approx(theirs, abs=1e-5)
    assert weights.keys() == their_weights.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], their_weights[name], atol=1e-5, rtol=0, msg=name)
    torch.testing.assert_close(features, their_features, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore")  # dynamo's own
def test_a_step_is_one_graph_without_a_break() -> None:
    module = SimSiam("resnet10", width=16, out_dim=32, h_dim=8)
    with expect_views(module, 2, compiled=True):
        found = torch._dynamo.explain(module.losses)(
            [torch.randn(4, 3, 32, 32) for _ in range(2)], True
        )
    assert (found.graph_count, found.graph_break_count) == (1, 0)


class Copies(TorchDispatchMode):
    """Notes each operation that a tensor on the CPU takes part in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(
            isinstance(x, torch.Tensor) and x.device.type == "cpu"
            for x in tree_leaves((args, kwargs, out))
        ):
            self.seen.append(str(func))
        return out


def test_nothing_in_a_step_waits_for_the_device_or_copies_to_it() -> None:
    """On the device "meta", whose tensors have no numbers: `item()`, a boolean index or a copy from it would fail."""
    data = ViewsDataModule("patterns", train_images=64, test_images=10, batch_size=16)
    data.setup()
    data.train = replace(data.train, images=data.train.images.to("meta"))
    data.mean, data.std = data.mean.to("meta"), data.std.to("meta")
    module = SimSiam("resnet10", width=16, out_dim=32, h_dim=8).to("meta")
    module.one_pass = True
    optimizer = torch.optim.SGD(module.parameters(), 0.06, 0.9, weight_decay=5e-4)
    with Copies() as copies:
        for epoch in (0, 7):
            loss = module.training_step(
                data.make_views(torch.empty(16, dtype=torch.int64, device="meta"), epoch), 0
            )["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert copies.seen == []


@pytest.mark.slow("waits for a C++ compiler; that augmentation is compiled once is a quick test")
def test_compiled_views_are_those_of_eager_augmentation() -> None:
    """To 1e-4 of a deviation, in all epochs and views from one compilation."""
    views = []
    for compiled in (True, False):
        data = ViewsDataModule(
            "patterns", train_images=100, test_images=10, batch_size=50, compile=compiled
        )
        data.setup()
        places = torch.arange(0, 100, 2)
        views.append(data.make_views(places, 0) + data.make_views(places, 7))
    for ours, theirs in zip(*views, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.slow("processors without bf16 emulate it, a hundred times slower")
def test_bf16_learns_what_fp32_does(program: Program, tmp_path: Path) -> None:
    """bf16 has 8 bits: over three epochs loss and z_std stay within .01; kNN of the same weights within 2 %."""
    flags = [
        "--dataset",
        "patterns",
        "--train-images",
        "200",
        "--test-images",
        "200",
        "--batch-size",
        "50",
    ]
    flags += [
        "--backbone",
        "resnet10",
        "--width",
        "8",
        "--out-dim",
        "64",
        "--h-dim",
        "16",
        "--epochs",
        "3",
    ]
    runs, untrained = [], []
    for precision in ("32", "bf16"):
        status, _, err = program(
            *flags, "--accelerator", "cpu", "--precision", precision, "--exp-name", precision
        )
        assert (status, err) == (0, "")
        runs.append(rows(tmp_path / "runs" / precision))
        untrained.append(
            json.loads((tmp_path / "runs" / precision / "summary.json").read_text())[
                "kNN_untrained"
            ]
        )
    assert untrained[0] == pytest.approx(untrained[1], abs=2)
    for fp32, bf16 in zip(*runs, strict=True):
        assert bf16["train_loss"] == pytest.approx(fp32["train_loss"], abs=0.01)
        assert bf16["z_std"] == pytest.approx(fp32["z_std"], abs=0.01)


@pytest.mark.slow("a further run; on a CPU nothing is compiled unless asked for")
def test_a_cpu_without_a_compiler_trains(tmp_path: Path) -> None:
    process = start_small(
        "run", tmp_path, "--epochs", "1", PATH=str(tmp_path), CXX="none", CC="none"
    )
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "") and "finished 1 epoch " in out
