"""The command `neighbours`: a gallery of what the backbone finds alike."""

from functools import partial

import torch

from simsiam.config.commands import Neighbours
from simsiam.data.dataset import ImageDataset, stored_side
from simsiam.data.listing import ImageFolder
from simsiam.evaluation.context import find_pixel_range, open_context
from simsiam.evaluation.gallery import draw_gallery, find_nearest, select_evenly
from simsiam.evaluation.results import Results, name_results
from utils.console import print_line
from utils.device import choose_device
from utils.errors import require
from utils.filesystem import write_atomically
from utils.text import printable


def neighbours(config: Neighbours) -> None:
    """Draw a row for each query, with the most similar train images by cosine."""
    options, k = config.neighbours, config.neighbours.k
    folder = ImageFolder(options.images) if options.images is not None else None
    context = open_context(config, choose_device(config.device.accelerator))
    results = Results(config, context.checkpoint, name_results("neighbours", options.output))
    output = results.choose_output(options.output, "neighbours.png")
    train, in_bank = context.train, folder is None and len(context.test) == 0
    require(k <= len(train) - in_bank, f"--k {k}: there are {len(train) - in_bank} train images")
    if folder:
        folder.keep(select_evenly(len(folder), options.queries))
        size = stored_side(context.checkpoint.backbone.image_size or train.side)
        folder.report_skipped()
        pixel_range = find_pixel_range(config, context.checkpoint)
        images = torch.cat(list(folder.read(size, config.data.skip_bad_images, pixel_range)))
        names = tuple(printable(file.name) for file in folder.files)
        shown = ImageDataset(images, torch.arange(len(images)), names)
    else:
        source = train if in_bank else context.test
        shown = source.subset(torch.tensor(select_evenly(len(source), options.queries)))
    context.announce()
    queries = context.extract_features(shown.images, "queries")
    bank = context.extract_features(train.images, "train images")
    rows = find_nearest(train, shown, queries, bank, k, in_bank)

    heading = f"Left: queries. Right of each: the {k} train images of {context.dataset} nearest to it, by cosine."
    figures: dict[str, int | float | str] = {"queries": len(rows), "k": k, "output": str(output)}
    if not folder and train.labelled:
        heading += " Blue frame: of the same class; orange: of another."
        figures["same_class"] = (
            100 * sum(tile.same_class is True for row in rows for tile in row) / (k * len(rows))
        )
    write_atomically(output, partial(draw_gallery(rows, heading).save, format="PNG"))
    print_line(f"picture   {printable(output)}")
    results.write(figures)
