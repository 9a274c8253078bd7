"""The command `embed`: features of a data set, or of any folder of images, as a file that numpy reads."""

from itertools import chain
from pathlib import Path

import numpy as np
import torch

from simsiam.config.commands import Embed
from simsiam.data.dataset import stored_side
from simsiam.data.images import ImageFolder
from simsiam.evaluation.context import open_checkpoint, open_context
from simsiam.evaluation.features import chunk_size
from simsiam.evaluation.results import Results, name_results
from utils.console import print_line, print_table
from utils.device import choose_device
from utils.errors import check
from utils.filesystem import write_atomically


def embed(config: Embed) -> None:
    """Write features (as the backbone gives them: not normalised), labels, indices and where each image is from."""
    options, device = config.embed, choose_device(config.device.accelerator)
    folder = None if options.images is None else ImageFolder(options.images)
    context = None if folder else open_context(config, device)
    checkpoint = context.checkpoint if context else open_checkpoint(config, device)
    results = Results(config, checkpoint, name_results("embed", options.output))
    output, splits = results.choose_output(options.output, "features.npz"), {}
    if context:
        splits = {"train": context.train, "test": context.test}
        splits = {name: split for name, split in splits.items() if options.split in ("both", name) and len(split)}
        check(bool(splits), f"--split {options.split}: {context.dataset} has no such images")
        context.announce()
        chunks = chain.from_iterable(split.images.split(chunk_size(split.images)) for split in splits.values())
        n, name, what = sum(map(len, splits.values())), context.dataset, f"{context.dataset}, {' and '.join(splits)}"
    else:
        assert folder and options.images
        chunks = folder.read(stored_side(checkpoint.facts.image_size or 0), config.data.skip_bad_images)
        n, name, what = len(folder), "images", options.images
        print_line(f"{checkpoint.file}: the images in {folder.folder}, {n:,} files")
    features = checkpoint.extract_features(chunks, n, name, unit=False).cpu()
    if folder:  # without what could not be read
        labels, sizes, classes = folder.labels, {"folder": len(folder)}, folder.classes
    else:
        assert context
        labels = torch.cat([split.labels for split in splits.values()]).cpu()
        sizes, classes = {name: len(split) for name, split in splits.items()}, context.classes
    arrays = {
        "features": features.numpy(),
        "labels": labels.numpy(),
        "indices": np.concatenate([np.arange(size) for size in sizes.values()]),
        "split": np.repeat(list(sizes), list(sizes.values())),
        "classes": np.array(classes, dtype=np.str_),
    }
    if folder:
        arrays["paths"] = np.array([str(file) for file in folder.files])

    def write_npz(partial: Path) -> None:
        with open(partial, "wb") as file:  # given a name, numpy would add a suffix to it
            np.savez(file, allow_pickle=False, **arrays)

    write_atomically(output, write_npz)
    figures = {"of": what, "images": len(features), "features": features.shape[1], "classes": list(classes)}
    rows = [(what, f"{len(features):,}", str(features.shape[1]))]
    print_table("embedded", ("images", "number", "features"), rows)
    print_line(f"features  {output}")
    results.write(figures | {"output": str(output)})
