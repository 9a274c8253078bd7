"""The command `ablate`: the same run without one part or another, and the report of what that does."""

from dataclasses import fields, replace

from simsiam.commands.sweep import of_seeds, run_all
from simsiam.config.ablations import VARIANTS
from simsiam.config.commands import Ablate, Pretrain


def ablate(config: Ablate) -> None:
    """Train each variant, for each seed, in a folder of its own, and compare them."""
    run_all({words: run for name in config.variants for words, run in of_variant(config, name).items()})


def of_variant(config: Ablate, name: str) -> dict[str, Pretrain]:
    """The runs of one variant, a run a seed: same data, same seed, same settings but for what it changes."""
    shared = {field.name: getattr(config, field.name) for field in fields(Pretrain)}
    run = Pretrain(**shared | {"save_dir": str(config.run_dir), "exp_name": name, "version": None})
    changes = dict(VARIANTS[name].changes)
    if "batch_size" in changes:  # the rate follows it, as in the paper
        changes["learning_rate"] = config.peak_rate * changes["batch_size"] / config.batch_size
    runs = of_seeds(replace(run, **changes))
    return {f"{name}, seed {each.seed}" if config.seeds else name: each for each in runs}
