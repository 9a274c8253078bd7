"""The loss of SimSiam (arXiv 2011.10566, equations 1 to 4), and z_std, which detects a collapse.

`heavy_loss` is the part of heavy views, which the paper does not have.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from utils import distributed


def D(p: Tensor, z: Tensor, stop_grad: bool = True) -> Tensor:
    """Return the negative cosine similarity of predictions and projections (equation 1).

    Args:
        p: Predictions of one view, (B, d).
        z: Projections of another view, (B, d).
        stop_grad: Treat z as a constant, so that no gradient flows into it (equation 3).

    Returns:
        The mean over the batch, a scalar from -1 to 1.
    """
    if stop_grad:
        z = z.detach()
    # bfloat16 would round a cosine to two digits. float64 stays float64.
    dtype = torch.promote_types(p.dtype, torch.float32)
    return -cosine_similarity(p.to(dtype), z.to(dtype), dim=1).mean()


def siamese_loss(
    p: Sequence[Tensor], z: Sequence[Tensor], stop_grad: bool = True, symmetric: bool = True
) -> Tensor:
    """Return the loss L = D(p1, z2)/2 + D(p2, z1)/2 of two views (equations 2 and 4).

    With more than two views, each p_i is compared with the mean of all other z_j, as in FastSiam
    (Pototzky et al. 2022, DAGM GCPR), and L is the mean over i.

    Args:
        p: Predictions of each view, (B, d) each.
        z: Projections of each view, (B, d) each.
        stop_grad: Let no gradient flow into z.
        symmetric: If False, only p1 is compared: L = D(p1, z2) (section 4.6).
    """
    views = range(len(z))
    predicting_views = views if symmetric else views[:1]

    # The target of view i, (B, d). With two views it is the other z.
    targets: list[Tensor] = []
    for i in predicting_views:
        other_z = [z[j] for j in views if j != i]
        targets.append(torch.stack(other_z).mean(0))

    losses = [D(p[i], targets[i], stop_grad) for i in predicting_views]
    return torch.stack(losses).mean()


def heavy_loss(
    p: Sequence[Tensor],
    z: Sequence[Tensor],
    heavy_p: Sequence[Tensor],
    heavy_z: Sequence[Tensor],
    weight_in: float,
    weight_out: float,
    stop_grad: bool = True,
) -> Tensor:
    """Return DSSL's loss of heavy views, which is added to that of the standard views.

    DSSL is Bai et al. 2022 (CVPR). The heavy view x11 is made of x1, and x21 of x2. The loss is
    weight_in (D(p11, z1) + D(p21, z2)) / 2 + weight_out (D(p1, z11) + D(p2, z21)) / 2.

    Args:
        p, z: Predictions and projections of the standard views, (B, d) each.
        heavy_p, heavy_z: Those of the heavy views. The i-th is made of the i-th standard view.
        weight_in: Weight of the heavy views' predictions of the standard views.
        weight_out: Weight of the standard views' predictions of the heavy views.
        stop_grad: Let no gradient flow into z. None ever flows into `heavy_z`.
    """
    loss_in: list[Tensor] = []
    loss_out: list[Tensor] = []
    for i in range(len(heavy_z)):
        loss_in.append(D(heavy_p[i], z[i], stop_grad))
        loss_out.append(D(p[i], heavy_z[i]))
    return weight_in * torch.stack(loss_in).mean() + weight_out * torch.stack(loss_out).mean()


@torch.no_grad()
def z_std(z: Tensor) -> Tensor:
    """Measure how far projections are from a collapse: 0 is collapsed, 1 is healthy.

    The paper (section 4.1) takes the standard deviation of z/|z| of each channel: "if the output z
    has a zero-mean isotropic Gaussian distribution, [...] the std of z/|z| is 1/sqrt(d)". This
    function returns its mean over the channels, times sqrt(d).

    Args:
        z: Projections (B, d). With several processes, each passes its own part of the batch.

    Returns:
        A scalar that is equal on all processes.
    """
    unit_z = normalize(z.float(), dim=1)
    std = _std_over_processes(unit_z)  # (d,)
    return std.mean() * z.shape[1] ** 0.5


def _std_over_processes(x: Tensor) -> Tensor:
    """Return the standard deviation (d,) of the rows (B, d) of all processes."""
    if distributed.world_size() == 1:
        return x.std(dim=0)
    n = len(x) * distributed.world_size()
    # In float32, the difference below would lose digits.
    moments = torch.stack([x.double().mean(0), x.double().square().mean(0)])
    mean, mean_square = distributed.all_reduce_mean(moments)
    variance = (mean_square - mean.square()).clamp(min=0) * n / (n - 1)
    return variance.sqrt().float()
