"""The command `export`: the backbone alone, in a file for use elsewhere."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.resnet import ResNet
from simsiam.augment import normalize
from simsiam.config.commands import Export
from simsiam.evaluation.checkpoint import load_backbone_file
from simsiam.evaluation.context import open_context
from simsiam.evaluation.features import center
from simsiam.evaluation.results import Results
from utils import export as formats
from utils.console import print_line, print_table
from utils.errors import check
from utils.filesystem import write_atomically

SUFFIXES = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}
IMAGES = 64  # real ones, on which the file is compared with the checkpoint
TOLERANCE = 1e-4  # largest difference between features, as a share of the largest feature


def export(config: Export) -> None:
    """Write the file, load it back, compare it on real images, and only then put it in place.

    Raises UserError, among others where the file does not do what the checkpoint does.
    """
    format, given = config.export.format, config.export.output
    suffix = SUFFIXES[format]
    if format == "onnx":
        formats.check_onnx()
    named = given is None or given.endswith(suffix)
    check(named, f"--output {given}: with --format {format} a name that ends in {suffix}")
    context = open_context(config, torch.device("cpu"))
    checkpoint, split = context.checkpoint, context.test if len(context.test) else context.train
    results = Results(config, checkpoint, f"export_{format}")
    output = results.choose_output(given, f"backbone{suffix}")
    metadata = {"classes": list(context.classes)} | checkpoint.facts.model_dump(exclude_unset=True)
    metadata["checkpoint"] = str(checkpoint.file)
    images = center(split.images[:IMAGES], checkpoint.facts.image_size)
    images = normalize(images.float() / 255, *checkpoint.statistics)
    differences: dict[int, float] = {}

    def write_and_compare(path: Path) -> None:
        write_backbone(path, format, checkpoint.backbone, images, metadata)
        run, found = read_backbone(path, format)
        check(found == metadata, f"{format}: the metadata did not survive; nothing was written")
        for n in sorted({1, len(images) // 2 or 1, len(images)}):
            with torch.no_grad():
                expected, got = checkpoint.backbone(images[:n]), run(images[:n])
            differences[n] = ((got - expected).abs().max() / expected.abs().max()).item()
        worst = max(differences.values())
        check(worst <= TOLERANCE, f"{format}: features differ by {worst:.1e} of the largest; nothing was written")

    context.announce()
    print_line(f"writing {output} and comparing it")
    write_atomically(output, write_and_compare)
    rows = [(f"{n} images", f"{difference:.1e}") for n, difference in differences.items()]
    print_table(f"{format} against the checkpoint, on real images", ("batch of", "largest difference"), rows)
    size = output.stat().st_size
    print_line(f"{format}  {output}, {size / 2**20:.1f} MiB")
    results.write({"format": format, "output": str(output), "bytes": size, "largest_difference": differences})


def write_backbone(path: Path, format: str, backbone: ResNet, images: Tensor, metadata: dict[str, Any]) -> None:
    if format == "safetensors":
        formats.write_weights(path, formats.BACKBONE, backbone.state_dict(), metadata)
    else:
        write = formats.write_onnx if format == "onnx" else formats.write_torch_export
        write(path, backbone, images[:1].repeat(2, 1, 1, 1), metadata)


def read_backbone(path: Path, format: str) -> tuple[formats.Run, dict[str, Any]]:
    """The network that a file holds, and its metadata."""
    if format == "safetensors":
        loaded = load_backbone_file(path)
        return loaded.backbone, loaded.facts.model_dump(exclude_unset=True)
    return (formats.read_onnx if format == "onnx" else formats.read_torch_export)(path)
