"""The loss of SimSiam (arXiv 2011.10566, equation 1 and Algorithm 1)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from utils import distributed


def D(p: Tensor, z: Tensor, stop_grad: bool = True) -> Tensor:
    """Negative cosine similarity of predictions p and projections z, (B, d) each: the mean over the batch, -1 to 1.

    No gradient flows into z unless `stop_grad` is False.
    """
    if stop_grad:
        z = z.detach()
    wide = torch.promote_types(p.dtype, torch.float32)  # bf16 would round a cosine to 2 digits
    return -cosine_similarity(p.to(wide), z.to(wide), dim=1).mean()


def siamese_loss(
    p: Sequence[Tensor], z: Sequence[Tensor], stop_grad: bool = True, symmetric: bool = True
) -> Tensor:
    """L = D(p1, z2)/2 + D(p2, z1)/2 for two views (B, d); for V views, each p_i against the mean of the other z_j.

    The generalisation is FastSiam's (Pototzky et al. 2022, DAGM GCPR). Not symmetric: D(p1, z2) alone (section 4.6).
    """
    views = range(len(z))
    predicted = views if symmetric else views[:1]
    targets = [torch.stack([z[j] for j in views if j != i]).mean(0) for i in predicted]
    return torch.stack([D(p[i], targets[i], stop_grad) for i in predicted]).mean()


@torch.no_grad()
def z_std(z: Tensor) -> Tensor:
    """How far the projections (B, d) are from collapse: the mean over channels of std(z / |z|), times sqrt(d).

    0 when collapsed, 1 when healthy: "if the output z has a zero-mean isotropic Gaussian distribution, [...] the std
    of z/|z| is 1/sqrt(d)" (section 4.1). With several processes, of the whole batch.
    """
    unit = normalize(z.float(), dim=1)
    if distributed.world_size() == 1:
        spread = unit.std(dim=0)
    else:
        n = len(z) * distributed.world_size()
        mean, square = distributed.all_reduce_mean(
            torch.stack([unit.double().mean(0), unit.double().square().mean(0)])
        )
        spread = ((square - mean.square()).clamp(min=0) * n / (n - 1)).sqrt().float()
    return spread.mean() * z.shape[1] ** 0.5
