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


class _FromAll(torch.autograd.Function):
    """What each process has of a tensor, stacked: x (...) -> (processes, ...)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        every = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(every, x)
        return torch.stack(every)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[distributed.get_rank()]


class _PerView(_BatchNorm):
    """torch's BN in everything but `views`: how many of them a batch in training consists of."""

    views = 1

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            return self._over_all(input)
        if self.views == 1:
            return super().forward(input)
        return torch.cat([super(_PerView, self).forward(view) for view in input.chunk(self.views)])

    def _over_all(self, input: Tensor) -> Tensor:
        """Each process has an equal part of every view: its moments are put together from those of the parts.

        One message forward and one backward, whatever the number of views: where parts are small, messages are what
        takes the time.
        """
        x = input.to(torch.promote_types(input.dtype, torch.float32)).unflatten(0, (self.views, -1))  # (V, B, C, ...)
        dims = [d for d in range(x.dim()) if d not in (0, 2)]
        var, mean = torch.var_mean(x, dims, correction=0)  # (V, C) each
        means, variances = _FromAll.apply(torch.stack([mean, var])).unbind(1)  # (processes, V, C) each
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        self._remember(mean.detach(), var.detach(), x[0].numel() // x.shape[2] * len(means))
        shape = (self.views, 1, -1, *[1] * (x.dim() - 3))
        x = (x - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            x = x * self.weight.view(shape[1:]) + self.bias.view(shape[1:])
        return x.flatten(0, 1).to(input.dtype)

    def _remember(self, mean: Tensor, var: Tensor, n: int) -> None:
        """Take moments (V, C) of n numbers each into the running statistics, view after view, as torch does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        with torch.no_grad():
            self.num_batches_tracked.add_(self.views)
            for view in range(self.views):
                self.running_mean.lerp_(mean[view], self.momentum or 0.0)
                self.running_var.lerp_(var[view] * (n / (n - 1)), self.momentum or 0.0)


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
