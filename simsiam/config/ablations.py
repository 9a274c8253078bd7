"""The paper's ablations: the settings that each changes, and the result in the paper.

The results are top-1 accuracies in percent of a linear classifier on ImageNet after 100 epochs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

# Name -> (the settings that it changes, the result and where the paper reports it).
VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "baseline": ({}, "67.7 (table 1)"),
    "no-stop-grad": ({"stop_grad": False}, "0.1 (figure 2)"),
    "no-predictor": ({"predictor": False}, "0.1 (table 1)"),
    "fixed-predictor": ({"fixed_predictor": True}, "1.5 (table 1)"),
    "constant-predictor-lr": ({"constant_predictor_lr": True}, "68.1 (table 1)"),
    "no-bn": ({"heads_bn": "none"}, "34.6 (table 3)"),
    "hidden-bn": ({"heads_bn": "hidden"}, "67.4 (table 3)"),
    "all-bn": ({"heads_bn": "all"}, "unstable (table 3)"),
    "asymmetric": ({"symmetric": False}, "64.8 (section 4.6)"),
    "batch-64": ({"batch_size": 64}, "66.1 (table 2)"),
    "batch-128": ({"batch_size": 128}, "67.3 (table 2)"),
    "batch-256": ({"batch_size": 256}, "68.1 (table 2)"),
    "batch-512": ({"batch_size": 512}, "68.1 (table 2)"),
    "batch-1024": ({"batch_size": 1024}, "68.0 (table 2)"),
    "batch-2048": ({"batch_size": 2048}, "67.9 (table 2)"),
    "batch-4096": ({"batch_size": 4096}, "64.0 (table 2)"),
}
USUAL = ("baseline", "no-stop-grad", "no-predictor", "no-bn")  # the default of `ablate`
# The settings that make a run an ablation. The batch size is not among them, because runs that
# are no ablations differ in it too.
SWITCHES = {name for changes, _ in VARIANTS.values() for name in changes if name != "batch_size"}


def paper_says(runs: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> list[str | None]:
    """Return the paper's result for each run that is one of the paper's ablations.

    Args:
        runs: the settings of each run.
        defaults: the settings that a run has where it does not say otherwise.

    Returns:
        A text for each run; None for a run that is no ablation of the paper, and for all runs if
        the texts do not differ, since there is nothing to compare then.
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
    for variant_changes, result in VARIANTS.values():
        if variant_changes == changes:
            return result
    return None
