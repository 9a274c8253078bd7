"""What makes a trial good: a score from the rows of its metrics.jsonl.

With labels, the score is kNN accuracy in percent on images that were held out from training.
Without labels, it is RankMe, the effective rank of the features (Garrido et al. 2023,
arXiv 2210.02885). A high rank alone is no proof of learning: an untrained network has one too. So
the score falls if the projections hardly differ, and if the loss has hardly fallen.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from simsiam.collapse import COLLAPSED_Z_STD, is_collapsed

Kind = Literal["knn", "rankme"]

COLLAPSED_SCORE = 0.0  # below every score of a healthy trial
# The loss is a negative cosine: 0 for views that have nothing in common, -1 for equal ones.
MIN_AGREEMENT = 0.5  # of the views of an image, without which the rank counts less
SMOOTHING = 0.5  # weight of the latest epoch in the mean of the loss

UNITS = {"knn": "kNN accuracy in %", "rankme": "score by RankMe"}

Row = Mapping[str, float]


def score_rows(rows: Sequence[Row], kind: Kind) -> float | None:
    """Return the score after the last of the rows; None if it was not measured in that epoch.

    Args:
        rows: of metrics.jsonl, from the first epoch on.
    """
    row = rows[-1]
    if has_collapsed(rows):
        return COLLAPSED_SCORE
    if kind == "knn":
        return row.get("kNN_accuracy")
    rank = row.get("rankme")
    if rank is None:
        return None
    spread = min(1.0, row["z_std"] / COLLAPSED_Z_STD)
    agreement = min(1.0, max(0.0, -smooth_loss(rows) / MIN_AGREEMENT))
    return rank * spread * agreement


def smooth_loss(rows: Sequence[Row]) -> float:
    """Return the exponential mean of the loss over the epochs."""
    smoothed = rows[0]["train_loss"]
    for row in rows[1:]:
        smoothed += SMOOTHING * (row["train_loss"] - smoothed)
    return smoothed


def has_collapsed(rows: Sequence[Row]) -> bool:
    """Return whether the representation has collapsed in the latest epoch and the one before.

    In its first epoch a healthy run may look as if it had.
    """
    if len(rows) < 2:
        return False
    return all(is_collapsed(row["z_std"], row.get("rankme")) for row in rows[-2:])


def standard_error(accuracy: float, images: int) -> float:
    """Return by how much an accuracy in percent varies with the choice of the images."""
    share = min(max(accuracy / 100, 0.0), 1.0)
    return 100 * math.sqrt(share * (1 - share) / max(1, images))
