"""The command `embed`: features of a data set, or of any folder of images, as a file that numpy reads."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simsiam.callbacks.images import log_embedding
from simsiam.config.commands import Embed
from simsiam.data.dataset import stored_side
from simsiam.data.images import ImageFolder
from simsiam.evaluation.checkpoint import LoadedCheckpoint
from simsiam.evaluation.context import EvaluationContext, open_checkpoint, open_context
from simsiam.evaluation.features import chunk_size
from simsiam.evaluation.results import Results, name_results
from utils.console import print_line, print_table
from utils.device import choose_device
from utils.errors import check
from utils.filesystem import write_atomically

Arrays = dict[str, np.ndarray]


def embed(config: Embed) -> None:
    """Write features (as the backbone gives them: not normalised), labels, indices and where each image is from."""
    device, name = choose_device(config.device.accelerator), name_results("embed", config.embed.output)
    if config.embed.images is not None:
        folder = ImageFolder(config.embed.images)
        checkpoint = open_checkpoint(config, device)
        results = Results(config, checkpoint, name)
        output = results.choose_output(config.embed.output, "features.npz")
        print_line(f"{checkpoint.file}: the images in {folder.folder}, {len(folder):,} files")
        arrays = embed_folder(checkpoint, folder, config.data.skip_bad_images)
        results.write(write_arrays(output, arrays, config.embed.images))
        return
    context = open_context(config, device)
    results = Results(config, context.checkpoint, name)
    output = results.choose_output(config.embed.output, "features.npz")
    context.announce()
    arrays = embed_splits(context, config.embed.split)
    splits = " and ".join(dict.fromkeys(arrays["split"].tolist()))
    figures = write_arrays(output, arrays, f"{context.dataset}, {splits}")
    points = torch.from_numpy(arrays["features"][arrays["split"] == "test"])
    log_points = (lambda writer, step: log_embedding(writer, context.test, points, step)) if len(points) else None
    results.write(figures, pictures=log_points)


def write_arrays(output: Path, arrays: Arrays, what: str) -> dict[str, Any]:
    """Write the file, print a table of it, and return what summary.json says of it."""

    def write_npz(partial: Path) -> None:
        with open(partial, "wb") as file:  # given a name, numpy would add a suffix to it
            np.savez(file, allow_pickle=False, **arrays)

    write_atomically(output, write_npz)
    n, dimensions = arrays["features"].shape
    print_table("embedded", ("images", "number", "features"), [(what, f"{n:,}", str(dimensions))])
    print_line(f"features  {output}")
    figures = {"of": what, "images": n, "features": dimensions, "classes": arrays["classes"].tolist()}
    return figures | {"output": str(output)}


def embed_splits(context: EvaluationContext, split: str) -> Arrays:
    """The data set's own images, train before test."""
    parts = {"train": context.train, "test": context.test}
    parts = {name: images for name, images in parts.items() if split in ("both", name) and len(images)}
    check(bool(parts), f"--split {split}: {context.dataset} has no such images")
    n = sum(len(images) for images in parts.values())
    chunks = itertools.chain.from_iterable(x.images.split(chunk_size(x.images)) for x in parts.values())
    features = context.checkpoint.extract_features(chunks, n, context.dataset, unit=False)
    return {
        "features": features.cpu().numpy(),
        "labels": np.concatenate([images.labels.cpu().numpy() for images in parts.values()]),
        "indices": np.concatenate([np.arange(len(images)) for images in parts.values()]),
        "split": np.concatenate([np.full(len(images), name) for name, images in parts.items()]),
        "classes": np.array(context.classes, dtype=np.str_),
    }


def embed_folder(checkpoint: LoadedCheckpoint, folder: ImageFolder, skip_bad: bool) -> Arrays:
    """A folder's images; labels are those of its sub-folders."""
    chunks = folder.read(stored_side(checkpoint.facts.image_size), skip_bad)
    features = checkpoint.extract_features(chunks, len(folder), "images", unit=False)
    return {
        "features": features.cpu().numpy(),
        "labels": folder.labels.numpy(),
        "indices": np.arange(len(folder)),
        "split": np.full(len(folder), "folder"),
        "classes": np.array(folder.classes, dtype=np.str_),
        "paths": np.array([str(file) for file in folder.files]),
    }
