"""The command `neighbours`: a gallery of what the backbone finds alike."""

from typing import Any

import torch
from torch import Tensor

from simsiam.config import Neighbours
from simsiam.datasets import Images
from simsiam.evaluation import Results, open_subject, results_name
from simsiam.pictures import OTHER, SAME, Tile, gallery
from utils.device import choose_device
from utils.errors import check
from utils.files import write_atomically
from utils.images import ImageFolder
from utils.terminal import say


def neighbours(config: Neighbours) -> None:
    """Draw the gallery: a row for each query, with the most similar train images by cosine."""
    folder = ImageFolder(config.images) if config.images is not None else None
    subject = open_subject(config, choose_device(config.accelerator))
    train, backbone = subject.train, subject.trained.backbone
    results = Results(config, subject.trained, results_name("neighbours", config.output))
    output = results.output(config.output, "neighbours.png")
    check(config.k <= len(train), f"--k {config.k}: there are {len(train)} train images")
    if folder:
        folder.keep(evenly(len(folder), config.queries))
        size = backbone.image_size or train.images.shape[-1]
        images = torch.cat(list(folder.read(size, config.skip_bad_images))).to(subject.device)
        names, labels = [file.name for file in folder.files], [-1] * len(folder)
    else:
        places = evenly(len(subject.test), config.queries)
        images, labels = subject.test.images[places], subject.test.labels[places].tolist()
        names = [subject.classes[label] for label in labels]
    subject.announce()
    queries = subject.features(images, "queries")
    similarity, nearest = (queries @ subject.features(train.images, "train images").T).topk(config.k, dim=1)

    rows = gallery_rows(train, [Tile(*query) for query in zip(images, names, strict=True)], labels, similarity, nearest)
    alike = sum(tile.frame == SAME for row in rows for tile in row)
    heading = (
        f"Left: queries. Right of each: the {config.k} train images of {subject.dataset} nearest to it, by cosine."
    )
    figures: dict[str, Any] = {"queries": len(names), "k": config.k, "output": str(output)}
    if not folder:
        heading += " Blue frame: of the same class; orange: of another."
        figures["same_class"] = 100 * alike / (config.k * len(names))
    picture = gallery(heading, rows)
    write_atomically(output, lambda partial: picture.save(partial, "PNG"))
    say(f"picture   {output}")
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3)
    results.write(
        figures, pictures=lambda writer, step: writer.add_image("neighbours", pixels, step, dataformats="HWC")
    )


def gallery_rows(
    train: Images, queries: list[Tile], labels: list[int], similarity: Tensor, nearest: Tensor
) -> list[list[Tile]]:
    """For each query itself and its neighbours, framed where the query has a label (else it is -1).

    Args:
        similarity, nearest: (Q, k), cosines and places among the train images.
    """
    rows = []
    for query, label, cosines, places in zip(queries, labels, similarity.tolist(), nearest.tolist(), strict=True):
        row = [query]
        for cosine, j in zip(cosines, places, strict=True):
            found = int(train.labels[j])
            frame = None if label < 0 else SAME if found == label else OTHER
            row.append(Tile(train.images[j], f"{train.classes[found]} {cosine:.2f}", frame))
        rows.append(row)
    return rows


def evenly(n: int, count: int) -> list[int]:
    """`count` places spread over 0 .. n - 1, or all of them."""
    return [i * n // count for i in range(count)] if count < n else list(range(n))
