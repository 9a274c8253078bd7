"""The compiled training step is one graph in each direction, and keeps little for the backward one.

What is kept costs memory, and a GPU needs time to write and to read it. torch splits the step into
its two graphs in the same way for each device, so the graphs are looked at on a CPU, and no code is
generated for them.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, fx, nn
from torch._inductor.compile_fx import compile_fx

from models.batch_norm import BatchNorm2d
from models.convolutions import DownsampleConv2d
from simsiam import SimSiam

BATCH = 32
SIZE = 32
VIEWS = 2
BYTES_OF_BF16 = 2
WIDTH = 24
LAST_MAP = VIEWS * BATCH * 8 * WIDTH * (SIZE // 8) ** 2  # values in an output of the last stage
# Statistics of BN are kept as well: 20 kB. A mask of the last stage would be larger, even in bits.
MAX_OTHER_BYTES = LAST_MAP // 8


class Step:
    """A compiled training step, and the graphs that torch has made of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.graphs: dict[str, list[fx.Graph]] = {"forward": [], "backward": []}
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=self._compile))
        torch.compiler.reset()
        self.module = SimSiam("resnet10", width=WIDTH, out_dim=64, h_dim=32)
        self.module.one_pass = True
        self.module.compile_networks()
        self.views = [torch.randn(BATCH, 3, SIZE, SIZE) for _ in range(VIEWS)]
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            loss = self.module.training_step(self.views, 0)["loss"]
        loss.backward()

    def _compile(self, graph_module: fx.GraphModule, inputs: list[Tensor], **_: Any) -> Any:
        """Compile by Inductor, up to the point where it would generate code."""
        return compile_fx(graph_module, inputs, inner_compile=self._record)

    def _record(self, graph_module: fx.GraphModule, *_: Any, **options: Any) -> Any:
        direction = "backward" if options.get("is_backward") else "forward"
        self.graphs[direction].append(graph_module.graph)
        return make_boxed_func(graph_module.forward)

    def kept_bytes(self) -> int:
        """Return the size of all that the backward graph reads of the forward one.

        Weights in bf16 are not part of it, and neither are tensors of the heads of the same shapes.
        """
        weight_shapes = {parameter.shape for parameter in self.module.parameters()}
        size = 0
        for node in self.graphs["backward"][0].find_nodes(op="placeholder"):
            kept = node.meta["val"]
            # torch calls parameters and images "primals", and gradients of the outputs "tangents".
            is_from_forward = not node.name.startswith(("primals", "tangents"))
            if is_from_forward and kept.shape not in weight_shapes:
                size += kept.numel() * kept.element_size()
        return size

    def count(self, direction: str, *targets: object) -> int:
        """Return how often a graph applies operations to a feature map."""
        count = 0
        for node in self.graphs[direction][0].nodes:
            if node.target in targets and node.args[0].meta["val"].numel() >= LAST_MAP:
                count += 1
        return count


@pytest.fixture(scope="module")
def step() -> Iterator[Step]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Step(monkeypatch)
    torch.compiler.reset()


def count_layers(step: Step, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in step.module.backbone.modules())


def test_a_step_is_one_graph_in_each_direction(step: Step) -> None:
    assert len(step.graphs["forward"]) == 1
    assert len(step.graphs["backward"]) == 1


def test_only_inputs_and_outputs_of_convolutions_are_kept(step: Step) -> None:
    maps: dict[int, Tensor] = {}  # by id, because several convolutions may have one input

    def note_maps(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        maps[id(inputs[0])] = inputs[0]
        maps[id(output)] = output

    for module in step.module.backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note_maps)
    step.module.backbone(torch.cat(step.views))
    values = sum(tensor.numel() for tensor in maps.values())
    expected = BYTES_OF_BF16 * values
    assert expected <= step.kept_bytes() <= expected + MAX_OTHER_BYTES


def test_bn_reads_a_feature_map_once_forward_and_sums_two_products_backward(step: Step) -> None:
    aten = torch.ops.aten
    bn_layers = count_layers(step, BatchNorm2d)
    # The last BN of a block and that of its downsampling have the same gradient, and share its sum.
    shared_sums = count_layers(step, DownsampleConv2d)
    sums = step.count("backward", aten.sum.dim_IntList, aten.sum.default)
    assert step.count("forward", aten.var_mean.correction) == bn_layers
    assert sums == 2 * bn_layers - shared_sums


def test_each_convolution_is_computed_once_in_each_direction(step: Step) -> None:
    layers = count_layers(step, nn.Conv2d)
    aten = torch.ops.aten
    forward = [node.target for node in step.graphs["forward"][0].nodes]
    backward = [node.target for node in step.graphs["backward"][0].nodes]
    assert forward.count(aten.convolution.default) == layers
    assert backward.count(aten.convolution.default) == 0
    assert backward.count(aten.convolution_backward.default) == layers
