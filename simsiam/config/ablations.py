"""The paper's ablations: the settings that each changes, and the result in the paper.

The results are top-1 accuracies in percent of a linear classifier on ImageNet after 100 epochs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from utils.settings import to_flags


class Variant(NamedTuple):
    """An ablation of the paper.

    Attributes:
        changes: the settings that differ from those of the baseline.
        paper_result: accuracy in percent, and the place where the paper reports it.
    """

    changes: dict[str, Any]
    paper_result: str


VARIANTS = {
    "baseline": Variant({}, "67.7 (table 1)"),
    "no-stop-grad": Variant({"stop_grad": False}, "0.1 (figure 2)"),
    "no-predictor": Variant({"predictor": False}, "0.1 (table 1)"),
    "fixed-predictor": Variant({"fixed_predictor": True}, "1.5 (table 1)"),
    "constant-predictor-lr": Variant({"constant_predictor_lr": True}, "68.1 (table 1)"),
    "no-bn": Variant({"heads_bn": "none"}, "34.6 (table 3)"),
    "hidden-bn": Variant({"heads_bn": "hidden"}, "67.4 (table 3)"),
    "all-bn": Variant({"heads_bn": "all"}, "unstable (table 3)"),
    "asymmetric": Variant({"symmetric": False}, "64.8 (section 4.6)"),
    "batch-64": Variant({"batch_size": 64}, "66.1 (table 2)"),
    "batch-128": Variant({"batch_size": 128}, "67.3 (table 2)"),
    "batch-256": Variant({"batch_size": 256}, "68.1 (table 2)"),
    "batch-512": Variant({"batch_size": 512}, "68.1 (table 2)"),
    "batch-1024": Variant({"batch_size": 1024}, "68.0 (table 2)"),
    "batch-2048": Variant({"batch_size": 2048}, "67.9 (table 2)"),
    "batch-4096": Variant({"batch_size": 4096}, "64.0 (table 2)"),
}
DEFAULT_VARIANTS = ("baseline", "no-stop-grad", "no-predictor", "no-bn")
# The settings that make a run an ablation. The batch size is not among them, because runs that
# are not ablations differ in it too.
SWITCHES = {name for variant in VARIANTS.values() for name in variant.changes} - {"batch_size"}

# Settings of the predictor's learning rate, which has no effect on a predictor that is not trained.
PREDICTOR_RATE = ("constant_predictor_lr", "predictor_lr_scale")


def describe_unused_settings(
    settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> str | None:
    """Return which settings have no effect because the predictor is ablated; None if none.

    They are not refused: `ablate` gives all its variants the same flags.

    Args:
        settings: of a run.
        defaults: the value of each setting without its flag.
    """
    if not settings["predictor"]:
        reason = "there is no predictor"
        names = ("h_dim", *PREDICTOR_RATE)
    elif settings["fixed_predictor"]:
        reason = "the predictor is fixed"
        names = PREDICTOR_RATE
    else:
        return None
    unused = {name: settings[name] for name in names if settings[name] != defaults[name]}
    if not unused:
        return None
    return f"not used, because {reason}: {' '.join(to_flags(unused))}"


def find_paper_results(
    runs: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> list[str | None]:
    """Return the paper's result for each run that is one of the paper's ablations.

    Args:
        runs: the settings of each run.
        defaults: the value of each setting that a run does not contain.

    Returns:
        A result for each run; None for a run that is not one of the paper's ablations. If all
        results are the same, there is nothing to compare, and all are None.
    """
    batch_sizes = {run.get("batch_size") for run in runs}
    results: list[str | None] = []
    for run in runs:
        changes: dict[str, Any] = {}
        for name in SWITCHES:
            if run.get(name, defaults[name]) != defaults[name]:
                changes[name] = run[name]
        if not changes and len(batch_sizes) > 1:  # the runs are compared by their batch sizes
            changes["batch_size"] = run.get("batch_size")
        results.append(_find_result(changes))
    if len(set(results)) == 1:
        return [None] * len(runs)
    return results


def _find_result(changes: Mapping[str, Any]) -> str | None:
    """Return the paper's result for a run with exactly these changes."""
    for variant in VARIANTS.values():
        if variant.changes == changes:
            return variant.paper_result
    return None
