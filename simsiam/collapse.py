"""The thresholds at which a representation counts as collapsed, or as low in rank.

The warnings during training and the report use the same thresholds. Nothing here imports torch.
"""

from collections.abc import Sequence

# Below these z_std, the projections hardly differ.
COLLAPSED_Z_STD = 0.5
COLLAPSED_Z_STD_ALONE = 0.1  # where the effective rank is not measured
COLLAPSED_RANK = 12  # effective rank (RankMe) of the features

# Below the lower one of these effective ranks, a run learns next to nothing, whatever its z_std is.
# docs/experiments.md has the runs that show it.
LOST_RANK = 8
LOST_RANK_FRACTION = 1 / 16  # of the number of features or images, which bounds the rank
LOST_RANK_MEASUREMENTS = 2  # in a row, so that a short dip does not count


def is_collapsed(z_std: float, rankme: float | None) -> bool:
    """Return whether the projections hardly differ and the effective rank of the features is low.

    Healthy runs stay above a z_std of 0.9. Without BN in the heads z_std comes down to 0.3, but
    features of dozens of dimensions have not collapsed.

    Args:
        z_std: standard deviation of the normalised projections, scaled to be near 1.
        rankme: effective rank of the features; None if it is not measured (yet), in which case
            z_std alone decides, by a lower threshold.
    """
    if rankme is None:
        return z_std < COLLAPSED_Z_STD_ALONE
    return z_std < COLLAPSED_Z_STD and rankme < COLLAPSED_RANK


def lost_rank_threshold(num_features: int, num_images: int) -> float:
    """Return the effective rank below which the features are low in rank.

    Args:
        num_features, num_images: how many features of how many images the rank is measured on.
    """
    return min(LOST_RANK, LOST_RANK_FRACTION * min(num_features, num_images))


def has_lost_rank(ranks: Sequence[float], threshold: float) -> bool:
    """Return whether the features have used few dimensions in the latest measurements.

    Too high a weight decay brings that about while z_std stays near 1. It is a hint and no proof:
    the rank may rise again when the learning rate falls.

    Args:
        ranks: effective rank after each epoch in which it was measured.
        threshold: see `lost_rank_threshold`.
    """
    if len(ranks) < LOST_RANK_MEASUREMENTS:
        return False
    return all(rank < threshold for rank in ranks[-LOST_RANK_MEASUREMENTS:])
