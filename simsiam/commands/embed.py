"""The command `embed`: features of a data set, or of any folder of images, in a file."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from simsiam.config.evaluation_commands import Embed
from simsiam.data.dataset import ImageDataset
from simsiam.data.listing.image_list import ImageList
from simsiam.data.listing.sources import list_images
from simsiam.evaluation.checkpoint import LoadedCheckpoint
from simsiam.evaluation.context import open_checkpoint, open_context
from simsiam.evaluation.feature_files import Embedding, choose_writer
from simsiam.evaluation.features import choose_chunk_size
from simsiam.evaluation.results import Results, name_results
from simsiam.evaluation.run_images import find_conversion, use_image_size
from simsiam.evaluation.zoom import choose_zoom
from utils.console import print_line
from utils.device import choose_device
from utils.errors import require
from utils.filesystem import write_atomically
from utils.text import printable

DEFAULT_OUTPUT = "features.npz"


class Source(NamedTuple):
    """The images to embed."""

    checkpoint: LoadedCheckpoint
    name: str  # the data set and its splits, or the folder
    splits: dict[str, ImageDataset | ImageList]
    chunks: Iterator[Tensor]  # (B, 3, side, side) uint8, of all splits one after another
    classes: tuple[str, ...]


def embed(config: Embed) -> None:
    """Write features, labels and the origin of each image into an .npz or a .parquet file.

    The features are those of the backbone, not normalised.
    """
    options = config.embed
    write_features = choose_writer(options.output or DEFAULT_OUTPUT)
    folder = None
    if options.images is not None:
        folder = list_images(options.images, "--images")
        source = open_folder(config, folder)
    else:
        source = open_dataset(config)
    checkpoint = source.checkpoint
    zoom = choose_zoom(options.test_zoom, checkpoint.preparation.size)
    results = Results(config, checkpoint, name_results("embed", options.output))
    output = results.choose_output(options.output, DEFAULT_OUTPUT)

    with results.lock():
        n = sum(len(split) for split in source.splits.values())
        name = printable(source.name)
        print_line(f"{printable(checkpoint.file)}: features of {name}, {n:,} images")
        if folder is not None:
            folder.report_skipped()
        features = checkpoint.extract_features(source.chunks, n, name, unit=False, zoom=zoom)

        # Reading a folder has removed the images that cannot be read, so ask for the lengths again.
        sizes = {name: len(split) for name, split in source.splits.items()}
        labels = [split.labels for split in source.splits.values()]
        embedding = Embedding(
            features=features.cpu().numpy(),
            labels=torch.cat(labels).cpu().numpy(),
            indices=np.concatenate([np.arange(size) for size in sizes.values()]),
            split=np.repeat(list(sizes), list(sizes.values())),
            classes=source.classes,
            paths=list_paths(source.splits),
        )
        write_atomically(output, partial(write_features, embedding))
        n, dimensions = features.shape
        print_line(f"features  {printable(output)}: {n:,} images, {dimensions} features of each")
        results.write(
            {
                "of": source.name,
                "images": n,
                "features": dimensions,
                "classes": list(source.classes),
                "output": str(output),
            }
        )


def list_paths(splits: dict[str, ImageDataset | ImageList]) -> list[str] | None:
    """Return the path of each image of all splits, relative to the folder of the data set.

    Returns:
        None if the images have no files of their own.
    """
    paths: list[str] = []
    for split in splits.values():
        if isinstance(split, ImageList):
            paths += split.files
        elif split.paths is not None:
            paths += split.paths
        else:
            return None
    return paths


def open_dataset(config: Embed) -> Source:
    """Load the checkpoint and the splits of its data set that `--split` names.

    Raises:
        UserError: the splits have no images, or as `open_context`.
    """
    context = open_context(config, choose_device(config.device.accelerator))
    part = config.embed.split or "both"
    splits: dict[str, ImageDataset | ImageList] = {}
    chunks: list[Iterable[Tensor]] = []
    for name, split in (("train", context.train), ("test", context.test)):
        is_chosen = part in ("both", name)
        if is_chosen and len(split) > 0:
            splits[name] = split
            chunks.append(split.images.split(choose_chunk_size(split.images)))
    require(
        len(splits) > 0,
        f"--split {part}: {context.dataset} has no such images. Choose another split",
    )
    name = f"{context.dataset}, {' and '.join(splits)}"
    return Source(context.checkpoint, name, splits, chain.from_iterable(chunks), context.classes)


def open_folder(config: Embed, folder: ImageList) -> Source:
    """Load the checkpoint, and prepare to read the images of a folder."""
    checkpoint = open_checkpoint(config, choose_device(config.device.accelerator))
    checkpoint = use_image_size(checkpoint, config.data.image_size)
    image_size = checkpoint.metadata.image_size
    assert image_size is not None  # `open_checkpoint` requires it
    chunks = folder.read(
        image_size,
        config.data.skip_bad_images,
        find_conversion(config, checkpoint),
    )
    return Source(
        checkpoint, str(config.embed.images), {"folder": folder}, chunks, tuple(folder.classes)
    )
