"""The group of options of the optimizer: length, batch and learning rate of a pre-training.

As in `simsiam.config.options`, a field is a flag, and the docstring below the field is its help.
"""

from typing import Annotated, Literal

from simsiam.config.value_types import AtLeast1, BatchSize, Momentum, NotNegative, Positive
from utils.errors import require
from utils.option_group import Hint, option_group

DEFAULT_BATCH_SIZE = 512  # for a data set that is large enough, see `commands.fit`
DEFAULT_LEARNING_RATE = 0.06  # the paper's rate for CIFAR and a batch of 512
# The default warm-up takes 10 epochs, but no more than a tenth of the run.
DEFAULT_WARMUP_EPOCHS = 10
RUN_TO_WARMUP_RATIO = 10


@option_group()
class OptimizerOptions:
    """Optimizer: SGD with linear warm-up and cosine decay."""

    epochs: AtLeast1 = 800
    """Length of the run; the cosine reaches 0 at its end."""
    batch_size: Annotated[
        BatchSize | None,
        Hint("N", default=f"{DEFAULT_BATCH_SIZE}, or less for a small data set"),
    ] = None
    """Images in a step, each in several views. The last partial batch of an epoch is dropped."""
    accumulate: AtLeast1 = 1
    """Process each batch in N parts, one after another, in 1/N of the memory. BN uses the
    statistics of a part."""
    learning_rate: Annotated[Positive | Literal["auto"], Hint("RATE|auto")] = DEFAULT_LEARNING_RATE
    """Peak rate for this batch size; auto is BASE_LEARNING_RATE x batch size / 256. Small runs
    learn better with more, such as 0.15."""
    base_learning_rate: Positive = 0.03
    """Rate for a batch of 256 images, for `--learning-rate auto`. 0.03 is the paper's rate for
    CIFAR (appendix D); its rate for ImageNet (section 3) is 0.05, which --recipe imagenet sets."""
    momentum: Momentum = 0.9
    """Momentum of SGD."""
    weight_decay: NotNegative = 5e-4
    """Weight decay of all parameters, BN included, as in the paper. With ten times more the
    representation collapses."""
    warmup_epochs: Annotated[
        NotNegative | None,
        Hint(
            "EPOCHS",
            default=f"{DEFAULT_WARMUP_EPOCHS}, or a tenth of a run below "
            f"{RUN_TO_WARMUP_RATIO * DEFAULT_WARMUP_EPOCHS} epochs",
        ),
    ] = None
    """Epochs of linear warm-up."""
    constant_predictor_lr: bool = False
    """Keep the predictor at the peak rate throughout (section 4.2)."""
    predictor_lr_scale: Positive = 1.0
    """Multiply the predictor's peak rate by this factor."""

    @property
    def images_per_step(self) -> int:
        """The batch size, with the default resolved for a data set that is large enough."""
        return self.batch_size or DEFAULT_BATCH_SIZE

    @property
    def peak_rate(self) -> float:
        """The learning rate, with "auto" resolved."""
        if self.learning_rate == "auto":
            return self.base_learning_rate * self.images_per_step / 256
        return float(self.learning_rate)

    @property
    def warmup(self) -> float:
        """Epochs of warm-up, with the default resolved."""
        if self.warmup_epochs is None:
            return min(DEFAULT_WARMUP_EPOCHS, self.epochs / RUN_TO_WARMUP_RATIO)
        return self.warmup_epochs

    def __post_init__(self) -> None:
        require(
            self.warmup < self.epochs,
            f"--warmup-epochs {self.warmup_epochs}: must be less than --epochs {self.epochs}, "
            "or the rate never comes down",
        )
