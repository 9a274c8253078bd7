"""The command `embed`: features of a data set, or of any folder of images, as a file that numpy reads."""

from itertools import chain
from pathlib import Path

import numpy as np
import torch

from simsiam.config.commands import Embed
from simsiam.data.dataset import stored_side
from simsiam.data.listing import ImageFolder
from simsiam.evaluation.context import find_pixel_range, open_checkpoint, open_context
from simsiam.evaluation.features import chunk_size
from simsiam.evaluation.results import Results, name_results
from utils.console import print_line
from utils.device import choose_device
from utils.errors import require
from utils.filesystem import write_atomically
from utils.text import printable


def embed(config: Embed) -> None:
    """Write features (as the backbone gives them: not normalised), labels, indices and where each image is from."""
    options, device = config.embed, choose_device(config.device.accelerator)
    folder = None if options.images is None else ImageFolder(options.images)
    if folder is None:
        context = open_context(config, device)
        checkpoint, classes = context.checkpoint, context.classes
        splits = {"train": context.train, "test": context.test}
        splits = {
            name: split
            for name, split in splits.items()
            if options.split in ("both", name) and len(split)
        }
        require(bool(splits), f"--split {options.split}: {context.dataset} has no such images")
        what = f"{context.dataset}, {' and '.join(splits)}"
        chunks = chain.from_iterable(
            split.images.split(chunk_size(split.images)) for split in splits.values()
        )
    else:
        checkpoint, classes = open_checkpoint(config, device), folder.classes
        splits, what = {"folder": folder}, str(options.images)
        chunks = folder.read(
            stored_side(checkpoint.facts.image_size or 0),
            config.data.skip_bad_images,
            find_pixel_range(config, checkpoint),
        )
    results = Results(config, checkpoint, name_results("embed", options.output))
    output = results.choose_output(options.output, "features.npz")
    n = sum(map(len, splits.values()))
    print_line(f"{printable(checkpoint.file)}: of {printable(what)}, {n:,} images")
    if folder is not None:
        folder.report_skipped()
    features = checkpoint.extract_features(chunks, n, printable(what), unit=False).cpu()
    sizes = {name: len(split) for name, split in splits.items()}  # without what could not be read
    arrays = {
        "features": features.numpy(),
        "labels": torch.cat([split.labels for split in splits.values()]).cpu().numpy(),
        "indices": np.concatenate([np.arange(size) for size in sizes.values()]),
        "split": np.repeat(list(sizes), list(sizes.values())),
        "classes": np.array(classes, dtype=np.str_),
    }
    if folder:
        # Bytes that are not UTF-8 stay as `os.fsdecode` gives them, so that `open` takes the paths.
        arrays["paths"] = np.array([str(file) for file in folder.files])

    def write_npz(partial: Path) -> None:
        with open(partial, "wb") as file:  # given a name, numpy would add a suffix to it
            np.savez(file, allow_pickle=False, **arrays)

    write_atomically(output, write_npz)
    figures = {
        "of": what,
        "images": len(features),
        "features": features.shape[1],
        "classes": list(classes),
    }
    size = f"{len(features):,} images, {features.shape[1]} features of each"
    print_line(f"features  {printable(output)}: {size}")
    results.write(figures | {"output": str(output)})
