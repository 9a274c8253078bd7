"""The command `neighbours`: a gallery of images and their nearest neighbours in feature space."""

from functools import partial
from typing import Any

import torch

from simsiam.config.evaluation_commands import Neighbours
from simsiam.data.dataset import ImageDataset
from simsiam.data.listing.image_list import ImageList
from simsiam.data.listing.sources import list_images
from simsiam.evaluation.context import EvaluationContext, open_context
from simsiam.evaluation.gallery import (
    Nearest,
    Tile,
    draw_gallery,
    find_nearest,
    gallery_rows,
    select_evenly,
)
from simsiam.evaluation.results import Results, name_results
from simsiam.evaluation.run_images import find_conversion
from utils.console import print_line
from utils.device import choose_device
from utils.errors import require
from utils.filesystem import write_atomically
from utils.text import printable


def neighbours(config: Neighbours) -> None:
    """Draw a row for each query, with the train images of the highest cosine to it."""
    options = config.neighbours
    folder = None
    if options.images is not None:
        folder = list_images(options.images, "--images")
    context = open_context(config, choose_device(config.device.accelerator))
    train = context.train
    results = Results(config, context.checkpoint, name_results("neighbours", options.output))
    output = results.choose_output(options.output, "neighbours.png")

    # Without a folder and without test images, the queries are train images.
    in_bank = folder is None and len(context.test) == 0
    candidates = len(train) - 1 if in_bank else len(train)  # no query is its own neighbour
    require(
        options.k <= candidates,
        f"--k {options.k} is too large: there are {candidates} train images to find",
    )
    with results.lock():
        if folder is not None:
            queries = read_queries(config, context, folder)
            query_indices = list(range(len(queries)))
            query_source = str(options.images)
        else:
            source = train if in_bank else context.test
            query_indices = select_evenly(len(source), options.queries)
            queries = source.subset(torch.tensor(query_indices))
            query_source = "train images" if in_bank else source.evaluation_name

        context.announce()
        features = context.extract_features(queries.images, "queries")
        bank = context.extract_features(train.images, "train images")
        bank_index = torch.tensor(query_indices) if in_bank else None
        nearest = find_nearest(features, bank, options.k, bank_index)
        rows = gallery_rows(train, queries, nearest.index, nearest.similarity)

        heading = (
            f"Left: queries. Right of each: the {options.k} train images of {context.dataset} with "
            "the highest cosine."
        )
        summary: dict[str, Any] = {
            "queries": len(rows),
            "k": options.k,
            "output": str(output),
            "query_source": query_source,
            "neighbours": name_neighbours(train, queries, query_indices, nearest),
        }
        if folder is None and train.labelled:
            heading += " Blue frame: of the same class; orange: of another."
            summary["same_class"] = same_class_percentage(rows)
        picture = draw_gallery(rows, heading)
        write_atomically(output, partial(picture.save, format="PNG"))
        print_line(f"picture   {printable(output)}")
        results.write(summary)


def read_queries(config: Neighbours, context: EvaluationContext, folder: ImageList) -> ImageDataset:
    """Return `--queries` evenly spread images of a folder, without labels."""
    folder.keep(select_evenly(len(folder), config.neighbours.queries))
    folder.report_skipped()
    chunks = folder.read(
        context.checkpoint.metadata.image_size or context.train.side,
        config.data.skip_bad_images,
        find_conversion(config, context.checkpoint),
    )
    images = torch.cat(list(chunks))
    no_labels = torch.full((len(images),), -1)
    return ImageDataset(images, no_labels, classes=(), paths=folder.files)


def name_neighbours(
    train: ImageDataset, queries: ImageDataset, query_indices: list[int], nearest: Nearest
) -> list[dict[str, Any]]:
    """Return each query and its neighbours, with their cosines, for summary.json.

    An image has the name of its file, relative to the folder of the data set or of the queries. In
    a data set without files, it has its index in its split.
    """
    neighbours: list[dict[str, Any]] = []
    for r, query_index in enumerate(query_indices):
        index = nearest.index[r].tolist()
        neighbours.append(
            {
                "query": queries.paths[r] if queries.paths is not None else query_index,
                "nearest": [train.paths[i] for i in index] if train.paths is not None else index,
                "cosine": [round(cosine, 4) for cosine in nearest.similarity[r].tolist()],
            }
        )
    return neighbours


def same_class_percentage(rows: list[list[Tile]]) -> float | None:
    """Return how many neighbours in percent have the class of their query.

    Pairs of which one image has no class do not count. The result is None if there is no other.
    """
    known = [tile.same_class for row in rows for tile in row if tile.same_class is not None]
    if not known:
        return None
    return 100 * sum(known) / len(known)
