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


def _count_processes() -> int:
    return (
        distributed.get_world_size()
        if distributed.is_available() and distributed.is_initialized()
        else 1
    )


def _widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _NormalizeViews(torch.autograd.Function):
    """(V, B, ..., C) -> each view normalised, scaled and shifted by (C,); and the moments (V, 1, ..., C).

    The derivative is written out, with fp32 values that live in registers only: torch's own of the same formula would
    keep them in memory. Where the output was above 0 is computed anew from `x`, which is read in any case.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = _widen(x)
        var, mean = torch.var_mean(wide, dim=_within_view(x), correction=0, keepdim=True)
        rstd = (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.mark_non_differentiable(mean, var)
        ctx.relu, y = relu, _scale(wide - mean, rstd, weight, bias)
        return (y.relu() if relu else y).to(x.dtype), mean, var

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor, *_: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        dims = _within_view(x)
        g, centered, n = _widen(gradient), _widen(x) - mean, x.numel() // mean.numel()
        if ctx.relu:
            g = torch.where(_scale(centered, rstd, weight, bias) > 0, g, 0.0)
        g_sum = g.sum(dims, keepdim=True)
        gx_sum = (g * centered).sum(dims, keepdim=True) * rstd  # of g times the normalised x
        dx = (g - g_sum / n - centered * (rstd * gx_sum / n)) * (
            rstd if weight is None else rstd * weight
        )
        if weight is None:
            return dx.to(x.dtype), None, None, None, None
        return (
            dx.to(x.dtype),
            gx_sum.sum_to_size(weight.shape),
            g_sum.sum_to_size(weight.shape),
            None,
            None,
        )


def _scale(centered: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    normalized = centered * rstd
    return normalized if weight is None or bias is None else normalized * weight + bias


def _within_view(x: Tensor) -> list[int]:
    """All dimensions but those of views and channels."""
    return list(range(1, x.dim() - 1))


class _BatchNormPerView(_BatchNorm):
    """torch's BN, except that a training batch consists of `views` views."""

    views = 1
    compiled = False  # within a compiled graph: normalise by operations that a compiler fuses
    uncounted = 0  # batches seen by compiled graphs, not yet added to `num_batches_tracked`

    def _check_input_dim(self, input: Tensor) -> None:
        """Check nothing: a network that torch.fx traces has no dimensions yet."""

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.uncounted and self.num_batches_tracked is not None:
            self.num_batches_tracked += self.uncounted
        self.uncounted = 0
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.uncounted = 0
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, input: Tensor) -> Tensor:
        if self.training and _count_processes() > 1:
            return self._normalize_over_processes(input)
        if self.training and self.views > 1:
            if self.compiled:
                return self._normalize_views(input)
            forward = super().forward
            return torch.cat([forward(view) for view in input.chunk(self.views)])
        return super().forward(input)

    def forward_relu(self, input: Tensor) -> Tensor:
        """relu(BN(input)), as one operation in a compiled graph."""
        if self.training and self.compiled and _count_processes() == 1:
            return self._normalize_views(input, relu=True)
        return self.forward(input).relu_()

    def _normalize_views(self, input: Tensor, relu: bool = False) -> Tensor:
        """Normalise each view on a view of the memory, if it is in channels_last: nothing is moved."""
        x = input.movedim(1, -1).unflatten(0, (self.views, -1))  # (V, B, ..., C)
        y, mean, var = _NormalizeViews.apply(x, self.weight, self.bias, self.eps, relu)
        self._update_running_statistics(mean.flatten(1), var.flatten(1), x[0, ..., 0].numel())
        return y.flatten(0, 1).movedim(-1, 1)

    def _normalize_over_processes(self, input: Tensor) -> Tensor:
        """Each process has an equal part of every view; a view's moments are computed from those of its parts.

        One message forward and one backward for all views: with small parts, the messages take most of the time.
        """
        x = _widen(input).unflatten(0, (self.views, -1))  # (V, B, C, ...)
        dims = [d for d in range(x.dim()) if d not in (0, 2)]
        var, mean = torch.var_mean(x, dims, correction=0)  # (V, C) each
        means, variances = _AllGather.apply(torch.stack([mean, var])).unbind(
            1
        )  # (processes, V, C) each
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        self._update_running_statistics(
            mean.detach(), var.detach(), x[0].numel() // x.shape[2] * len(means)
        )
        shape = (self.views, 1, -1, *[1] * (x.dim() - 3))
        x = (x - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            x = x * self.weight.view(shape[1:]) + self.bias.view(shape[1:])
        return x.flatten(0, 1).to(input.dtype)

    def _update_running_statistics(self, mean: Tensor, var: Tensor, n: int) -> None:
        """As torch does, view after view, with moments (V, C) of n numbers each."""
        if (
            self.running_mean is None
            or self.running_var is None
            or self.num_batches_tracked is None
        ):
            return
        with torch.no_grad():
            if not self.compiled:
                self.num_batches_tracked.add_(self.views)
            for view in range(self.views):
                self.running_mean.lerp_(mean[view], self.momentum or 0.0)
                self.running_var.lerp_(var[view] * (n / (n - 1)), self.momentum or 0.0)


class BatchNorm1d(_BatchNormPerView, nn.BatchNorm1d):
    """(V * B, C) -> (V * B, C)."""


class BatchNorm2d(_BatchNormPerView, nn.BatchNorm2d):
    """(V * B, C, H, W) -> (V * B, C, H, W)."""


def batch_norm_relu(bn: nn.Module, relu: nn.Module, x: Tensor) -> Tensor:
    """Return relu(bn(x)), as one operation in a compiled graph.

    `bn` may be another layer by now: SyncBatchNorm, or none once it is folded into a convolution.
    """
    if isinstance(bn, _BatchNormPerView) and bn.compiled:
        return bn.forward_relu(x)
    return relu(bn(x))


def separates_views(network: nn.Module) -> bool:
    """Whether `expect_views` reaches all BN layers of `network`."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, _BatchNormPerView):
            return False
    return True


@contextmanager
def expect_views(network: nn.Module, views: int, compiled: bool = False) -> Iterator[None]:
    """Within this context, all BN layers of `network` take a training batch for the concatenation of `views` views.

    Args:
        compiled: `network` is part of a compiled graph.
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNormPerView)]
    for layer in layers:
        layer.views, layer.compiled = views, compiled and views > 1
    try:
        yield
        for layer in layers:
            layer.uncounted += views * (layer.compiled and layer.training)
    finally:
        for layer in layers:
            layer.views, layer.compiled = 1, False
