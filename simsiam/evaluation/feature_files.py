"""Write features with the origin of each image: an .npz file for numpy, or a .parquet file."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.console import print_line
from utils.errors import require


class Embedding(NamedTuple):
    """Features of N images, and where they come from.

    Attributes:
        features: (N, F) float32.
        labels: (N,) int64, indices into `classes`, or -1 for an image without a label.
        indices: (N,) int64, the index of each image in its split.
        split: (N,) names of splits.
        classes: the names of the classes.
        paths: the file of each image, as `os.fsdecode` gives it, or None for images without files.
    """

    features: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    split: np.ndarray
    classes: tuple[str, ...]
    paths: list[str] | None


def choose_writer(output: str) -> Callable[[Embedding, Path], None]:
    """Return the function that writes a file with the suffix of `output`.

    Raises:
        UserError: if the suffix is .parquet and pyarrow is not installed.
    """
    if not output.endswith(".parquet"):
        return write_npz
    require(
        importlib.util.find_spec("pyarrow") is not None,
        f"--output {output} needs pyarrow. Install with: pip install pyarrow",
    )
    return write_parquet


def write_npz(embedding: Embedding, path: Path) -> None:
    """Write the arrays `features`, `labels`, `indices`, `split`, `classes` and, if any, `paths`."""
    arrays = embedding._asdict()
    arrays["classes"] = np.array(embedding.classes, dtype=np.str_)
    del arrays["paths"]
    if embedding.paths is not None:
        # Bytes that are not UTF-8 stay as `os.fsdecode` gives them, so that `open` takes the paths.
        arrays["paths"] = np.array(embedding.paths, dtype=np.str_)
    # With a path instead of an open file, numpy would append a suffix.
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def write_parquet(embedding: Embedding, path: Path) -> None:
    """Write a table with the columns features, label, class, path, index and split.

    An image without a label has the label -1 and no class. The column `path` is empty for images
    without files. If a path is not UTF-8, the column holds bytes, which `open` takes too.
    """
    import pyarrow  # an optional package
    import pyarrow.parquet

    num_images, num_features = embedding.features.shape
    values = pyarrow.array(embedding.features.reshape(-1))
    class_names = [embedding.classes[label] if label >= 0 else None for label in embedding.labels]
    columns = {
        "features": pyarrow.FixedSizeListArray.from_arrays(values, num_features),
        "label": pyarrow.array(embedding.labels),
        "class": pyarrow.array(class_names, pyarrow.string()),
        "path": pyarrow.nulls(num_images, pyarrow.string()),
        "index": pyarrow.array(embedding.indices),
        "split": pyarrow.array(embedding.split),
    }
    if embedding.paths is not None:
        try:
            columns["path"] = pyarrow.array(embedding.paths, pyarrow.string())
        except UnicodeEncodeError:
            print_line("The column path holds bytes, because a path is not UTF-8.")
            encoded = [os.fsencode(path) for path in embedding.paths]
            columns["path"] = pyarrow.array(encoded, pyarrow.binary())
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
