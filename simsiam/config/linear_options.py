"""The group of options of the command `linear`; see `simsiam.config.options`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, get_args

from pydantic import Field

from simsiam.config.recipe_files import LinearOptimizer, LinearRecipe, RecipeName, read_recipe
from simsiam.config.value_types import AtLeast1, Positive, Seed, Share
from utils.errors import require
from utils.option_group import Hint, option_group


@dataclass(frozen=True)
class LinearTraining:
    """Settings of a training by `linear --augment`; for the last two see `LinearRecipe`."""

    optimizer: LinearOptimizer
    epochs: int
    batch_size: int
    learning_rate: float
    crop_scale: float
    raw_features: bool
    initial_std: float


def _list_by_recipe(describe: Callable[[LinearRecipe], str]) -> str:
    """Return what `describe` says about each recipe."""
    return ", ".join(
        f"{describe(read_recipe(name).linear)} for {name}" for name in get_args(RecipeName)
    )


@option_group()
class LinearOptions:
    """Linear classifier."""

    augment: bool = False
    """Train by SGD on crops and flips, as papers do, instead of by L-BFGS on features that are
    computed once."""
    recipe: Annotated[
        RecipeName | None, Hint("{cifar10,imagenet}", default="that of the checkpoint's run")
    ] = None
    """With --augment: defaults of the flags below. imagenet is the paper's: LARS on raw features,
    for 90 epochs."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Without --augment: share of the train images on which the weight decay is chosen. The final
    classifier is fitted on all of them."""
    optimizer: Annotated[
        LinearOptimizer | None,
        Hint("{sgd,lars}", default=_list_by_recipe(lambda linear: linear.optimizer)),
    ] = None
    """With --augment: optimizer, both with momentum 0.9 and without weight decay."""
    epochs: Annotated[
        AtLeast1 | None,
        Hint("EPOCHS", default=_list_by_recipe(lambda linear: f"{linear.epochs}")),
    ] = None
    """With --augment: length of the training; the rate decays to 0 along a cosine."""
    batch_size: Annotated[
        AtLeast1 | None,
        Hint("N", default=_list_by_recipe(lambda linear: f"{linear.rates.batch_size}")),
    ] = None
    """With --augment: images in a step; with --optimizer sgd it is 256 for both recipes."""
    learning_rate: Annotated[
        Positive | None,
        Hint("RATE", default=_list_by_recipe(lambda linear: linear.rates.describe())),
    ] = None
    """With --augment: the head's initial rate; for imagenet with --optimizer sgd it is 30 x batch
    size / 256."""
    crop_scale: Annotated[
        Share | None,
        Hint("SHARE", default=_list_by_recipe(lambda linear: f"{linear.crop_scale}")),
    ] = None
    """With --augment: smallest area of a crop, as a share of the image."""
    seed: Seed = 0
    """Seed of the held-out choice, the order and the crops."""
    from_scratch: bool = False
    """Probe the same network with random weights instead, to see what pre-training is worth."""

    def resolve(self, recipe: RecipeName, images: int) -> LinearTraining:
        """Return the settings of a training with --augment, with the defaults of a recipe.

        Args:
            recipe: name of the recipe.
            images: number of train images, which limits the default batch size.

        Raises:
            UserError: the recipe has no settings for the optimizer.
        """
        linear = read_recipe(recipe).linear
        optimizer = self.optimizer or linear.optimizer
        require(
            optimizer in linear.optimizers,
            f"--optimizer {optimizer}: the recipe {recipe} has no settings for it. "
            "Give --recipe imagenet, or drop the flag.",
        )
        rates = linear.optimizers[optimizer]
        batch_size = self.batch_size or min(rates.batch_size, images)
        return LinearTraining(
            optimizer=optimizer,
            epochs=self.epochs or linear.epochs,
            batch_size=batch_size,
            learning_rate=self.learning_rate or rates.rate(batch_size),
            crop_scale=self.crop_scale or linear.crop_scale,
            raw_features=linear.raw_features,
            initial_std=linear.initial_std,
        )
