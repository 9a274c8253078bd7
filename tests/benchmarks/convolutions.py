"""Measure the convolutions of a training step alone, and compare them with complete steps.

Run `python tests/benchmarks/convolutions.py`. It records each convolution of a step of ours and of
lightly's parts, forward and backward, with its shapes, memory format and precision. Then it calls
each of them by itself, several times, with tensors that are in the caches if they fit. The sum of
the shortest times is a lower bound of the step with torch's convolutions on this processor.

The time of lightly's step divided by this bound is the largest possible ratio. It would need
everything but the convolutions to be free. The steps are on views that are ready: forward,
backward, optimizer.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from step import H_DIM, OUT_DIM, Lightlys
from timing import DEVICE, in_turn, is_installed, seconds, table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from simsiam import SimSiam

IMAGE_SIZE = 32
FORWARD = torch.ops.aten.convolution.default
BACKWARD = torch.ops.aten.convolution_backward.default
Call = tuple[Any, ...]  # a convolution of torch, and descriptions of its arguments


class TensorSpec(NamedTuple):
    """What a tensor needs to have so that a convolution takes the same time with it."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        return torch.empty_strided(
            self.shape, self.stride, dtype=self.dtype, device=DEVICE
        ).normal_()


class ConvolutionRecorder(TorchDispatchMode):
    """Counts the convolutions that are called in its context, by their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Call] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (FORWARD, BACKWARD):
            self.calls[(func, *(describe(arg) for arg in args))] += 1
        return func(*args, **(kwargs or {}))


def describe(argument: Any) -> Any:
    """Return a hashable description of an argument of a convolution."""
    if isinstance(argument, Tensor):
        return TensorSpec(argument.shape, argument.stride(), argument.dtype)
    if isinstance(argument, list):
        return tuple(argument)
    return argument


def restore(description: Any) -> Any:
    """Return an argument for a description, with random numbers in tensors."""
    if isinstance(description, TensorSpec):
        return description.make()
    if isinstance(description, tuple):
        return list(description)
    return description


def count_operations(call: Call) -> float:
    """Return the floating-point operations of a recorded call."""
    if call[0] is FORWARD:
        x, weight, stride = call[1], call[2], call[4]
        gradients = 1
    else:
        x, weight, stride = call[2], call[3], call[5]
        gradients = sum(call[-1][:2])  # of the input and of the weight
    out_pixels = x.shape[0] * (x.shape[2] // stride[0]) * (x.shape[3] // stride[1])
    return 2.0 * gradients * out_pixels * weight.shape.numel()


class Step(NamedTuple):
    """A training step, and what it needs."""

    title: str
    model: nn.Module
    is_bf16: bool

    def make(self, batch: int) -> Callable[[], None]:
        """Return a function that takes a step on `batch` images with 2 views each."""
        views = [torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, device=DEVICE) for _ in range(2)]
        model: Any = self.model.to(DEVICE).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.06, 0.9, weight_decay=5e-4)

        def take_step() -> None:
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.is_bf16):
                loss = compute_loss(model, views)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return take_step


def compute_loss(model: Any, views: list[Tensor]) -> Tensor:
    """Return the loss of a batch for our module or for lightly's parts."""
    if isinstance(model, SimSiam):
        return model.training_step(views, 0)["loss"]
    z0, p0 = model(views[0])
    z1, p1 = model(views[1])
    return 0.5 * (model.criterion(z0, p1) + model.criterion(z1, p0))


def measure_calls(calls: Counter[Call], rounds: int) -> dict[Call, float]:
    """Return the shortest seconds of each convolution, called alone."""
    shortest: dict[Call, float] = {}
    for call in calls:
        function, *descriptions = call
        arguments = [restore(description) for description in descriptions]
        times = [seconds(lambda f=function, a=arguments: f(*a)) for _ in range(2 + rounds)]
        shortest[call] = min(times[2:])  # the first two calls prepare kernels and memory
    return shortest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    steps: list[Step] = []
    for is_bf16 in (False, True):
        precision = "bf16" if is_bf16 else "fp32"
        ours = SimSiam(width=args.width, out_dim=OUT_DIM, h_dim=H_DIM, warmup_epochs=0)
        steps.append(Step(f"ours, {precision}", ours, is_bf16))
    if is_installed("lightly"):
        steps.append(Step("lightly's, fp32, as shipped", Lightlys(args.width, False), False))
        steps.append(Step("lightly's, fp32, granted", Lightlys(args.width, True), False))
        steps.append(Step("lightly's, bf16, granted", Lightlys(args.width, True), True))

    works: dict[str, Callable[[], object]] = {}
    for step in steps:
        works[step.title] = step.make(args.batch_size)
    times = in_turn(works, args.rounds)
    rows: list[list[str]] = []
    for title, take_step in works.items():
        with ConvolutionRecorder() as recorder:
            take_step()
        shortest = measure_calls(recorder.calls, args.rounds)
        forward = 0.0
        total = 0.0
        operations = 0.0
        for call, count in recorder.calls.items():
            total += count * shortest[call]
            operations += count * count_operations(call)
            if call[0] is FORWARD:
                forward += count * shortest[call]
        numbers = [times[title], total, forward, total - forward]
        row = [title, *(f"{1000 * number:,.0f}" for number in numbers)]
        rows.append([*row, f"{operations / total / 1e9:,.0f}"])
    title = f"Milliseconds, {args.batch_size} images x 2 views, resnet18 of width {args.width}"
    head = ("", "step", "convolutions alone", "forward", "backward", "GFLOP/s")
    table(title, head, rows)


if __name__ == "__main__":
    main()
