"""The command `neighbours`: a gallery of what the backbone finds alike."""

from typing import Any

import torch
from torch import Tensor

from simsiam.config.commands import Neighbours
from simsiam.data.cifar import ImageDataset
from simsiam.data.dataset import stored_side
from simsiam.data.images import ImageFolder
from simsiam.evaluation.context import open_context
from simsiam.evaluation.gallery import OTHER, SAME, Tile, gallery, nearest_others
from simsiam.evaluation.results import Results, name_results
from utils.console import print_line
from utils.device import choose_device
from utils.errors import check
from utils.filesystem import write_atomically


def neighbours(config: Neighbours) -> None:
    """Draw the gallery: a row for each query, with the most similar train images by cosine."""
    folder = ImageFolder(config.neighbours.images) if config.neighbours.images is not None else None
    subject = open_context(config, choose_device(config.device.accelerator))
    train, backbone = subject.train, subject.checkpoint.backbone
    results = Results(config, subject.checkpoint, name_results("neighbours", config.neighbours.output))
    output = results.choose_output(config.neighbours.output, "neighbours.png")
    there = len(train) - (not folder and len(subject.test) == 0)  # without the query itself
    check(config.neighbours.k <= there, f"--k {config.neighbours.k}: there are {there} train images")
    if folder:
        folder.keep(evenly(len(folder), config.neighbours.queries))
        size = stored_side(backbone.image_size or train.side)
        images = torch.cat(list(folder.read(size, config.data.skip_bad_images))).to(subject.device)
        names, labels = [file.name for file in folder.files], [-1] * len(folder)
    else:
        asked = subject.test if len(subject.test) else train
        places = torch.tensor(evenly(len(asked), config.neighbours.queries), device=subject.device)
        images, labels = asked.at(places), asked.labels[places].tolist()
        names = asked.names(labels)
    subject.announce()
    queries = subject.extract_features(images, "queries")
    bank = subject.extract_features(train.images, "train images")
    similarity, nearest = nearest_others(
        queries, bank, config.neighbours.k, itself=not folder and len(subject.test) == 0
    )

    rows = gallery_rows(train, [Tile(*query) for query in zip(images, names, strict=True)], labels, similarity, nearest)
    alike = sum(tile.frame == SAME for row in rows for tile in row)
    heading = f"Queries on the left; right of each the {config.neighbours.k} nearest train images of {subject.dataset}."
    figures: dict[str, Any] = {"queries": len(names), "k": config.neighbours.k, "output": str(output)}
    if not folder and train.labelled:
        heading += " Blue frame: of the same class; orange: of another."
        figures["same_class"] = 100 * alike / (config.neighbours.k * len(names))
    picture = gallery(heading, rows)
    write_atomically(output, lambda partial: picture.save(partial, "PNG"))
    print_line(f"picture   {output}")
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3)
    results.write(
        figures, pictures=lambda writer, step: writer.add_image("neighbours", pixels, step, dataformats="HWC")
    )


def gallery_rows(
    train: ImageDataset, queries: list[Tile], labels: list[int], similarity: Tensor, nearest: Tensor
) -> list[list[Tile]]:
    """For each query itself and its neighbours, framed where the query has a label (else it is -1).

    Args:
        similarity, nearest: (Q, k), cosines and places among the train images.
    """
    rows = []
    for query, label, cosines, places in zip(queries, labels, similarity.tolist(), nearest, strict=True):
        row, found = [query], train.labels[places].tolist()
        for image, its, cosine in zip(train.at(places), found, cosines, strict=True):
            frame = None if label < 0 else SAME if its == label else OTHER
            row.append(Tile(image, f"{train.names([its])[0]} {cosine:.2f}".strip(), frame))
        rows.append(row)
    return rows


def evenly(n: int, count: int) -> list[int]:
    """`count` places spread over 0 .. n - 1, or all of them; also where classes come in turn, of different ones."""
    return [i * n // count + i % (n // count) for i in range(count)] if count < n else list(range(n))
