"""What a run is to be, and what is in its folder already: said before torch is imported."""

import os

from simsiam.config.commands import (
    CUSTOM_DATASETS,
    Pretrain,
    describe_differences,
    settings_to_keep,
)
from utils.console import plural
from utils.errors import require
from utils.run_dir import RunDirectory


def check_folder(config: Pretrain, run: RunDirectory) -> str:
    """The state of the run's folder: new, unfinished or finished; UserError if it holds another run, or none."""
    name = str(run.path)
    require(
        name.encode(errors="replace").decode() == name,
        f"--save-dir, --exp-name or --version: {name!a} is not UTF-8: give another name",
    )
    state, data = run.state(), config.data
    if state != "new" and not config.run.overwrite:
        changed, weights = (
            describe_differences(run.settings(), settings_to_keep(config)),
            f"--model-path {run.path}",
        )
        require(
            not (len(changed) == 1 and changed[0].startswith("--epochs ")),
            f"{run.path} holds a run of {run.settings().get('epochs')} epochs, for which its learning rate was planned "
            f"to fall to 0: it has no further ones. A new run may begin with its weights: {weights} --exp-name NAME",
        )
        require(
            not changed,
            f"{run.path} holds a run with other settings ({'; '.join(changed)}): "
            "give another --exp-name, or --overwrite to start anew",
        )
        began = run.settings().get("data_dir") or ""
        require(
            state == "unfinished"
            or data.dataset not in CUSTOM_DATASETS
            or os.path.realpath(began) == os.path.realpath(data.path),
            f"{run.path} holds a finished run on the images in {began}: give another --exp-name, or --overwrite",
        )
    if data.dataset == "folder":
        root = data.path.resolve()
        root = root / "train" if (root / "train").is_dir() else root
        why = f"lies in --data-dir {data.data_dir}, where its pictures would be taken for images"
        require(
            root not in run.path.resolve().parents, f"{run.path} {why}: give another --save-dir"
        )
    return state


def announce(config: Pretrain) -> bool:
    """Print what is asked for, in the first process of a run; whether there is anything to do."""
    run, optimizer, network = RunDirectory(config.run_dir), config.optimizer, config.network
    finished = check_folder(config, run) == "finished" and not config.run.overwrite
    parts = f" in {optimizer.accumulate} parts" * (optimizer.accumulate > 1)
    lines = [
        f"SimSiam on {config.data.dataset}: {network.backbone} of width {network.width}, "
        + plural(optimizer.epochs, "epoch"),
        f"  training  {optimizer.batch_size} images{parts} x {config.method.views} views in a step",
        f"            learning rate {optimizer.peak_rate:g} after {optimizer.warmup:g} epochs of warm-up",
        f"  run       {run.path}",
    ]
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID")  # by torchrun or SLURM
    starts_others = (config.device.devices or 1) > 1 and rank is None and not config.run.dry_run
    if rank in (None, "0") and (finished or not starts_others):
        again = f"{run.path} is finished already. --overwrite would start anew."
        print(again if finished else "\n".join(lines), flush=True)
    return not finished
