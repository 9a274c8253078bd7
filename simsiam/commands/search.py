"""The command `search`: find settings that suit a data set by short trials, with Optuna."""

import importlib
import importlib.util

from simsiam.config.commands import Search
from utils.errors import require


def search(config: Search) -> None:
    """Run trials until the time or their number is used up, and write a page about them.

    Raises:
        UserError: Optuna is not installed, or a flag does not fit the images.
    """
    require(
        importlib.util.find_spec("optuna") is not None,
        "search needs a package that is not installed. Run: pip install optuna",
    )
    # The module imports optuna, so it comes after the check.
    worker = importlib.import_module("simsiam.commands.tuning.worker")
    worker.run_search(config)
