"""Pickles of plain data, read without the power that pickles have: whatever names a function or a class is refused."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

# What an array of numbers consists of, under the names that old and new numpy give it.
_reconstruct = np.zeros(0).__reduce__()[0]
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Plain(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which is not plain data") from None


def read_plain_pickle(path: Path) -> Any:
    """Containers, numbers, strings and numpy arrays; strings of Python 2 as latin-1.

    Raises:
        pickle.UnpicklingError: anything else is in it; none of it was run.
        OSError, EOFError, ValueError, LookupError, TypeError: not readable, or no pickle.
    """
    with open(path, "rb") as file:
        return _Plain(file, encoding="latin1").load()
