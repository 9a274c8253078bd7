"""By which images, or by which measure, a search judges its trials."""

from dataclasses import replace
from typing import NamedTuple

from simsiam.commands.tuning.objective import Kind
from simsiam.config.commands import Search
from simsiam.data import list_train_images
from simsiam.data.dataset import ImageDataset
from simsiam.data.knn_labels import can_leave_one_out, choose_comparison, knn_unavailable_reason
from utils.errors import require

# Train images that are held out to judge trials: this share of them, within these numbers. With
# fewer images, nothing is held out: they are compared with each other.
HELD_OUT_SHARE = 0.1
MIN_HELD_OUT = 200
MAX_HELD_OUT = 5000

# With fewer labels, chance decides about the accuracy: with 50, its standard error is 7 points.
MIN_LABELS = 50


class Judge(NamedTuple):
    """What a trial is judged by.

    Attributes:
        objective: kNN accuracy or RankMe.
        queries: number of images whose kNN accuracy is measured; 0 for RankMe.
        query_source: what messages call these images.
        leave_one_out: whether they are compared with each other.
    """

    objective: Kind
    queries: int = 0
    query_source: str = ""
    leave_one_out: bool = False

    @property
    def uses_test_images(self) -> bool:
        """Whether the accuracy of the test images is no test result any more."""
        return self.query_source == "test images"


def hold_out_images(config: Search) -> Search:
    """Return the settings with the images by which trials are judged, instead of test images.

    If there are enough labelled train images, a part of them is held out. If there are few, or if
    only some train images have labels, the trials have no test images, so that kNN compares the
    train images that have labels with each other. If there are no such labels, nothing changes.
    """
    if config.search.objective == "rankme" or config.data.held_out_images:
        return config
    train = list_train_images(config.data)
    held_out = round(HELD_OUT_SHARE * len(train))
    if train.labelled and held_out >= MIN_HELD_OUT:
        data = replace(config.data, held_out_images=min(held_out, MAX_HELD_OUT), test_images=None)
        return replace(config, data=data)
    if can_leave_one_out(train) and has_enough_labels(train, config):
        return replace(config, data=replace(config.data, test_images=0))
    return config


def has_enough_labels(split: ImageDataset, config: Search) -> bool:
    """Return whether the accuracy of a split's labelled images can judge trials."""
    if split.labelled or config.search.objective == "knn":
        return True
    return len(split.labelled_indices) >= MIN_LABELS


def choose_judge(config: Search, train: ImageDataset, test: ImageDataset) -> Judge:
    """Return by what trials are judged.

    Args:
        config: that `hold_out_images` has returned.
        train, test: the splits that the trials have.

    Raises:
        UserError: `--objective knn` needs labels that the images do not have.
    """
    wanted = config.search.objective
    reason = knn_unavailable_reason(train, test)
    require(
        wanted != "knn" or reason is None,
        f"--objective knn: kNN accuracy cannot be measured ({reason}). Drop the flag.",
    )
    comparison = choose_comparison(train, test)
    if wanted == "rankme" or comparison is None:
        return Judge("rankme")
    if not has_enough_labels(comparison.split, config):
        return Judge("rankme")
    return Judge("knn", len(comparison), comparison.name, comparison.leave_one_out)


def describe_judge(judge: Judge) -> str:
    """Return the end of the sentence "The search judges trials ..."."""
    if judge.objective == "rankme":
        return "by RankMe, the effective rank of the features: no labels are used"
    if not judge.leave_one_out:
        text = f"by kNN accuracy on {judge.queries:,} {judge.query_source}"
    else:
        text = f"by kNN accuracy among {judge.queries:,} {judge.query_source} (leave-one-out)"
    if judge.uses_test_images:
        return f"{text}: the train images have too few labels. It is no test result any more"
    return f"{text}; test images are not used"
