"""Check what the user's own code passes in: numbers, batches and datamodules.

SimSiam and KNNMonitor accept batches in several forms. The functions here return each batch in one
fixed form, or raise a ValueError that says what was expected and what the batch is.
"""

import numbers
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from models.choices import is_library_backbone
from models.libraries import count_library_features
from simsiam.hparams import is_rgb, to_plain
from utils.errors import require

VIEWS_EXPECTED = (
    "a training batch must be views of the same images, [x1, x2] or more, float tensors "
    "(B, 3, S, S) each, or ([x1, x2], labels, ...)"
)
LABELLED_EXPECTED = (
    "KNNMonitor's loaders must give (images, labels) or (images, labels, ...): float images "
    "(B, 3, S, S), whole numbers from 0 as labels (B,)"
)
MAX_PARTS_DESCRIBED = 6  # An error message describes at most this many parts of a batch.


def check_counts(owner: str, **counts: tuple[Any, int]) -> None:
    """Check arguments that are whole numbers.

    Args:
        owner: Name of the class whose arguments they are.
        counts: The value of each argument and the smallest value that it may have.

    Raises:
        UserError: An argument is no whole number, or too small.
    """
    for name, (value, least) in counts.items():
        is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        require(
            is_whole and int(value) >= least,
            f"{owner}: {name} must be a whole number of at least {least}, got {value!r}",
        )


def get_views(batch: Any, one_way_views: int = 0) -> list[Tensor]:
    """Return the views of a training batch.

    Args:
        batch: `[x1, x2, ...]`, or `([x1, x2, ...], labels, ...)`.
        one_way_views: How many of the last views are heavy views of a one-way loss. There must be
            two other views at least, and one for each heavy view.

    Returns:
        At least two tensors (B, 3, S, S). Their sizes S may differ.

    Raises:
        ValueError: The batch has another form.
    """
    views: list[Any] = []
    if isinstance(batch, list | tuple) and batch:
        has_labels = isinstance(batch[0], list | tuple)
        views = list(batch[0]) if has_labels else list(batch)

    if len(views) < 2 or not all(_is_image_batch(view) for view in views):
        raise ValueError(f"{VIEWS_EXPECTED}; this one is {describe_batch(batch)}")
    if any(_is_list_of_views(part) for part in batch[1:]):
        raise ValueError(
            f"{VIEWS_EXPECTED}; this one has several lists of views, as from several loaders, and "
            "only the first would be used. Join their data sets: torch.utils.data.ConcatDataset"
        )
    if any(len(view) != len(views[0]) for view in views):
        raise ValueError(f"{VIEWS_EXPECTED}; these views differ in B: {describe_batch(views)}")
    standard_views = max(2, one_way_views)
    if len(views) < standard_views + one_way_views:
        raise ValueError(
            f"with heavy_views={one_way_views}, a training batch must have at least "
            f"{standard_views} standard views, and then the heavy views; this one has "
            f"{len(views)} views in all. ViewsDataModule(heavy_views={one_way_views}) makes them"
        )
    return views


def get_images(batch: Any) -> Tensor:
    """Return the images (B, 3, S, S) of a batch, which is `images` or `(images, ...)`.

    Raises:
        ValueError: The batch has another form.
    """
    images: Any = batch
    if isinstance(batch, list | tuple) and batch:
        images = batch[0]
    if not _is_image_batch(images):
        raise ValueError(
            "a batch to predict must be images (B, 3, S, S), or (images, ...); "
            f"this one is {describe_batch(batch)}"
        )
    return images


def get_labelled_images(batch: Any) -> tuple[Tensor, Tensor]:
    """Return the images (B, 3, S, S) and labels (B,) int64 of a batch `(images, labels, ...)`.

    Raises:
        ValueError: The batch has another form, or a label is negative.
    """
    message = f"{LABELLED_EXPECTED}; this batch is {describe_batch(batch)}"
    if not isinstance(batch, list | tuple) or len(batch) < 2 or not _is_image_batch(batch[0]):
        raise ValueError(message)
    images = batch[0]
    labels = batch[1]

    if isinstance(labels, list | tuple) and all(isinstance(y, numbers.Integral) for y in labels):
        labels = torch.tensor(labels)
    if isinstance(labels, Tensor) and labels.shape == (len(images), 1):
        labels = labels[:, 0]  # MedMNIST's labels have this shape.

    if not isinstance(labels, Tensor) or labels.shape != (len(images),):
        raise ValueError(message)
    if labels.is_floating_point() or bool((labels < 0).any()):
        raise ValueError(message)
    return images, labels.long()


def get_features(output: Any) -> Tensor:
    """Return the features (B, F) of images from the output of a network of the user.

    Raises:
        ValueError: The output is neither (B, F) nor (B, F, 1, 1).
    """
    if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:] == (1, 1):
        return output.flatten(1)
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise ValueError(
            "features must be a tensor (B, F) or (B, F, 1, 1), from the backbone of a module, or "
            f"from the module itself if it has none; this output is {describe_batch(output)}"
        )
    return output


def _is_list_of_views(x: Any) -> bool:
    return isinstance(x, list | tuple) and len(x) > 1 and all(_is_image_batch(part) for part in x)


def _is_image_batch(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point()


def describe_batch(batch: Any) -> str:
    """Describe the structure of a batch for an error message.

    An example is "a list of 2 (a float32 tensor (8, 3, 32, 32); a int64 tensor (8,))".
    """
    if isinstance(batch, Tensor):
        dtype = str(batch.dtype).removeprefix("torch.")
        return f"a {dtype} tensor {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        keys = [str(key) for key in batch]
        return f"a dict with the keys {', '.join(keys[:MAX_PARTS_DESCRIBED])}"
    if isinstance(batch, list | tuple):
        kind = type(batch).__name__
        parts = [describe_batch(part) for part in batch[:MAX_PARTS_DESCRIBED]]
        if len(batch) > MAX_PARTS_DESCRIBED:
            parts.append("...")
        return f"a {kind} of {len(batch)} ({'; '.join(parts)})"
    return f"a value of type {type(batch).__name__}"


# ---------------------------------------------------------------- datamodules


def copy_image_metadata(datamodule: Any, hparams: MutableMapping[str, Any]) -> int | None:
    """Copy mean, std, size and classes of the images from a datamodule to hyper-parameters.

    Returns:
        The size of the images in pixels; None if the datamodule does not have it.

    Raises:
        ValueError: The backbone is a library's network, and was built for images of another size.
    """
    metadata, ignored = read_image_metadata(datamodule)
    if is_library_backbone(hparams["backbone"]) and "image_size" in metadata:
        sizes = hparams["image_size"], metadata["image_size"]
        count_library_features(hparams["backbone"], *sizes)
    hparams.update(metadata)
    if ignored:
        attributes = "; ".join(ignored)
        rank_zero_warn(f"SimSiam ignores attributes of {type(datamodule).__name__}: {attributes}")
    return metadata.get("image_size")


def read_image_metadata(datamodule: Any) -> tuple[dict[str, Any], list[str]]:
    """Read mean, std, size and classes of the images from attributes of a datamodule.

    The datamodule may be the user's own, and may use these names for other things. So a value is
    taken only if its type and shape fit.

    Returns:
        The metadata: `mean` and `std` (3 floats each, either both or none), `image_size` (pixels)
        and `classes` (names), each only if the datamodule has it. Then a list that describes each
        attribute whose value does not fit.
    """
    metadata: dict[str, Any] = {}
    ignored: list[str] = []

    mean = _get_plain(datamodule, "mean")
    std = _get_plain(datamodule, "std")
    if mean is not None or std is not None:
        if is_rgb(mean) and is_rgb(std) and min(std) > 0:
            metadata["mean"] = [float(x) for x in mean]
            metadata["std"] = [float(x) for x in std]
        else:
            ignored.append("mean and std (each must be 3 numbers, those of std above 0)")

    size = _get_plain(datamodule, "size")
    if type(size) is int and size > 0:
        metadata["image_size"] = size
    elif size is not None:
        ignored.append("size (must be the side of the images in pixels)")

    classes = _get_plain(datamodule, "classes")
    if isinstance(classes, list) and all(isinstance(name, str) for name in classes):
        metadata["classes"] = classes
    elif classes is not None:
        ignored.append("classes (must be a list of names)")

    return metadata, ignored


def _get_plain(owner: Any, name: str) -> Any:
    """Return the plain form of an attribute, or the attribute itself if it has no plain form."""
    value = getattr(owner, name, None)
    try:
        return to_plain(value)
    except (TypeError, ValueError):
        return value
