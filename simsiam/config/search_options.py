"""The group of options of the command `search`.

As in `simsiam.config.options`, a field is a flag, and the docstring below the field is its help.
"""

from typing import Annotated, Literal

from pydantic import Field

from simsiam.config.value_types import AtLeast1, PathText, Positive
from utils.errors import require
from utils.option_group import Hint, option_group

Objective = Literal["auto", "knn", "rankme"]
DEFAULT_TRIALS = 20  # for which the length of a trial is planned if only --minutes is given
MIN_TRIAL_EPOCHS = 4  # a shorter trial has too few epochs to compare its beginning with others


@option_group()
class SearchOptions:
    """Search: how long, over which settings, and what makes a run good."""

    minutes: Annotated[Positive | None, Hint("MINUTES", default="no limit")] = None
    """Time for the search. What an interrupted search has used up counts."""
    trials: Annotated[
        AtLeast1 | None, Hint("N", default=f"{DEFAULT_TRIALS}, or no limit with --minutes")
    ] = None
    """Trials in all, those that are stopped early included."""
    trial_epochs: Annotated[
        Annotated[int, Field(ge=2)] | None,
        Hint("N", default="a tenth of --epochs, or what fits --minutes"),
    ] = None
    """Length of a trial. Its learning rate falls to 0 at the end of these epochs."""
    objective: Objective = "auto"
    """What a trial is judged by: knn is kNN accuracy on held-out train images (among all of them
    if they are few), rankme needs no labels. auto is knn if there are labels."""
    vary: Annotated[tuple[str, ...], Hint("NAME [NAME ...]", default="all of them")] = ()
    """Vary only these of the settings; the others keep the values of the flags."""
    space: Annotated[PathText | None, Hint("FILE", default="built in")] = None
    """YAML file with the range of each setting to vary, as {low: 0.01, high: 1, log: true} or
    {choices: [64, 128]}. Ranges that the file does not have are left out."""
    storage: Annotated[str | None, Hint("URL", default="a file in the folder of the search")] = None
    """Database of the trials, as Optuna names it: sqlite:///search.db or mysql://HOST/NAME. Several
    machines without a shared folder need one."""

    def __post_init__(self) -> None:
        require(
            len(set(self.vary)) == len(self.vary),
            "--vary has a setting twice. Give each setting once.",
        )
        require(
            self.storage is None or "://" in self.storage,
            f"--storage {self.storage}: must be the URL of a database, as sqlite:///search.db",
        )
