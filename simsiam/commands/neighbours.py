"""The command `neighbours`: a gallery of what the backbone finds alike."""

from typing import Any

import torch
from torchvision.transforms.functional import pil_to_tensor

from simsiam.config.commands import Neighbours
from simsiam.data.dataset import stored_side
from simsiam.data.images import ImageFolder
from simsiam.evaluation.context import open_context
from simsiam.evaluation.gallery import draw_gallery, find_nearest, gallery_rows, select_evenly
from simsiam.evaluation.results import Results, name_results
from utils.console import print_line
from utils.device import choose_device
from utils.errors import check
from utils.filesystem import write_atomically


def neighbours(config: Neighbours) -> None:
    """Draw a row for each query, with the most similar train images by cosine."""
    k = config.neighbours.k
    folder = ImageFolder(config.neighbours.images) if config.neighbours.images is not None else None
    subject = open_context(config, choose_device(config.device.accelerator))
    train, backbone = subject.train, subject.checkpoint.backbone
    results = Results(config, subject.checkpoint, name_results("neighbours", config.neighbours.output))
    output = results.choose_output(config.neighbours.output, "neighbours.png")
    in_bank = folder is None and len(subject.test) == 0
    check(
        config.neighbours.k <= len(train) - in_bank,
        f"--k {k}: there are {len(train) - in_bank} train images",
    )
    if folder:
        folder.keep(select_evenly(len(folder), config.neighbours.queries))
        size = stored_side(backbone.image_size or train.side)
        images = torch.cat(list(folder.read(size, config.data.skip_bad_images))).to(subject.device)
        names, labels = [file.name for file in folder.files], [-1] * len(folder)
    else:
        source = train if in_bank else subject.test
        indices = torch.tensor(select_evenly(len(source), config.neighbours.queries), device=subject.device)
        images, names, labels = source.at(indices), None, source.labels[indices].tolist()
    subject.announce()
    queries = subject.extract_features(images, "queries")
    bank = subject.extract_features(train.images, "train images")
    similarity, nearest = find_nearest(queries, bank, k, in_bank)
    rows = gallery_rows(train, images, labels, nearest, similarity, names)

    heading = f"Left: queries. Right of each: the {k} train images of {subject.dataset} nearest to it, by cosine."
    figures: dict[str, Any] = {"queries": len(rows), "k": k, "output": str(output)}
    if not folder and train.labelled:
        heading += " Blue frame: of the same class; orange: of another."
        alike = sum(tile.same_class is True for row in rows for tile in row)
        figures["same_class"] = 100 * alike / (k * len(rows))
    picture = draw_gallery(rows, heading)
    write_atomically(output, lambda partial: picture.save(partial, "PNG"))
    print_line(f"picture   {output}")
    results.write(figures, pictures=lambda writer, step: writer.add_image("neighbours", pil_to_tensor(picture), step))
