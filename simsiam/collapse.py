"""The thresholds at which a representation counts as collapsed.

The warning during training and the report use the same thresholds. Nothing here imports torch.
"""

# Below these z_std, the projections hardly differ.
COLLAPSED_Z_STD = 0.5
COLLAPSED_Z_STD_ALONE = 0.1  # where the effective rank is not measured
COLLAPSED_RANK = 12  # effective rank (RankMe) of the features


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
