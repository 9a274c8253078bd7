"""What a run is to be, and what is in its folder already: said before torch is imported."""

import os
from pathlib import Path

from simsiam.config.commands import OWN, Pretrain, describe_differences, settings_to_keep
from utils.console import plural
from utils.errors import UserError, check
from utils.run_dir import RunDirectory

PROCESS = {"RANK", "SLURM_PROCID"}  # environment variables with the number of a process, by torchrun or SLURM


def check_folder(config: Pretrain, run: RunDirectory) -> str:
    """The state of the run's folder: new, unfinished or finished.

    Raises:
        UserError: it holds a run with other settings, or something that is not a run.
    """
    state, overwrite = run.state(), config.run.overwrite
    if state != "new" and not overwrite:
        changed = describe_differences(run.settings(), settings_to_keep(config))
        if len(changed) == 1 and changed[0].startswith("--epochs "):
            raise UserError(
                f"{run.path} holds a run of {run.settings()['epochs']} epochs, for which its learning rate was planned "
                f"to fall to 0: it has no further ones. A new run may begin with its weights: "
                f"--model-path {run.path} --exp-name NAME"
            )
        check(
            not changed,
            f"{run.path} holds a run with other settings ({'; '.join(changed)}): "
            "give another --exp-name, or --overwrite to start anew",
        )
    if state == "finished" and not overwrite and config.data.dataset in OWN:
        began = run.settings().get("data_dir") or ""
        check(
            os.path.realpath(began) == os.path.realpath(os.path.expanduser(config.data.data_dir)),
            f"{run.path} holds a finished run on the images in {began}: give another --exp-name, or --overwrite",
        )
    if config.data.dataset == "folder":
        root = Path(config.data.data_dir).expanduser().resolve()
        root = root / "train" if (root / "train").is_dir() else root
        check(
            root not in run.path.resolve().parents,
            f"{run.path} lies in --data-dir {config.data.data_dir}, where its pictures would be taken for images: "
            "give another --save-dir",
        )
    return state


def announce(config: Pretrain, first: bool) -> bool:
    """Print what is asked for, in the `first` process of a run; whether there is anything to do.

    Raises UserError as `check_folder`.
    """
    run, optimizer, network = RunDirectory(config.run_dir), config.optimizer, config.network
    finished = check_folder(config, run) == "finished" and not config.run.overwrite
    parts = f" in {optimizer.accumulate} parts" * (optimizer.accumulate > 1)
    epochs = plural(optimizer.epochs, "epoch")
    lines = [
        f"SimSiam on {config.data.dataset}: {network.backbone} of width {network.width}, {epochs}",
        f"  training  {optimizer.batch_size} images{parts} x {config.method.views} views in a step",
        f"            learning rate {optimizer.peak_rate:g} after {optimizer.warmup:g} epochs of warm-up",
        f"  run       {run.path}",
    ]
    starts_others = (config.device.devices or 1) > 1 and not PROCESS & os.environ.keys() and not config.run.dry_run
    if first and (finished or not starts_others):
        again = f"{run.path} is finished already. --overwrite would start anew."
        print(again if finished else "\n".join(lines), flush=True)
    return not finished
