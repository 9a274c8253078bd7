"""A run that is not disturbed, to compare disturbed runs with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.at_steps import LONG
from tests.helpers import start_small


@pytest.fixture(scope="session")
def undisturbed(make_once: Callable[..., Path]) -> Path:
    """A finished run of LONG."""

    def fill(folder: Path) -> None:
        process = start_small("run", folder, *LONG)
        _, err = process.communicate()
        assert (process.returncode, err) == (0, "")

    return make_once("undisturbed", fill) / "runs" / "run"
