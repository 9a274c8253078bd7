"""Measure what a search relies on: how well short runs, and RankMe, order settings.

    python tests/benchmarks/search_ranks.py --folder runs/ranks --trials 40 --lengths 4 8 20 \
        --flags "--dataset patterns --backbone resnet10 --width 16"

It draws settings at random from the ranges of `search`, and trains each of them for each length
with its own cosine. A killed measurement continues with the same command. It then prints rank
correlations (Spearman's rho) over the settings, with an interval of 95 % by bootstrap:

- of kNN accuracy at the end of short runs, and in the middle of runs, with that of the longest ones
- of the score without labels, and of its parts, with kNN accuracy in the same run
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).parents[2]))

from simsiam.commands.sweep import start_process
from simsiam.commands.tuning.objective import Row, has_collapsed, score_rows
from simsiam.commands.tuning.plan import Plan, make_plan
from simsiam.commands.tuning.sampler import make_distributions
from simsiam.config.commands import Search
from utils.cli import parse
from utils.run_dir import RunDirectory

RESAMPLES = 2000
RUNGS = (0.25, 0.5)  # of a run, at which trials could be compared


def rank(values: Sequence[float]) -> np.ndarray:
    """Return the rank of each value; equal ones have the mean of their ranks."""
    array = np.asarray(values, dtype=float)
    smaller = (array[None, :] < array[:, None]).sum(1)
    equal = (array[None, :] == array[:, None]).sum(1)
    return smaller + (equal - 1) / 2


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the rank correlation; nan if one of the two does not vary."""
    x = rank(a)
    y = rank(b)
    if x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def describe(name: str, a: Sequence[float], b: Sequence[float]) -> str:
    """Return a row of the table: the correlation, its interval and the number of settings."""
    generator = np.random.default_rng(0)
    resampled = []
    for _ in range(RESAMPLES):
        chosen = generator.integers(0, len(a), len(a))
        resampled.append(spearman([a[i] for i in chosen], [b[i] for i in chosen]))
    rho = spearman(a, b)
    if np.isnan(rho):  # all settings have the same value
        return f"| {name} | - | - | {len(a)} |"
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return f"| {name} | {rho:.2f} | {low:.2f} to {high:.2f} | {len(a)} |"


def draw_values(plan: Plan, trials: int, seed: int) -> list[dict[str, object]]:
    """Return settings at random; the first ones are those of the flags."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    study.enqueue_trial(plan.start_of_space())
    distributions = make_distributions(plan.space)
    return [study.ask(distributions).params for _ in range(trials)]


def train(
    plan: Plan, values: Sequence[dict[str, object]], numbers: range, lengths: Sequence[int]
) -> None:
    """Train each of the settings for each length, unless that is done already.

    Args:
        values: all settings.
        numbers: of those to train.
    """
    logs = plan.config.run_dir
    logs.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        for length in lengths:
            name = f"epochs_{length:03}_{number:03}"
            config = plan.make_trial(dict(values[number]), length, name)
            if RunDirectory(config.run_dir).summary.exists():
                continue
            with (logs / f"{config.run_dir.name}.log").open("a") as output:
                status = start_process(config, None, output).wait()
            print(f"{config.run_dir.name}: exit status {status}", flush=True)


def read(folder: Path, length: int) -> dict[int, Sequence[Row]]:
    """Return the rows of each finished run of a length, by the number of its settings."""
    runs: dict[int, Sequence[Row]] = {}
    for path in sorted(folder.glob(f"epochs_{length:03}_*")):
        run = RunDirectory(path)
        if path.is_dir() and run.summary.exists():
            runs[int(path.name.rsplit("_", 1)[1])] = run.rows()
    return runs


def compare(folder: Path, lengths: Sequence[int]) -> list[str]:
    """Return the table of correlations."""
    runs = {length: read(folder, length) for length in lengths}
    longest = runs[max(lengths)]
    lines = ["| compared over settings | rho | 95 % | n |", "|---|---|---|---|"]
    for length, short in runs.items():
        both = sorted(short.keys() & longest.keys())
        final = [longest[i][-1]["kNN_accuracy"] for i in both]
        title = f"kNN after {max(lengths)} epochs"
        if length != max(lengths):
            ends = [short[i][-1]["kNN_accuracy"] for i in both]
            lines.append(describe(f"kNN of runs of {length} epochs, {title}", ends, final))
        for epoch in sorted({max(2, math.ceil(share * length)) for share in RUNGS}):
            at_rung = [short[i][epoch - 1]["kNN_accuracy"] for i in both]
            text = f"kNN at epoch {epoch} of {length}, {title}"
            lines.append(describe(text, at_rung, final))
    for length, own in runs.items():
        numbers = sorted(own)
        accuracy = [own[i][-1]["kNN_accuracy"] for i in numbers]
        scores = [score_rows(own[i], "rankme") or 0.0 for i in numbers]
        ranks = [own[i][-1].get("rankme", 0.0) for i in numbers]
        losses = [-own[i][-1]["train_loss"] for i in numbers]
        for name, values in (
            ("RankMe with floors", scores),
            ("RankMe alone", ranks),
            ("minus the loss", losses),
        ):
            lines.append(describe(f"{name}, kNN, both after {length} epochs", values, accuracy))
        lost = sum(has_collapsed(own[i]) for i in numbers)
        lines.append(f"| collapsed of those of {length} epochs | {lost} | | {len(numbers)} |")
    return lines


def main(args: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--trials", type=int, default=40, help="0 for the table alone")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4, 8, 20])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--share",
        type=int,
        nargs=2,
        default=(0, 1),
        metavar=("I", "N"),
        help="train every N-th of the settings, from number I on: one of N processes",
    )
    parser.add_argument("--flags", default="", help="flags of `search`, with labelled images")
    options = parser.parse_args(args)
    if options.trials:
        folder = options.folder.resolve()
        where = ["--save-dir", str(folder.parent), "--exp-name", folder.name]
        length = ["--epochs", str(max(options.lengths))]
        flags = [*shlex.split(options.flags), *where, *length]
        plan = make_plan(parse(Search, flags, "search_ranks.py"))
        values = draw_values(plan, options.trials, options.seed)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "values.json").write_text(json.dumps(values, indent=1))
        first, processes = options.share
        train(plan, values, range(first, options.trials, processes), options.lengths)
    print("\n".join(compare(options.folder, options.lengths)))


if __name__ == "__main__":
    main(sys.argv[1:])
