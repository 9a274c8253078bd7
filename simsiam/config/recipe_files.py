"""The recipes: the settings of a paper for a kind of data, under a name.

Each recipe is a YAML file in `recipes/`. Its section `pretrain` has values of options, which
replace the defaults of the flags. Its section `linear` has the settings of `linear --augment`.
"""

import functools
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml

from simsiam.config.value_types import AtLeast1, NotNegative, Positive, Share
from utils.errors import require
from utils.option_group import option_group

RecipeName = Literal["cifar10", "imagenet"]
DEFAULT_RECIPE: RecipeName = "cifar10"
FOLDER = Path(__file__).parent / "recipes"

LinearOptimizer = Literal["sgd", "lars"]


@option_group(kw_only=True)
class LinearRates:
    """Batch size and initial learning rate of a linear classifier, for one optimizer.

    Attributes:
        batch_size: images in a step.
        learning_rate: the rate for every batch size.
        base_learning_rate: the rate for a batch of 256 images. The rate is proportional to the
            batch size. One of the two rates is None.
    """

    batch_size: AtLeast1
    learning_rate: Positive | None = None
    base_learning_rate: Positive | None = None

    def __post_init__(self) -> None:
        require(
            (self.learning_rate is None) != (self.base_learning_rate is None),
            "a recipe must have either learning_rate or base_learning_rate",
        )

    def rate(self, batch_size: int) -> float:
        """Return the initial learning rate for a batch size."""
        if self.base_learning_rate is not None:
            return self.base_learning_rate * batch_size / 256
        assert self.learning_rate is not None
        return self.learning_rate

    def describe(self) -> str:
        """Return the rate as text."""
        if self.base_learning_rate is not None:
            return f"{self.base_learning_rate:g} x batch size / 256"
        return f"{self.learning_rate:g}"


@option_group(kw_only=True)
class LinearRecipe:
    """Settings of a linear classifier that is trained on crops and flips.

    Attributes:
        raw_features: train on the backbone's features as they are, instead of standardised ones.
        initial_std: standard deviation of the classifier's initial weights.
        optimizer: the default optimizer, used if `--optimizer` is not given.
        optimizers: the settings for each optimizer that the recipe knows.
    """

    epochs: AtLeast1
    crop_scale: Share
    raw_features: bool
    initial_std: NotNegative
    optimizer: LinearOptimizer
    optimizers: dict[LinearOptimizer, LinearRates]

    @property
    def rates(self) -> LinearRates:
        """Batch size and rate of the default optimizer, used if `--optimizer` is not given."""
        return self.optimizers[self.optimizer]


class Recipe(NamedTuple):
    """The content of a recipe's file."""

    pretrain: dict[str, Any]
    linear: LinearRecipe


@functools.cache
def read_recipe(name: RecipeName) -> Recipe:
    """Return the recipe of this name."""
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    linear = dict(content["linear"])
    rates = linear.pop("optimizers")
    optimizers = {optimizer: LinearRates(**values) for optimizer, values in rates.items()}
    return Recipe(content["pretrain"], LinearRecipe(**linear, optimizers=optimizers))


def find_pretrain_values(name: str | None) -> dict[str, Any] | None:
    """Return the values that a recipe has for options of pre-training.

    Args:
        name: None for the default recipe.

    Returns:
        The values, or None for an unknown recipe.
    """
    for known in get_args(RecipeName):
        if known == (name or DEFAULT_RECIPE):
            return read_recipe(known).pretrain
    return None


def pretrain_values(name: str | None) -> dict[str, Any]:
    """Return what `find_pretrain_values` does, and no values for an unknown recipe.

    The name may be from the file of another version.
    """
    return find_pretrain_values(name) or {}
