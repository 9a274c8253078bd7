"""Batch normalisation (BN) that normalises each view of a batch by itself, over all processes.

SimSiam encodes each view separately (Algorithm 1: z1, z2 = f(x1), f(x2)), so BN computes its
statistics for one view at a time. But one pass for each view uses a GPU badly, and statistics of
all views together would be another method. The layers here take the views concatenated,
(V * B, ...), and normalise each view by itself. So one pass gives the same as V passes, running
statistics included.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.position_blocks import sum_within_views


def _world_size() -> int:
    """Return the number of processes of the run.

    This repeats `utils.distributed.world_size`, because models/ does not import utils/.
    """
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


class _AllGather(torch.autograd.Function):
    """Stack the tensors of all processes: (...) -> (processes, ...).

    Gradients flow back to the tensor of every process.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gathered = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, x)
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        # The outputs of all processes depend on this process's x, so their gradients are added.
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[distributed.get_rank()]


def _widen(x: Tensor) -> Tensor:
    """Convert bfloat16 and float16 to float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _NormalizeViews(torch.autograd.Function):
    """Normalise, scale and shift each view, and optionally apply a ReLU, within a compiled graph.

    The backward pass is written out, because torch's own derivative of the same formula keeps
    float32 values in memory. Here a compiler keeps them in registers. The backward pass of the ReLU
    needs to know where the output was positive. It computes the output again from x, which it reads
    for BN anyway.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output (V, B, ..., C), and mean and variance of each view (V, 1, ..., C).

        Args:
            x: (V, B, ..., C).
            weight, bias: (C,) each, or None.
            eps: Is added to the variance.
            relu: Apply a ReLU to the output.
        """
        wide_x = _widen(x)
        var, mean = torch.var_mean(wide_x, dim=_dims_within_view(x), correction=0, keepdim=True)
        rstd = (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.mark_non_differentiable(mean, var)
        ctx.relu = relu
        y = _scale_and_shift(wide_x - mean, rstd, weight, bias)
        if relu:
            y = y.relu()
        return y.to(x.dtype), mean, var

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor, *_: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        """Return the gradients of x, weight and bias. `eps` and `relu` have none."""
        x, weight, bias, mean, rstd = ctx.saved_tensors
        g = _widen(gradient)
        centered = _widen(x) - mean
        n = x.numel() // mean.numel()  # numbers that each mean was computed from
        if ctx.relu:
            is_positive = _scale_and_shift(centered, rstd, weight, bias) > 0
            g = torch.where(is_positive, g, 0.0)

        # Sums of g, and of g times the normalised x: (V, 1, ..., C) each.
        g_sum, gx_sum = sum_within_views(g, g * centered)
        gx_sum = gx_sum * rstd
        # With x_hat = centered * rstd, the derivative of BN is
        # dx = weight * rstd * (g - mean(g) - x_hat * mean(g * x_hat)).
        unscaled_dx = g - g_sum / n - centered * (rstd * gx_sum / n)
        if weight is None:
            return (unscaled_dx * rstd).to(x.dtype), None, None, None, None
        dx = unscaled_dx * (rstd * weight)
        d_weight = gx_sum.sum_to_size(weight.shape)
        d_bias = g_sum.sum_to_size(weight.shape)
        return dx.to(x.dtype), d_weight, d_bias, None, None


def _scale_and_shift(
    centered: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    normalized = centered * rstd
    if weight is None or bias is None:
        return normalized
    return normalized * weight + bias


def _dims_within_view(x: Tensor) -> list[int]:
    """Return the dimensions of x (V, B, ..., C) except the views and the channels."""
    return list(range(1, x.dim() - 1))


class _BatchNormPerView(_BatchNorm):
    """torch's BN, except that a training batch consists of `views` concatenated views.

    `expect_views` sets the attributes `views` and `compiled`.
    """

    views = 1
    # Whether the layer normalises several views within a compiled graph. It then does so by
    # operations that a compiler fuses with their neighbours.
    compiled = False

    def _check_input_dim(self, input: Tensor) -> None:
        """Check nothing: while torch.fx traces a network, the input has no dimensions yet."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and _world_size() > 1:
            return self._normalize_over_processes(input)
        if self.training and self.views > 1:
            if self.compiled:
                return self._normalize_views(input)
            forward_one_view = super().forward
            return torch.cat([forward_one_view(view) for view in input.chunk(self.views)])
        return super().forward(input)

    def forward_relu(self, input: Tensor) -> Tensor:
        """Return relu(BN(input)). In a compiled graph, this is one operation."""
        if self.training and self.compiled and _world_size() == 1:
            return self._normalize_views(input, relu=True)
        return self.forward(input).relu_()

    def _normalize_views(self, input: Tensor, relu: bool = False) -> Tensor:
        """Normalise each view by operations that a compiler fuses."""
        # Channels last, (V, B, ..., C). If the memory has this format already, nothing is copied.
        x = input.movedim(1, -1).unflatten(0, (self.views, -1))
        y, mean, var = _NormalizeViews.apply(x, self.weight, self.bias, self.eps, relu)
        n = x[0, ..., 0].numel()
        self._update_running_statistics(mean.flatten(1), var.flatten(1), n)
        return y.flatten(0, 1).movedim(-1, 1)

    def _normalize_over_processes(self, input: Tensor) -> Tensor:
        """Normalise each view by the statistics of its parts on all processes.

        Every process has an equal part of every view. One message forward and one backward serve
        all views, since messages take most of the time if the parts are small.
        """
        x = _widen(input).unflatten(0, (self.views, -1))  # (V, B, C, ...)
        dims = [dim for dim in range(x.dim()) if dim not in (0, 2)]
        part_var, part_mean = torch.var_mean(x, dims, correction=0)  # (V, C) each
        moments = _AllGather.apply(torch.stack([part_mean, part_var]))  # (processes, 2, V, C)
        means, variances = moments.unbind(1)  # (processes, V, C) each

        # The variance of a view is the mean variance of its parts plus the variance of their means.
        mean = means.mean(0)  # (V, C)
        var = (variances + (means - mean).square()).mean(0)  # (V, C)
        numbers_per_part = x[0, :, 0].numel()  # of one channel
        n = numbers_per_part * _world_size()
        self._update_running_statistics(mean.detach(), var.detach(), n)

        shape = [self.views, 1, -1] + [1] * (x.dim() - 3)  # for (V, C) to broadcast over x
        x = (x - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            x = x * self.weight.view(shape[1:]) + self.bias.view(shape[1:])
        return x.flatten(0, 1).to(input.dtype)

    def _update_running_statistics(self, mean: Tensor, var: Tensor, n: int) -> None:
        """Update the running statistics view by view, as torch does in separate passes.

        Args:
            mean, var: Biased moments of each view, (V, C) each.
            n: How many numbers each moment was computed from.
        """
        if not self.track_running_stats or self.num_batches_tracked is None:
            return
        if self.running_mean is None or self.running_var is None:
            return
        dtype = self.running_mean.dtype  # bfloat16 if all of a run is
        with torch.no_grad():
            for view in range(self.views):
                weight = self.momentum
                if weight is None:  # the running statistics are the means over all batches so far
                    count = self.num_batches_tracked + (view + 1)
                    weight = count.to(mean.dtype).reciprocal().to(dtype)
                unbiased_var = var[view] * (n / (n - 1))
                self.running_mean.lerp_(mean[view].to(dtype), weight)
                self.running_var.lerp_(unbiased_var.to(dtype), weight)
            if not self.compiled:  # `expect_views` counts the views of a compiled graph
                self.num_batches_tracked.add_(self.views)


class BatchNorm1d(_BatchNormPerView, nn.BatchNorm1d):
    """Normalise each view of (V * B, C) by itself."""


class BatchNorm2d(_BatchNormPerView, nn.BatchNorm2d):
    """Normalise each view of (V * B, C, H, W) by itself."""


def batch_norm_relu(bn: nn.Module, relu: nn.Module, x: Tensor) -> Tensor:
    """Return relu(bn(x)). In a compiled graph, this is one operation.

    `bn` may be another layer than a network was built with: SyncBatchNorm, or Identity after BN was
    folded into a convolution.
    """
    if isinstance(bn, _BatchNormPerView) and bn.compiled:
        return bn.forward_relu(x)
    return relu(bn(x))


def separates_views(network: nn.Module) -> bool:
    """Return whether all BN layers of a network can normalise each view by itself."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, _BatchNormPerView):
            return False
    return True


@contextmanager
def expect_views(network: nn.Module, views: int, compiled: bool = False) -> Iterator[None]:
    """Within this context, BN layers take a training batch as a concatenation of views.

    Args:
        network: Its BN layers from this module are affected.
        views: Number of views in a batch.
        compiled: Whether `network` runs as part of a compiled graph. Then run one training batch
            in each context, because its views are counted at the end.
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNormPerView)]
    for layer in layers:
        layer.views = views
        layer.compiled = compiled and views > 1  # one view is left to torch's BN
    try:
        yield
        _count_views(layers, views)
    finally:
        for layer in layers:
            layer.views = 1
            layer.compiled = False


def _count_views(layers: Iterable[_BatchNormPerView], views: int) -> None:
    """Count the views that layers have normalised within a compiled graph.

    Counted inside the graph, they would take a kernel for each layer.
    """
    counts: list[Tensor] = []
    for layer in layers:
        count = layer.num_batches_tracked
        updates_statistics = layer.training and layer.track_running_stats
        if layer.compiled and updates_statistics and count is not None:
            counts.append(count)
    if counts:
        torch._foreach_add_(counts, views)  # pyright: ignore[reportPrivateImportUsage]
