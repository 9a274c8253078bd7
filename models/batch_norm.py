"""Batch normalisation of several views in one batch, each with its own statistics, over all processes of a run.

SimSiam encodes each view separately (Algorithm 1: z1, z2 = f(x1), f(x2)), so BN's statistics are those of one view.
Statistics over all views together would be another method, and one pass for each view uses a GPU badly. These layers
take the concatenated views (V * B, ...) and normalise each view by itself: one pass gives what V passes would, running
statistics included.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _AllGather(torch.autograd.Function):
    """The tensors of all processes, stacked: (...) -> (processes, ...), with gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gathered = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, x)
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[distributed.get_rank()]


class _BatchNormPerView(_BatchNorm):
    """torch's BN, except that a batch in training consists of `views` views."""

    views = 1

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            return self._normalize_over_processes(input)
        if self.views == 1:
            return super().forward(input)
        return torch.cat([super(_BatchNormPerView, self).forward(view) for view in input.chunk(self.views)])

    def _normalize_over_processes(self, input: Tensor) -> Tensor:
        """Each process has an equal part of every view; a view's moments are computed from those of its parts.

        One message forward and one backward for all views: with small parts, the messages take most of the time.
        """
        x = input.to(torch.promote_types(input.dtype, torch.float32)).unflatten(0, (self.views, -1))  # (V, B, C, ...)
        dims = [d for d in range(x.dim()) if d not in (0, 2)]
        var, mean = torch.var_mean(x, dims, correction=0)  # (V, C) each
        means, variances = _AllGather.apply(torch.stack([mean, var])).unbind(1)  # (processes, V, C) each
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        self._update_running_statistics(mean.detach(), var.detach(), x[0].numel() // x.shape[2] * len(means))
        shape = (self.views, 1, -1, *[1] * (x.dim() - 3))
        x = (x - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            x = x * self.weight.view(shape[1:]) + self.bias.view(shape[1:])
        return x.flatten(0, 1).to(input.dtype)

    def _update_running_statistics(self, mean: Tensor, var: Tensor, n: int) -> None:
        """As torch does, view after view, with moments (V, C) of n numbers each."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        with torch.no_grad():
            self.num_batches_tracked.add_(self.views)
            for view in range(self.views):
                self.running_mean.lerp_(mean[view], self.momentum or 0.0)
                self.running_var.lerp_(var[view] * (n / (n - 1)), self.momentum or 0.0)


class BatchNorm1d(_BatchNormPerView, nn.BatchNorm1d):
    """(V * B, C) -> (V * B, C)."""


class BatchNorm2d(_BatchNormPerView, nn.BatchNorm2d):
    """(V * B, C, H, W) -> (V * B, C, H, W)."""


@contextmanager
def expect_views(network: nn.Module, views: int) -> Iterator[None]:
    """Within this context, all BN layers of `network` take a training batch for the concatenation of `views` views."""
    layers = [module for module in network.modules() if isinstance(module, _BatchNormPerView)]
    for layer in layers:
        layer.views = views
    try:
        yield
    finally:
        for layer in layers:
            layer.views = 1
