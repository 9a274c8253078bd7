"""Groups of options that decide how a run is carried out: its folder, devices and monitoring.

As in `simsiam.config.options`, a field is a flag, and the docstring below the field is its help.
"""

from typing import Annotated, Literal

from simsiam.config.recipe_files import DEFAULT_RECIPE, RecipeName
from simsiam.config.value_types import AtLeast0, AtLeast1, Positive, Seed
from utils.errors import require
from utils.option_group import Hint, Rule, option_group

Precision = Literal["auto", "32", "bf16", "16"]

DEFAULT_KNN_K = 200  # for a data set that is large enough, see `commands.fit`

SAME_COMMAND = "the same command"  # resumes a run, as messages say
MAX_NAME_LENGTH = 100  # letters of a folder's name
MAX_NAME_BYTES = 255  # of a folder's name in UTF-8, in which a letter takes up to four bytes


@option_group()
class RunOptions:
    """Run: its folder, seed and checkpoints.

    The same command again resumes a run that was cut off.
    """

    save_dir: Annotated[str, Rule.CHANGEABLE_ON_RESUME] = "./runs"
    """Folder of all runs."""
    exp_name: Annotated[str | None, Hint("NAME", default="simsiam_DATASET"), Rule.NOT_INHERITED] = (
        None
    )
    """Name of the run; its folder is SAVE_DIR/EXP_NAME."""
    version: Annotated[str | None, Hint("NAME", default="none"), Rule.NOT_INHERITED] = None
    """Name of a version of the run, whose folder is then SAVE_DIR/EXP_NAME/VERSION."""
    seed: Seed = 0
    """Seed of weights, order and augmentation; the same seed gives the same run."""
    seeds: Annotated[tuple[Seed, ...], Hint(default="--seed alone"), Rule.NOT_SAVED] = ()
    """Train once for each of these seeds, in folders seed_N inside the run's folder, and write a
    report of all runs."""
    ckpt_dir: Annotated[str | None, Hint("PATH", default="none"), Rule.NOT_INHERITED] = None
    """Resume from this checkpoint: a .ckpt, or a folder that holds one. The settings must be the
    same."""
    model_path: Annotated[str | None, Hint("PATH", default="none")] = None
    """Start from these weights alone: a .ckpt, a run folder, or a backbone's .safetensors."""
    checkpoint_every: Annotated[
        AtLeast1 | None, Hint("EPOCHS", default="every 30 seconds"), Rule.CHANGEABLE_ON_RESUME
    ] = None
    """Epochs between checkpoints."""
    recipe: Annotated[RecipeName, Rule.CHANGEABLE_ON_RESUME] = DEFAULT_RECIPE
    """Defaults of all other flags: the paper's settings for CIFAR-10, or for ImageNet with a
    resnet50 of 224 pixels (100 epochs). Other flags win."""
    config: Annotated[str | None, Hint("FILE", default="none"), Rule.NOT_SAVED] = None
    """Take the settings (all but the name) from the config.yaml of an earlier run, except those
    given by other flags."""
    overwrite: Annotated[bool, Rule.NOT_SAVED] = False
    """Delete an earlier run of this name and start again."""
    dry_run: Annotated[bool, Rule.NOT_SAVED] = False
    """Print what would be trained and where it would write, and exit."""

    def __post_init__(self) -> None:
        require(
            len(set(self.seeds)) == len(self.seeds),
            "--seeds has a seed twice. Give each seed once.",
        )
        require(
            not self.seeds or self.ckpt_dir is None,
            "--ckpt-dir resumes one run. Drop --ckpt-dir or --seeds.",
        )
        require(
            not (self.ckpt_dir and self.model_path),
            "--ckpt-dir resumes a run, --model-path starts a new one. Give one of them.",
        )
        if self.exp_name:
            _check_folder_name("--exp-name", self.exp_name)
        if self.version:
            _check_folder_name("--version", self.version)

    @property
    def resume_command(self) -> str:
        """What a message calls the command that resumes this run after an interruption."""
        if self.overwrite:
            return f"{SAME_COMMAND} without --overwrite"
        return SAME_COMMAND


def _check_folder_name(flag: str, name: str) -> None:
    require(
        len(name) <= MAX_NAME_LENGTH,
        f"{flag} has {len(name)} letters, which is too long for a folder's name. "
        f"Give at most {MAX_NAME_LENGTH}.",
    )
    num_bytes = len(name.encode(errors="surrogateescape"))
    require(
        num_bytes <= MAX_NAME_BYTES,
        f"{flag} takes {num_bytes} bytes, which is too long for a folder's name. "
        f"Give at most {MAX_NAME_BYTES} bytes.",
    )
    is_plain = name not in (".", "..") and "/" not in name and "\\" not in name
    require(is_plain, f"{flag} {name!r}: must be a plain name, without a slash")


@option_group()
class AcceleratorOptions:
    """Device."""

    accelerator: Annotated[Literal["auto", "cpu", "gpu"], Rule.CHANGEABLE_ON_RESUME] = "auto"
    """Device: auto is the GPU if there is one."""


@option_group()
class PrecisionOptions(AcceleratorOptions):
    """Device and precision."""

    precision: Precision = "auto"
    """Precision: auto is bf16 (mixed) on a GPU, and on a CPU with avx512_bf16 or amx_bf16; else
    32."""


@option_group()
class DeviceOptions(AcceleratorOptions):
    """Devices and precision. The defaults suit the machine."""

    devices: Annotated[
        AtLeast1 | None,
        Hint("N", default="1, or as many as torchrun or srun started"),
        Rule.CHANGEABLE_ON_RESUME,
    ] = None
    """GPUs of this machine (on a CPU: processes) that share each batch."""
    num_nodes: Annotated[
        AtLeast1 | None,
        Hint("M", default="as many as torchrun or srun started it on"),
        Rule.CHANGEABLE_ON_RESUME,
    ] = None
    """Machines that share each batch; torchrun or srun starts the same command on each."""
    strategy: Annotated[Literal["auto", "ddp"], Rule.CHANGEABLE_ON_RESUME] = "auto"
    """Lightning's strategy; auto is ddp for several devices."""
    precision: Precision = "auto"
    """Precision: auto is bf16 (mixed) on a GPU, and on a CPU with avx512_bf16 or amx_bf16; else
    32. A resumed run keeps its precision."""
    compile: Annotated[bool, Rule.CHANGEABLE_ON_RESUME] = True
    """Compile the step and the augmentation on a GPU, and on a CPU the augmentation of a run that
    is long enough to gain by it."""


@option_group()
class MonitorOptions:
    """Monitoring."""

    knn_k: Annotated[
        AtLeast1 | None, Hint("N", default=f"{DEFAULT_KNN_K}, or less for a small data set")
    ] = None
    """Neighbours that vote in the kNN monitor."""
    knn_t: Positive = 0.1
    """Temperature of the votes in the kNN monitor."""
    knn_every: Annotated[AtLeast0, Rule.CHANGEABLE_ON_RESUME] = 1
    """Epochs between kNN measurements; the last epoch always has one. 0 for no measurements."""
    pictures_every: Annotated[
        AtLeast0 | None, Hint("EPOCHS", default="a tenth of the run"), Rule.CHANGEABLE_ON_RESUME
    ] = None
    """Epochs between pictures of views and neighbours in TensorBoard; 0 for the first and the last
    epoch only."""
    logger: Annotated[
        tuple[Literal["tensorboard", "csv", "wandb", "mlflow"], ...], Rule.CHANGEABLE_ON_RESUME
    ] = ("tensorboard",)
    """Loggers of the curves. tensorboard and csv write into the run's folder; wandb and mlflow
    follow their own settings."""
    stop_on_collapse: Annotated[bool, Rule.CHANGEABLE_ON_RESUME] = False
    """End the run with status 3 when the projections collapse, instead of a warning."""

    @property
    def neighbours(self) -> int:
        """`knn_k`, with the default resolved for a data set that is large enough."""
        return self.knn_k or DEFAULT_KNN_K
