"""The table at the top of the page: a column for each group, a row for each entry of METRICS."""

from collections.abc import Callable, Sequence
from statistics import mean
from typing import NamedTuple

from simsiam.config.ablations import find_paper_results
from simsiam.config.commands import PRETRAIN_DEFAULTS
from simsiam.report.groups import Group, format_mean
from simsiam.report.records import Run, select_numbers

PAPER_RESULT = "paper (%)"  # name of the row with the accuracies that the paper reports
STARTING_ACCURACY = "kNN, starting weights (%)"  # row for runs with --model-path
UNKNOWN = "-"  # cell of a table that has no value


class Metric(NamedTuple):
    """A row of the summary.

    Attributes:
        number_format: format specification of the numbers, such as ".2f".
        measure: returns the value of a run, or None if the run has none.
    """

    number_format: str
    measure: Callable[[Run], float | None]


def last_value(column: str) -> Callable[[Run], float | None]:
    """Return a function for `Metric.measure`: the value of `column` in the last epoch with one."""

    def measure(run: Run) -> float | None:
        values = run.values(column)
        return values[-1] if values else None

    return measure


def best_accuracy(run: Run) -> float | None:
    return max(run.values("kNN_accuracy"), default=None)


def untrained_accuracy(run: Run) -> float | None:
    return None if run.pretrained else run.rows[0].get("kNN_accuracy")


def starting_accuracy(run: Run) -> float | None:
    return run.rows[0].get("kNN_accuracy") if run.pretrained else None


def mean_throughput(run: Run) -> float | None:
    values = run.values("images_per_second")
    return mean(values) if values else None


def total_minutes(run: Run) -> float | None:
    seconds = run.values("seconds")
    return sum(seconds) / 60 if seconds else None


METRICS: dict[str, Metric] = {
    "kNN, last (%)": Metric(".2f", last_value("kNN_accuracy")),
    "kNN, best (%)": Metric(".2f", best_accuracy),
    "kNN, untrained (%)": Metric(".2f", untrained_accuracy),
    STARTING_ACCURACY: Metric(".2f", starting_accuracy),
    "loss": Metric(".4f", last_value("train_loss")),
    "z_std": Metric(".3f", last_value("z_std")),
    "RankMe": Metric(".1f", last_value("rankme")),
    "images/s, mean": Metric(",.0f", mean_throughput),
    "minutes": Metric(".1f", total_minutes),
}
PRINTED_METRICS = ("kNN, last (%)", "loss", "z_std", PAPER_RESULT)  # rows that are also printed


def describe_test_images(runs: Sequence[Run]) -> str:
    """Return on which images the kNN accuracies of the runs were measured."""
    kinds = dict.fromkeys(describe_queries(run) for run in runs)  # each kind once
    text = " or ".join(kinds)
    return f"{text}, depending on the run" if len(kinds) > 1 else text


def describe_queries(run: Run) -> str:
    """Return on which images the kNN accuracies of a run were measured."""
    if run.leave_one_out:
        return f"the {run.leave_one_out} (leave-one-out)"
    if run.settings.get("held_out_images"):
        return "held-out train images"
    return "the test images"


def describe_knn(runs: Sequence[Run]) -> str:
    """Return what the kNN accuracies of the runs are, with k and T of all runs that have them."""
    settings: list[str] = []
    for run in runs:
        numbers = select_numbers(run.settings)
        if "knn_k" in numbers and "knn_t" in numbers:
            settings.append(f"k {numbers['knn_k']:g}, T {numbers['knn_t']:g}")
    description = f"kNN is top-1 on {describe_test_images(runs)}"
    if settings:
        description += f" ({' or '.join(dict.fromkeys(settings))})"  # each setting once
    return description


def summarize_groups(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Return the rows of the table by name. A row has a cell for each group: the mean of its runs.

    Runs that have trained for fewer epochs than others of their group do not count. A cell says so.
    If groups are ablations of the paper, the last row has the results of the paper.
    """
    table: dict[str, list[str]] = {}
    for name, metric in METRICS.items():
        cells: list[str] = []
        for group in groups:
            # A mean over different epochs would be that of no epoch.
            measured = [metric.measure(run) for run in group.furthest_runs()]
            values = [value for value in measured if value is not None]
            text = format_mean(values, metric.number_format)
            cells.append(text + group.describe_share(len(values)))
        if name == STARTING_ACCURACY and not any(run.pretrained for g in groups for run in g.runs):
            continue
        table[name] = cells

    paper_results = find_paper_results(
        [group.runs[0].settings for group in groups], PRETRAIN_DEFAULTS
    )
    if any(paper_results):
        table[PAPER_RESULT] = [result or UNKNOWN for result in paper_results]
    return table
