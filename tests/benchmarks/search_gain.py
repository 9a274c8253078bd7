"""Measure what a search gains over the settings that it starts from, on images it has not seen.

    python tests/benchmarks/search_gain.py --folder runs/gain --studies 3 --trials 20 \
        --flags "--train-images 5000 --backbone resnet10 --width 16 --epochs 20"

Each study is a search with its own seed. Its best settings, the settings of the flags, and these
again for as many epochs more as the search has trained, are then trained with another seed. kNN
accuracy is that of the test images, which the search does not use. A killed measurement continues
with the same command. `--trials 0` prints the table alone.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from simsiam.commands.sweep import start_process
from simsiam.commands.tuning.plan import Plan, make_plan
from simsiam.commands.tuning.result import final_settings, read_study
from simsiam.commands.tuning.study import Study
from simsiam.commands.tuning.values import scale_schedule
from simsiam.config.commands import MAIN, Pretrain, Search
from utils.cli import parse
from utils.filesystem import write_json
from utils.run_dir import RunDirectory
from utils.settings import from_settings

FINAL_SEED = 100  # study N is measured with seed FINAL_SEED + N, which no trial has
ARMS = {
    "given": "the settings of the flags",
    "best": "the best settings of the search",
    "longer": "the settings of the flags, trained longer by the epochs of the search",
}


def search(flags: Sequence[str], seed: int) -> tuple[Plan, Study, int]:
    """Run a search, or what is left of it.

    Returns:
        Its plan, its study, and the epochs of a trial.
    """
    subprocess.run([sys.executable, str(MAIN), "search", *flags], check=True)
    plan = make_plan(parse(Search, list(flags), "search_gain.py"))
    study = Study(plan.config.run_dir, plan.config.search.storage, seed)
    return plan, study, int(study.facts()["trial_epochs"])


def count_epochs(study: Study) -> int:
    """Return how many epochs the trials of a study have trained together."""
    epochs = 0
    for trial in study.trials():
        epochs += max(trial.intermediate_values, default=0)
    return epochs


def make_arms(plan: Plan, study: Study, trial_epochs: int) -> dict[str, dict[str, Any]]:
    """Return the settings of the runs that are compared."""
    record = read_study(plan, study, trial_epochs)
    if record.best is None or record.start is None:
        raise SystemExit(f"{plan.config.run_dir}: no trial was trained to its end")
    planned = plan.base["epochs"]
    longer = planned + count_epochs(study)
    given = final_settings(record.start, plan)
    schedule = scale_schedule(given["image_schedule"], longer / planned)
    return {
        "given": given,
        "best": final_settings(record.best, plan),
        "longer": {**given, "epochs": longer, "image_schedule": schedule},
    }


def train(settings: dict[str, Any], folder: Path, name: str, seed: int) -> dict[str, Any]:
    """Train a run, unless that is done already, and return its summary."""
    settings = {
        **settings,
        "save_dir": str(folder),
        "exp_name": name,
        "seed": seed,
        "knn_every": settings["epochs"],  # the last epoch is measured
        "pictures_every": 0,
    }
    run = RunDirectory(folder / name)
    if not run.summary.exists():
        with (folder / f"{name}.log").open("a") as output:
            status = start_process(from_settings(Pretrain, settings), None, output).wait()
        if status != 0:
            raise SystemExit(f"{name} ended with status {status}")
    return json.loads(run.summary.read_text())


def measure(folder: Path, flags: Sequence[str], number: int, arms: Sequence[str]) -> dict[str, Any]:
    """Search, train the runs that are compared, and return what came of study `number`."""
    name = f"study_{number}"
    where = ["--save-dir", str(folder), "--exp-name", name, "--seed", str(number)]
    plan, study, trial_epochs = search([*flags, *where], number)
    record = read_study(plan, study, trial_epochs)
    assert record.best is not None and record.start is not None
    row: dict[str, Any] = {
        "study": number,
        "trials": len(record.trials),
        "search_epochs": count_epochs(study),
        "outcomes": [trial.outcome for trial in record.trials],
        "best": record.best.values,
        "best_trial": record.best.score,
        "given_trial": record.start.score,
    }
    for arm, settings in make_arms(plan, study, trial_epochs).items():
        if arm in arms:
            run_name = f"{name}_{arm}"
            if arm == "best" and record.best.is_start:
                run_name = f"{name}_given"  # it has the same settings
            summary = train(settings, folder, run_name, FINAL_SEED + number)
            row[f"{arm}_epochs"] = settings["epochs"]
            row[f"{arm}_kNN"] = summary["kNN_accuracy"]
            print(f"study {number}, {arm}: kNN {summary['kNN_accuracy']:.2f} %", flush=True)
    return row


def describe(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table: kNN accuracy of test images after each kind of run."""
    lines = ["| trained with | epochs | kNN | each study |", "|---|---|---|---|"]
    for arm, title in ARMS.items():
        done = [row for row in rows if f"{arm}_kNN" in row]
        if not done:
            continue
        values = [row[f"{arm}_kNN"] for row in done]
        epochs = round(statistics.mean(row[f"{arm}_epochs"] for row in done))
        lines.append(f"| {title} | {epochs} | {describe_values(values)} |")
    for arm in ("best", "longer"):
        done = [row for row in rows if f"{arm}_kNN" in row]
        if done:
            gains = [row[f"{arm}_kNN"] - row["given_kNN"] for row in done]
            lines.append(f"| gain of {ARMS[arm]} | | {describe_values(gains)} |")
    return lines


def describe_values(values: Sequence[float]) -> str:
    """Return two cells: mean and standard deviation, and the values."""
    text = f"{statistics.mean(values):.2f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.2f}"
    return f"{text} | {', '.join(f'{value:.2f}' for value in values)}"


def main(args: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder of studies and runs")
    parser.add_argument("--studies", type=int, default=3)
    parser.add_argument("--first-study", type=int, default=0, help="number of the first study")
    parser.add_argument("--trials", type=int, default=20, help="0 for the table alone")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--flags", default="", help="flags of `search`")
    options = parser.parse_args(args)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if options.trials:
        flags = [*shlex.split(options.flags), "--trials", str(options.trials)]
        for number in range(options.first_study, options.first_study + options.studies):
            row = measure(folder, flags, number, options.arms)
            write_json(folder / f"study_{number}.json", row)
    rows = [json.loads(file.read_text()) for file in sorted(folder.glob("study_*.json"))]
    print("\n".join(describe(rows)))


if __name__ == "__main__":
    main(sys.argv[1:])
