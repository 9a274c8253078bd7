"""Batch normalisation of several views at once, each with statistics of its own, over all processes of a run.

SimSiam encodes each view by itself (Algorithm 1: z1, z2 = f(x1), f(x2)), so BN's statistics are those of one view. To
normalise joined views together would be another method; to encode one after the other leaves a GPU idle in between.
These layers take the joined batch (V * B, ...) and normalise view after view: the same numbers, running statistics too,
from one pass through the network.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOverAll(torch.autograd.Function):
    """The sum over all processes of a tensor that each has; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _SumOverAll.forward(ctx, gradient.contiguous())


class _PerView(_BatchNorm):
    """torch's BN in everything but `views`: how many of them a batch in training consists of."""

    views = 1

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        over_all = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        normalise = self._over_all if over_all else super().forward
        if self.views == 1:
            return normalise(input)
        return torch.cat([normalise(view) for view in input.chunk(self.views)])

    def _over_all(self, view: Tensor) -> Tensor:
        """One view (B, C, ...), of which each process has an equal part, normalised by the moments of the whole."""
        world = distributed.get_world_size()
        x = view.float()
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.dim())]
        mean = _SumOverAll.apply(x.mean(dims)) / world  # (C,)
        centred = x - mean.view(shape)
        var = _SumOverAll.apply(centred.square().mean(dims)) / world
        n = x.numel() // x.shape[1] * world
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum or 0.0)
                self.running_var.lerp_(var * (n / (n - 1)), self.momentum or 0.0)
        x = centred * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            x = x * self.weight.view(shape) + self.bias.view(shape)
        return x.to(view.dtype)


class BatchNorm1d(_PerView, nn.BatchNorm1d):
    """(V * B, C) -> the same."""


class BatchNorm2d(_PerView, nn.BatchNorm2d):
    """(V * B, C, H, W) -> the same."""


@contextmanager
def expect_views(network: nn.Module, views: int) -> Iterator[None]:
    """Meanwhile, all normalisation layers of `network` take a batch in training for so many views."""
    layers = [module for module in network.modules() if isinstance(module, _PerView)]
    for layer in layers:
        layer.views = views
    try:
        yield
    finally:
        for layer in layers:
            layer.views = 1
