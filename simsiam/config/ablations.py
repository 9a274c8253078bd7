"""The paper's ablations: what each changes, and what the paper reports of it (ImageNet, linear, 100 epochs)."""

from collections.abc import Mapping, Sequence
from typing import Any

# The settings that it changes; its top-1 in percent, or a word, and where the paper says it.
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
}
BATCHES = {64: 66.1, 128: 67.3, 256: 68.1, 512: 68.1, 1024: 68.0, 2048: 67.9, 4096: 64.0}  # table 2
VARIANTS |= {f"batch-{n}": ({"batch_size": n}, f"{top1} (table 2)") for n, top1 in BATCHES.items()}
USUAL = ("baseline", "no-stop-grad", "no-predictor", "no-bn")
SWITCHES = {name for changes, _ in VARIANTS.values() for name in changes} - {"batch_size"}


def paper_says(runs: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> list[str | None]:
    """What the paper reports of runs of these settings, where they are its ablations; nothing if they are all alike."""
    batches = {run.get("batch_size") for run in runs}
    said = []
    for run in runs:
        changes = {
            name: run[name] for name in SWITCHES if run.get(name, defaults[name]) != defaults[name]
        }
        if not changes and len(batches) > 1:
            changes = {"batch_size": run.get("batch_size")}
        said.append(
            next((paper for variant, paper in VARIANTS.values() if variant == changes), None)
        )
    return said if len(set(said)) > 1 else [None] * len(runs)
