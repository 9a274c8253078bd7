"""The command `export`: the backbone alone, in a file for use elsewhere."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.resnet import ResNet
from simsiam.augment import normalize
from simsiam.config.commands import Export
from simsiam.evaluation.checkpoint import build_backbone, load_strictly
from simsiam.evaluation.context import open_context
from simsiam.evaluation.features import center
from simsiam.evaluation.results import Results
from utils.console import print_line, print_table
from utils.errors import check
from utils.export import (
    BACKBONE,
    Run,
    check_onnx,
    read_onnx,
    read_torch_export,
    read_weights,
    write_onnx,
    write_torch_export,
    write_weights,
)
from utils.filesystem import write_atomically

SUFFIX = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}
IMAGES = 64  # real ones, on which a file is compared before it counts
TOLERANCE = 1e-4  # largest difference between features, as a share of the largest feature


def export(config: Export) -> None:
    """Write the file, load it back, compare it on real images, and only then put it in place.

    Raises:
        UserError: among others, where the file does not do what the checkpoint does.
    """
    if config.export.format == "onnx":
        check_onnx()
    suffix = SUFFIX[config.export.format]
    wrong = config.export.output is not None and not config.export.output.endswith(suffix)
    check(
        not wrong, f"--output {config.export.output}: with --format {config.export.format} a name that ends in {suffix}"
    )
    subject = open_context(config, torch.device("cpu"))
    results = Results(config, subject.trained, f"export_{config.export.format}")
    output = results.output(config.export.output, f"backbone{suffix}")
    backbone = subject.trained.backbone
    about = {"classes": list(subject.classes)} | subject.trained.about | {"checkpoint": str(subject.trained.file)}
    some = (subject.test if len(subject.test) else subject.train).images[:IMAGES]
    images = normalize(center(some, backbone.image_size).float() / 255, subject.model.mean, subject.model.std)
    differences: dict[int, float] = {}

    def write_and_compare(path: Path) -> None:
        write(path, config.export.format, backbone, images, about)
        run, metadata = read(path, config.export.format)
        check(metadata == about, f"{config.export.format}: the metadata did not survive; nothing was written")
        differences.update(compare(run, backbone, images))
        worst = max(differences.values())
        check(
            worst <= TOLERANCE,
            f"{config.export.format}: features differ by {worst:.1e} of the largest; nothing was written",
        )

    subject.announce()
    print_line(f"writing {output} and comparing it")
    write_atomically(output, write_and_compare)
    rows = [(f"{n} images", f"{difference:.1e}") for n, difference in differences.items()]
    print_table(
        f"{config.export.format} against the checkpoint, on real images", ("batch of", "largest difference"), rows
    )
    size = output.stat().st_size
    print_line(f"{config.export.format}  {output}, {size / 2**20:.1f} MiB")
    compared = {str(n): difference for n, difference in differences.items()}
    results.write(
        {"format": config.export.format, "output": str(output), "bytes": size, "largest_difference": compared}
    )


def write(path: Path, format: str, backbone: ResNet, images: Tensor, about: dict[str, Any]) -> None:
    if format == "safetensors":
        write_weights(path, BACKBONE, backbone.state_dict(), about)
        return
    example = images[:1].repeat(2, 1, 1, 1)  # of one image, an exporter would take the batch size for a constant
    (write_onnx if format == "onnx" else write_torch_export)(path, backbone, example, about)


def read(path: Path, format: str) -> tuple[Run, dict[str, Any]]:
    """What a file does, and what it says of itself."""
    if format != "safetensors":
        return (read_onnx if format == "onnx" else read_torch_export)(path)
    about, state = read_weights(path, BACKBONE)
    network = build_backbone(about)
    load_strictly(network, state, path)
    return network.eval(), about


@torch.no_grad()
def compare(run: Run, backbone: ResNet, images: Tensor) -> dict[int, float]:
    """Batch size -> largest difference between features, as a share of the largest feature."""
    batches = [images[:n] for n in sorted({1, len(images) // 2 or 1, len(images)})]
    found = {}
    for batch in batches:
        expected = backbone(batch)
        found[len(batch)] = ((run(batch) - expected).abs().max() / expected.abs().max()).item()
    return found
