"""The design of tests/benchmarks/factorial.py, whose docstring explains it, and its effects."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from simsiam.collapse import is_collapsed

# Standard deviation in points of a 20-epoch run over seeds: see docs/benchmarks.md.
DEVIATION = 0.77

BASE = (
    "--backbone resnet10 --width 16 --out-dim 512 --h-dim 128 --knn-every 1000 --pictures-every 0 "
    "--accelerator cpu --precision bf16"
)


class Factor(NamedTuple):
    """A setting with two levels.

    Attributes:
        low, high: its flags at -1 and at +1.
        today: its flags in today's recipe, where these are others than `low`.
    """

    letter: str
    name: str
    low: str
    high: str
    today: str | None = None

    def flags(self, level: int) -> list[str]:
        """Return the flags at -1, at +1, or of today's recipe at 0."""
        if level > 0:
            return self.high.split()
        if level == 0 and self.today is not None:
            return self.today.split()
        return self.low.split()


# `flags_of` adds flags of F that depend on the number of epochs, so that both levels have the same
# number of steps, and the same number of views of each size.
FACTORS = (
    Factor("A", "initialisation", "--conv-init kaiming", "--conv-init torch"),
    Factor("B", "rate", "--learning-rate 0.04", "--learning-rate 0.08", "--learning-rate 0.06"),
    Factor("C", "grayscale", "--grayscale 0.2", "--grayscale 0.1"),
    Factor("D", "BN of the projector's output", "--heads-bn paper", "--heads-bn hidden"),
    Factor("E", "predictor's rate", "--constant-predictor-lr", "--predictor-lr-scale 0.6667"),
    Factor("F", "views", "--views 2 --batch-size 64", "--views 4 --batch-size 32"),
)
LETTERS = "".join(factor.letter for factor in FACTORS)
GENERATORS = {"E": "ABC", "F": "BCD"}
DEFINING_WORDS = ("ABCE", "BCDF", "ADEF")
FIRST_HALF = "ABD"
CONFIRMATION_SEEDS = (201, 202, 203, 204)  # no other run has them

Levels = Mapping[str, int]  # letter -> -1 or +1; in a confirmation 0 (today's recipe) or +1


# ---------------------------------------------------------------- the design


def contrast(levels: Levels, word: str) -> int:
    """Return the product of the signs of the factors in `word`."""
    sign = 1
    for letter in word:
        sign *= levels[letter]
    return sign


def make_design() -> list[Levels]:
    """Return the levels of the 16 runs, in the order in which they are trained."""
    runs = []
    for signs in itertools.product((-1, 1), repeat=4):
        levels = dict(zip("ABCD", signs, strict=True))
        for letter, word in GENERATORS.items():
            levels[letter] = contrast(levels, word)
        runs.append(levels)
    return sorted(runs, key=lambda levels: -contrast(levels, FIRST_HALF))


def find_aliases() -> list[tuple[str, ...]]:
    """Return the groups of two-factor interactions that share a contrast."""
    left = ["".join(pair) for pair in itertools.combinations(LETTERS, 2)]
    groups = []
    while left:
        first = left[0]
        same = {"".join(sorted(set(first) ^ set(word))) for word in DEFINING_WORDS}
        group = tuple(pair for pair in left if pair == first or pair in same)
        groups.append(group)
        left = [pair for pair in left if pair not in group]
    return groups


def flags_of(levels: Levels, epochs: int) -> list[str]:
    """Return the flags of main.py for one run; `epochs` is the length of a run with two views."""
    flags = BASE.split()
    for factor in FACTORS:
        flags += factor.flags(levels[factor.letter])
    if levels["F"] > 0:
        # Half the epochs of twice the views, in batches of half the size.
        epochs = max(1, epochs // 2)
    flags += ["--epochs", str(epochs)]
    phases = [(16, epochs * 7 // 10), (24, epochs * 2 // 10)]  # the rest has 32 pixels
    schedule = [f"{pixels}:{count}" for pixels, count in phases if count]
    if schedule:
        flags += ["--image-schedule", *schedule]
    return flags


# ---------------------------------------------------------------- effects


def estimate_effects(
    results: Sequence[Mapping[str, Any]], words: Sequence[str]
) -> list[tuple[float, float]] | None:
    """Fit accuracy = mean + the sum of contrasts by least squares.

    Returns:
        (effect, standard error) of each word in points. An effect is the mean at +1 minus the mean
        at -1. Its standard error follows from DEVIATION. None if the runs do not determine them.
    """
    x = np.array([[1, *(contrast(row["levels"], word) for word in words)] for row in results])
    y = np.array([row["kNN_accuracy"] for row in results])
    if len(y) == 0 or np.linalg.matrix_rank(x) < x.shape[1]:
        return None
    inverse = np.linalg.inv(x.T @ x)
    coefficients = inverse @ x.T @ y
    errors = DEVIATION * np.sqrt(np.diag(inverse))
    return [(2 * float(b), 2 * float(e)) for b, e in zip(coefficients[1:], errors[1:], strict=True)]


def lenth_error(effects: Sequence[float]) -> float:
    """Return the pseudo standard error of Lenth 1989, which treats small effects as noise."""
    sizes = np.abs(effects)
    first_estimate = 1.5 * np.median(sizes)
    small = sizes[sizes <= 2.5 * first_estimate]
    return float(1.5 * np.median(small))


def describe_results(results: Mapping[int, Mapping[str, Any]]) -> str:
    """Return the table of finished runs, main effects, and interactions with their aliases."""
    lines = ["run  " + "  ".join(LETTERS) + "   kNN %   loss    z_std  rankme  minutes"]
    for number, row in results.items():
        signs = "  ".join("+" if row["levels"][letter] > 0 else "-" for letter in LETTERS)
        collapse = "  COLLAPSED" if has_collapsed(row) else ""
        minutes = row["seconds"] / 60 if row.get("seconds") else None
        columns = [
            f"{number:3}",
            signs,
            f"{row['kNN_accuracy']:6.2f}",
            _format(row.get("train_loss"), 6, 3),
            _format(row.get("z_std"), 5, 3),
            _format(row.get("rankme"), 6, 1),
            _format(minutes, 7, 1),
        ]
        lines.append("  ".join(columns) + collapse)
    good = [row for row in results.values() if not has_collapsed(row)]
    collapsed = [number for number, row in results.items() if has_collapsed(row)]
    lines.append(f"\n{len(results)} of {len(make_design())} runs are finished.")
    if collapsed:
        lines.append(f"Runs {collapsed} have collapsed. They are left out of the effects below.")
    mains = estimate_effects(good, LETTERS)
    if mains is None:
        return "\n".join([*lines, "They do not determine the main effects yet: the first 8 would."])
    lines.append(
        f"\nMain effects in points of kNN accuracy; one run has a deviation of {DEVIATION}:"
    )
    for factor, (effect, error) in zip(FACTORS, mains, strict=True):
        levels = f"{factor.low} -> {factor.high}"
        lines.append(f"  {factor.letter}  {effect:+6.2f} +- {error:.2f}  {factor.name}: {levels}")
    groups = find_aliases()
    words = [*LETTERS, *(group[0] for group in groups)]
    both = estimate_effects(good, words)
    if both is None:
        lines.append("Interactions of two factors are printed when all runs are finished.")
        return "\n".join(lines)
    lines.append("\nInteractions of two factors, each the sum of its aliases:")
    for group, (effect, error) in zip(groups, both[len(LETTERS) :], strict=True):
        lines.append(f"  {' = '.join(group):12}  {effect:+6.2f} +- {error:.2f}")
    pseudo = lenth_error([effect for effect, _ in both])
    lines.append(f"Standard error estimated from these {len(both)} effects (Lenth): {pseudo:.2f}")
    lines.append("Every main effect is an alias of interactions of three factors.")
    return "\n".join(lines)


def _format(value: float | None, width: int, digits: int) -> str:
    """Return a value for a column; "-" if it is not known, as of runs whose folders are lost."""
    text = "-" if value is None else f"{value:.{digits}f}"
    return f"{text:>{width}}"


def has_collapsed(row: Mapping[str, Any]) -> bool:
    z_std = row.get("z_std")
    return z_std is not None and is_collapsed(z_std, row["rankme"])


# ---------------------------------------------------------------- the confirmation


def make_confirmation(letters: str) -> list[tuple[int, Levels]]:
    """Return (seed, levels) of eight runs: today's recipe and the recipe that won, in turn.

    Args:
        letters: the factors whose higher level won.
    """
    runs: list[tuple[int, Levels]] = []
    for seed in CONFIRMATION_SEEDS:
        for winners in ("", letters):
            levels = {letter: 1 if letter in winners else 0 for letter in LETTERS}
            runs.append((seed, levels))
    return runs


def name_cell(levels: Levels) -> str:
    """Return the letters of the factors that are not as today: "B" at +1, "b" at -1."""
    letters = [x if levels[x] > 0 else x.lower() for x in LETTERS if levels[x] != 0]
    return "".join(letters)


def describe_confirmation(results: Mapping[int, Mapping[str, Any]]) -> str:
    """Return the table of all recipes: accuracies, mean and standard deviation over seeds."""
    by_cell: dict[str, list[float]] = {}
    for row in results.values():
        by_cell.setdefault(name_cell(row["levels"]), []).append(row["kNN_accuracy"])
    lines: list[str] = []
    means: list[float] = []
    for cell, accuracies in sorted(by_cell.items()):
        name = f"with {cell}" if cell else "today's recipe"
        values = ", ".join(f"{accuracy:.2f}" for accuracy in accuracies)
        mean = float(np.mean(accuracies))
        deviation = f"{np.std(accuracies, ddof=1):.2f}" if len(accuracies) > 1 else "-"
        lines.append(f"{name:16} {mean:6.2f} +- {deviation:5} ({values})")
        means.append(mean)
    if len(means) == 2:
        lines.append(f"difference       {means[1] - means[0]:+6.2f}")
    return "\n".join(lines)
