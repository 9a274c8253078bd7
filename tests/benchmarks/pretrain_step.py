"""Measure the training step of `main.py` for given flags, compiled as `main.py` compiles it.

Run `python tests/benchmarks/pretrain_step.py "--views 4 --batch-size 128" "--batch-size 512"`. Each
argument has the flags of one measurement. The step runs in Lightning's loop, on the images that the
flags name. A result is printed as soon as it is known, and added to --output as a line of JSON.
"""

import argparse
import json
import shlex
import time
from pathlib import Path
from typing import Any

import torch
from step import GPU, WARMUP_STEPS, train_with_lightning
from timing import DEVICE

import main as program
from simsiam.commands.build_model import build_model
from simsiam.commands.fit import fit_to_data
from simsiam.commands.pretrain import load_data
from simsiam.config.commands import Pretrain
from utils.cli import parse
from utils.device import choose_precision

MAX_STEPS = 300 if GPU else 4  # that are measured


def measure(flags: list[str]) -> dict[str, Any]:
    """Return the seconds of a step, and of an epoch's steps, with these flags of main.py."""
    # The measurement is shorter than a warm-up, and a schedule must not end in it.
    config = parse(Pretrain, [*flags, "--warmup-epochs", "0"], "pretrain_step.py")
    accelerator = "gpu" if GPU else "cpu"
    data = load_data(config, accelerator, config.data.image_cache)
    config = fit_to_data(config, data)
    model = build_model(config, data)
    if GPU and config.device.compile:
        model.compile_networks(cuda_graphs=True)
    steps_per_epoch = len(data.train) // config.optimizer.images_per_step
    steps = max(1, min(MAX_STEPS, steps_per_epoch - WARMUP_STEPS))
    precision = choose_precision(config.device.precision, "auto")
    step_seconds = train_with_lightning(model, steps, precision, datamodule=data) / steps
    return {
        "views": data.view_maker.views_in_all,
        "batch_size": config.optimizer.images_per_step,
        "step_seconds": step_seconds,
        "steps_per_epoch": steps_per_epoch,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("flags", nargs="+", help="flags of main.py, in one argument")
    parser.add_argument("--output", type=Path, help="file to which the results are added")
    parser.add_argument(
        "--started", type=float, default=time.time(), help="Unix time of the start of this process"
    )
    args = parser.parse_args()
    program.silence_libraries()
    begin = args.started
    for flags in args.flags:
        result = measure(shlex.split(flags))
        # Everything but the measured steps: imports, images, compilation and warm-up.
        result["startup_seconds"] = time.time() - begin
        begin = time.time()
        print(
            f"{result['views']} views x {result['batch_size']} images on {DEVICE.type}: "
            f"{1000 * result['step_seconds']:.2f} ms a step "
            f"(first result after {result['startup_seconds']:.0f} s, torch {torch.__version__})",
            flush=True,
        )
        if args.output:
            with args.output.open("a") as file:
                file.write(json.dumps(result) + "\n")
        torch.compiler.reset()


if __name__ == "__main__":
    main()
