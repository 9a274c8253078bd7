"""The command `embed`: features of a data set, or of any folder of images, as a file that numpy reads."""

import itertools
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from simsiam.callbacks.images import log_embedding
from simsiam.config.commands import Embed
from simsiam.data.dataset import stored_side
from simsiam.data.images import ImageFolder
from simsiam.evaluation.context import EvaluationContext, Model, open_checkpoint, open_context
from simsiam.evaluation.features import chunk_size
from simsiam.evaluation.results import Results, results_name
from utils.console import print_line, print_table
from utils.device import choose_device
from utils.errors import check
from utils.filesystem import write_atomically

Arrays = dict[str, np.ndarray]


def embed(config: Embed) -> None:
    """Write features (as the backbone gives them: not normalised), labels, indices and where each image is from."""
    device = choose_device(config.device.accelerator)
    if config.embed.images is not None:
        folder = ImageFolder(config.embed.images)
        model = open_checkpoint(config, device)
    else:
        subject = open_context(config, device)
        model = subject.model
    results = Results(config, model.trained, results_name("embed", config.embed.output))
    output = results.output(config.embed.output, "features.npz")
    if config.embed.images is not None:
        print_line(f"{model.trained.file}: the images in {folder.folder}, {len(folder):,} files")
        arrays, tested = of_folder(model, folder, config.data.skip_bad_images), None
    else:
        subject.announce()
        arrays = of_splits(subject, config.embed.split)
        tested = torch.from_numpy(arrays["features"][arrays["split"] == "test"])
    write_atomically(output, lambda partial: (write_npz if output.suffix == ".npz" else write_npy)(partial, arrays))

    where = config.embed.images or f"{subject.dataset}, {' and '.join(dict.fromkeys(arrays['split'].tolist()))}"
    n, dimensions = arrays["features"].shape
    print_table("embedded", ("images", "number", "features"), [(where, f"{n:,}", str(dimensions))])
    print_line(f"features  {output}")
    figures = {"of": where, "images": n, "features": dimensions, "classes": arrays["classes"].tolist()}
    figures["output"] = str(output)
    if tested is None or len(tested) == 0:
        results.write(figures)
    else:
        test, points = subject.test, tested
        results.write(figures, pictures=lambda writer, step: log_embedding(writer, test, points, step))


def of_splits(subject: EvaluationContext, split: str) -> Arrays:
    """The data set's own images, train before test."""
    parts = {"train": subject.train, "test": subject.test}
    parts = {name: images for name, images in parts.items() if split in ("both", name) and len(images)}
    check(bool(parts), f"--split {split}: {subject.dataset} has no such images")
    n = sum(len(images) for images in parts.values())
    chunks = itertools.chain.from_iterable(x.images.split(chunk_size(x.images)) for x in parts.values())
    return {
        "features": subject.model.features(chunks, n, subject.dataset, unit=False).cpu().numpy(),
        "labels": np.concatenate([images.labels.cpu().numpy() for images in parts.values()]),
        "indices": np.concatenate([np.arange(len(images)) for images in parts.values()]),
        "split": np.concatenate([np.full(len(images), name) for name, images in parts.items()]),
        "classes": np.array(subject.classes, dtype=np.str_),
    }


def of_folder(model: Model, folder: ImageFolder, skip_bad: bool) -> Arrays:
    """A folder's images; labels are those of its sub-folders."""
    chunks = folder.read(stored_side(model.trained.backbone.image_size or 32), skip_bad)
    features = model.features(chunks, len(folder), "images", unit=False)
    return {
        "features": features.cpu().numpy(),
        "labels": folder.labels.numpy(),
        "indices": np.arange(len(folder)),
        "split": np.full(len(folder), "folder"),
        "classes": np.array(folder.classes, dtype=np.str_),
        "paths": np.array([str(file) for file in folder.files]),
    }


def write_npz(path: Path, arrays: Arrays) -> None:
    with open(path, "wb") as file:  # given a name, numpy would add a suffix to it
        np.savez(file, allow_pickle=False, **arrays)


def write_npy(path: Path, arrays: Arrays) -> None:
    """One table, a row an image, with the arrays' names as columns; filled where it lies, not in memory."""
    columns = {name: array for name, array in arrays.items() if name != "classes"}
    kind = np.dtype([(name, array.dtype, array.shape[1:]) for name, array in columns.items()])
    table = open_memmap(path, mode="w+", dtype=kind, shape=(len(columns["features"]),))
    for name, array in columns.items():
        table[name] = array
    table.flush()
