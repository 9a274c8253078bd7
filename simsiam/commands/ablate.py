"""The command `ablate`: the same run without one part or another, and the report of all."""

from simsiam.commands.sweep import expand_seeds, run_all
from simsiam.config.ablations import VARIANTS
from simsiam.config.commands import DEFAULTS, Ablate, Pretrain
from utils.cli import flatten, from_settings


def ablate(config: Ablate) -> None:
    """Train each variant, for each seed, in a folder of its own, and compare them."""
    run_all(
        {name: run for variant in config.ablation.variants for name, run in expand_variant(config, variant).items()}
    )


def expand_variant(config: Ablate, variant: str) -> dict[str, Pretrain]:
    """The runs of one variant, one for each seed: all settings but its changes are the baseline's."""
    shared = {name: value for name, value in flatten(config).items() if name in DEFAULTS}
    changes = {"save_dir": str(config.run_dir), "exp_name": variant, "version": None, **VARIANTS[variant].changes}
    if "batch_size" in changes:  # the rate follows it, as in the paper
        changes["learning_rate"] = config.optimizer.peak_rate * changes["batch_size"] / config.optimizer.batch_size
    runs = expand_seeds(from_settings(Pretrain, shared | changes))
    return {f"{variant}, seed {run.run.seed}" if config.run.seeds else variant: run for run in runs}
