"""The commands that train: one frozen dataclass each, with its groups of options; and all commands.

`utils.cli` makes the command line from these classes, and their docstrings are the text above the
flags in `--help`. Below them are functions for the settings of a run: which of them are saved and
compared, and the command line that gives them.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simsiam.config import optimizer_options, options, run_options
from simsiam.config.augment_options import AugmentOptions
from simsiam.config.evaluation_commands import (
    Cache,
    Embed,
    Export,
    Finetune,
    Knn,
    Linear,
    Neighbours,
    Report,
)
from simsiam.config.evaluation_options import AblateOptions
from simsiam.config.network_options import NetworkOptions
from simsiam.config.optimizer_options import DEFAULT_BATCH_SIZE
from simsiam.config.options import CUSTOM_DATASETS
from simsiam.config.recipe_files import find_pretrain_values, pretrain_values
from simsiam.config.run_options import DEFAULT_KNN_K
from simsiam.config.search_options import SearchOptions
from utils.errors import require
from utils.option_group import Rule, option_group, to_flag
from utils.settings import flatten, iterate_options, to_flags


@option_group()
class Pretrain:
    """Pre-train a network with SimSiam (arXiv 2011.10566).

    `python main.py` alone takes CIFAR-10, 800 epochs and the paper's settings; it needs a GPU.

    `python main.py --dataset patterns --backbone resnet10 --width 16 --epochs 10` is a
    demonstration for any machine.

    `--dry-run` with any other flags prints what would be trained and where, and exits.

    The same command again resumes a run that was cut off. Runs are folders below --save-dir.

    Further commands, each with its own --help: knn, linear, finetune, embed, neighbours, export,
    report, ablate, search, cache.
    """

    data: options.DataOptions = options.DataOptions()
    optimizer: optimizer_options.OptimizerOptions = optimizer_options.OptimizerOptions()
    run: run_options.RunOptions = run_options.RunOptions()
    device: run_options.DeviceOptions = run_options.DeviceOptions()
    network: NetworkOptions = NetworkOptions()
    method: options.MethodOptions = options.MethodOptions()
    augmentation: AugmentOptions = AugmentOptions()
    monitor: run_options.MonitorOptions = run_options.MonitorOptions()
    PREFIX = "simsiam"  # the name of a run begins with it, unless --exp-name gives a name

    recipe_values = staticmethod(find_pretrain_values)  # read by utils.cli

    def __post_init__(self) -> None:
        # A recipe or the file of --config may have a rate that is not used because of
        # --learning-rate. A flag may not.
        optimizer = self.optimizer
        default = type(optimizer).base_learning_rate
        recipes_rate = pretrain_values(self.run.recipe).get("base_learning_rate", default)
        require(
            optimizer.learning_rate == "auto"
            or self.run.config is not None
            or optimizer.base_learning_rate in (default, recipes_rate),
            f"--base-learning-rate {optimizer.base_learning_rate:g} is only used by "
            "--learning-rate auto. Give that too, or drop the flag.",
        )

    @property
    def run_dir(self) -> Path:
        """The folder of the run: SAVE_DIR/EXP_NAME/VERSION."""
        name = self.run.exp_name or f"{self.PREFIX}_{self.data.dataset}"
        return Path(self.run.save_dir).expanduser() / name / (self.run.version or "")


@option_group()
class Ablate(Pretrain):
    """See what each part of SimSiam is for: train without it, and write the report of all runs.

    `python main.py ablate --epochs 50` trains four variants: the baseline, one without
    stop-gradient, one without predictor and one without BN in the heads. All have the same seed and
    data. They are trained one after another, or one on each GPU. Each is a run in
    SAVE_DIR/EXP_NAME/VARIANT; the same command again continues where it was cut off.
    """

    ablation: AblateOptions = AblateOptions()
    PREFIX = "ablation"


@option_group()
class Search(Pretrain):
    """Search for settings that suit your images, by short trials of many settings.

    `python main.py search --dataset folder --data-dir photos --minutes 60` or `--trials 40`

    The first trial has the settings of the flags. Optuna (pip install optuna) chooses the others,
    and stops those that fall behind. Each trial is a run in SAVE_DIR/EXP_NAME. --epochs is the
    length of the run that you plan to train with the best settings; trials are shorter.

    The same command again continues, and shares the work with one that is still running.
    """

    search: SearchOptions = SearchOptions()
    PREFIX = "search"

    def __post_init__(self) -> None:
        super().__post_init__()
        run = self.run
        for flag, is_given in (
            ("--seeds", bool(run.seeds)),
            ("--ckpt-dir", run.ckpt_dir is not None),
            ("--overwrite", run.overwrite),
        ):
            require(not is_given, f"{flag}: not for a search. Drop the flag.")
        require(
            self.monitor.knn_every == 1,
            f"--knn-every {self.monitor.knn_every}: a search measures each epoch. Drop the flag.",
        )
        trial_epochs = self.search.trial_epochs
        epochs = self.optimizer.epochs
        require(
            trial_epochs is None or trial_epochs <= epochs,
            f"--trial-epochs {trial_epochs}: must not be more than --epochs {epochs}.",
        )


COMMANDS: dict[str, type] = {
    "pretrain": Pretrain,
    "knn": Knn,
    "linear": Linear,
    "finetune": Finetune,
    "embed": Embed,
    "neighbours": Neighbours,
    "export": Export,
    "report": Report,
    "ablate": Ablate,
    "search": Search,
    "cache": Cache,
}

MAIN = Path(__file__).parents[2] / "main.py"
RULES = {option.field.name: option.rule for option in iterate_options(Pretrain)}
# The values that these options get from a data set that is large enough. A smaller data set gets
# smaller values, unless the options are given: see `simsiam.commands.fit`.
FITTED_DEFAULTS = {"batch_size": DEFAULT_BATCH_SIZE, "knn_k": DEFAULT_KNN_K}
PRETRAIN_DEFAULTS = flatten(Pretrain()) | FITTED_DEFAULTS
# Option -> what happens without its flag, where its default value does not say so itself.
UNSET = {
    option.field.name: option.hint.default
    for option in iterate_options(Pretrain)
    if option.hint.default is not None
}


# ---------------------------------------------------------------- settings of runs


def settings_to_keep(config: Pretrain) -> dict[str, Any]:
    """Return the settings that `config.yaml` and a checkpoint hold, as plain values."""
    kept = _select(flatten(config), below=Rule.NOT_SAVED)
    if config.data.dataset in CUSTOM_DATASETS:
        # The folder of the images stays the same wherever the settings are used.
        kept["data_dir"] = os.path.abspath(config.data.path)
    return kept


def settings_that_matter(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that change what is computed: a resumed run must have the same ones."""
    selected = _select(settings, below=Rule.CHANGEABLE_ON_RESUME)
    if selected.get("learning_rate") != "auto":
        selected.pop("base_learning_rate", None)  # it is not used
    return selected


def _select(settings: Mapping[str, Any], below: Rule) -> dict[str, Any]:
    """Return the settings whose rule is weaker than `below`."""
    return {name: value for name, value in settings.items() if RULES.get(name, Rule.PLAIN) < below}


def find_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings that matter and differ, sorted.

    A setting that `old` lacks had its default: the option was added after that run.
    """
    before = settings_that_matter({**PRETRAIN_DEFAULTS, **old})
    after = settings_that_matter(new)
    names = sorted(before.keys() | after.keys())
    return [name for name in names if before.get(name) != after.get(name)]


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the settings that matter and differ, each as "--flag OLD, now NEW"."""
    before = {**PRETRAIN_DEFAULTS, **old}
    descriptions: list[str] = []
    for name in find_differences(old, new):
        old_text = _describe_value(name, before.get(name))
        new_text = _describe_value(name, new.get(name))
        descriptions.append(f"{to_flag(name)} {old_text}, now {new_text}")
    return descriptions


def _describe_value(name: str, value: Any) -> str:
    if value is None or value == []:
        return UNSET.get(name, "the default")
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return str(value)


# ---------------------------------------------------------------- command lines


def shell_command(*args: object) -> str:
    """Return a command for a shell in the current folder.

    Args:
        args: arguments of this program; or "-m", a package, and arguments of that package.
    """
    python = _shorter_path(sys.executable)
    if shutil.which("python") == sys.executable:
        python = "python"
    words = [python, *map(str, args)]
    if args[0] != "-m":
        words.insert(1, _shorter_path(str(MAIN)))
    return shlex.join(words)


def _shorter_path(file: str) -> str:
    """Return the absolute or the relative path of a file, whichever is shorter."""
    return min(file, os.path.relpath(file), key=len)


def pretrain_command(settings: Mapping[str, Any], between: str = " ") -> str:
    """Return the command `python main.py ...` that pre-trains with these settings.

    Args:
        between: text before each flag.
    """
    flags = to_flags(_without_defaults(settings))
    return between.join(["python main.py", *map(shlex.quote, flags)])


def subprocess_args(config: Pretrain) -> list[str]:
    """Return the arguments of a process that runs `config`."""
    settings = _without_defaults(flatten(config))
    settings.pop("config", None)  # the settings of that file are among the others
    return [sys.executable, str(MAIN), *to_flags(settings)]


def _without_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of known options that differ from what the others make the default."""
    defaults = PRETRAIN_DEFAULTS | pretrain_values(settings.get("recipe"))
    flags: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in PRETRAIN_DEFAULTS:
            continue
        is_unused = name == "base_learning_rate" and settings.get("learning_rate") != "auto"
        if is_unused and value != PRETRAIN_DEFAULTS[name]:
            continue  # its flag would be refused
        if value is None and name in FITTED_DEFAULTS:
            continue  # the program chooses the value, as it does without the flag
        is_fitted = name in FITTED_DEFAULTS and data_may_be_small(settings)
        if name == "batch_size":
            is_fitted = batch_may_be_fitted(settings)
        if value != defaults[name] or is_fitted:
            flags[name] = value
    return flags


def batch_may_be_fitted(settings: Mapping[str, Any]) -> bool:
    """Return whether a run without `--batch-size` may have another one than DEFAULT_BATCH_SIZE.

    Reasons are a small data set, and processes and `--accumulate` that cannot share the default.
    """
    parts = 1
    for name in ("devices", "num_nodes", "accumulate"):
        parts *= settings.get(name) or 1
    return data_may_be_small(settings) or DEFAULT_BATCH_SIZE % parts != 0


def data_may_be_small(settings: Mapping[str, Any]) -> bool:
    """Return whether the data set of a run may be too small for FITTED_DEFAULTS."""
    is_custom = settings.get("dataset") in CUSTOM_DATASETS
    return is_custom or bool(settings.get("train_images") or settings.get("held_out_images"))
