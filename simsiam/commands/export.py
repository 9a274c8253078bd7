"""The command `export`: the backbone alone, in a file for use elsewhere."""

import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.resnet import ResNet
from simsiam.augment import normalize
from simsiam.config.commands import Export
from simsiam.config.options import EvaluationDataOptions
from simsiam.evaluation.checkpoint import LoadedCheckpoint, load_backbone_file
from simsiam.evaluation.context import EvaluationContext, add_images, open_checkpoint
from simsiam.evaluation.features import center
from simsiam.evaluation.results import Results
from utils.console import print_line
from utils.errors import UserError, require
from utils.filesystem import write_atomically
from utils.text import printable
from utils.weights import BACKBONE, write_weights

SUFFIXES = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}
ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")
IMAGES = 64  # on which the file is compared with the checkpoint
TOLERANCE = 1e-4  # largest difference between features, as a share of the largest feature


def export(config: Export) -> None:
    """Write the file, load it back, compare it on images, and only then put it in place."""
    format, given = config.export.format, config.export.output
    suffix = SUFFIXES[format]
    missing = [
        name for name in ONNX_NEEDS if format == "onnx" and importlib.util.find_spec(name) is None
    ]
    require(
        not missing, f"--format onnx needs {' '.join(missing)}: pip install {' '.join(missing)}"
    )
    named = given is None or given.endswith(suffix)
    require(named, f"--output {given}: with --format {format} a name that ends in {suffix}")
    checkpoint = open_checkpoint(config, torch.device("cpu"))
    results = Results(config, checkpoint, f"export_{format}")
    output = results.choose_output(given, f"backbone{suffix}")
    context, reason = find_images(config, checkpoint)
    metadata: dict[str, Any] = {"classes": list(context.classes) if context else []}
    metadata |= checkpoint.facts.model_dump(exclude_unset=True)
    metadata["checkpoint"] = str(checkpoint.file)
    images = choose_images(context, checkpoint)
    images = normalize(images.float() / 255, *checkpoint.statistics)
    differences: dict[int, float] = {}

    @torch.no_grad()
    def write_and_compare(path: Path) -> None:
        write_backbone(path, format, checkpoint.backbone, images, metadata)
        run = read_backbone(path, format)
        for n in sorted({1, len(images) // 2 or 1, len(images)}):
            expected, got = checkpoint.backbone(images[:n]), run(images[:n])
            differences[n] = ((got - expected).abs().max() / expected.abs().max()).item()
        worst = max(differences.values())
        require(
            worst <= TOLERANCE,
            f"{format}: features differ by {worst:.1e} of the largest; nothing was written",
        )

    if context is not None:
        context.announce()
        print_line(f"writing {printable(output)} and comparing it")
    else:
        print_line(f"without the images of the run: {reason}")
        print_line(f"writing {printable(output)} and comparing it on generated images")
    write_atomically(output, write_and_compare)
    size, worst = output.stat().st_size, max(differences.values())
    written = f"{printable(output)}, {size / 2**20:.1f} MiB"
    print_line(f"{format}  {written}; features differ by {worst:.1e} of the largest at most")
    figures = {"format": format, "output": str(output), "bytes": size}
    compared_on = "generated images" if context is None else context.dataset
    results.write(figures | {"compared_on": compared_on, "largest_difference": differences})


def find_images(
    config: Export,
    checkpoint: LoadedCheckpoint,
) -> tuple[EvaluationContext | None, str]:
    """Return the run's images, or None and the reason why they cannot be had.

    An export needs no images, so none are downloaded or decoded for it, unless flags name them.
    """
    named = config.data != EvaluationDataOptions()
    try:
        return add_images(config, checkpoint, torch.device("cpu"), download=named), ""
    except UserError as error:
        if named:
            raise
        return None, str(error)


def choose_images(context: EvaluationContext | None, checkpoint: LoadedCheckpoint) -> Tensor:
    """Return some images (n, 3, S, S) uint8 to compare on: the run's, or else random pixels."""
    size = checkpoint.facts.image_size
    if context is not None:
        split = context.test if len(context.test) else context.train
        return center(split.images[:IMAGES], size)
    assert size is not None  # `open_checkpoint` has seen to it
    generator = torch.Generator().manual_seed(0)
    shape = (IMAGES, 3, size, size)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def write_backbone(
    path: Path, format: str, backbone: ResNet, images: Tensor, metadata: dict[str, Any]
) -> None:
    example = images[:1].repeat(2, 1, 1, 1)  # the exporters take a batch size of 1 for a constant
    if format == "safetensors":
        write_weights(path, BACKBONE, backbone.state_dict(), metadata)
    elif format == "torch-export":
        program = torch.export.export(
            backbone, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        with open(path, "wb") as file:  # given a name, torch insists on its suffix
            torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    else:
        import onnx

        names: dict[str, Any] = {
            "input_names": ["images"],
            "output_names": ["features"],
            "verbose": False,
        }
        program = torch.onnx.export(
            backbone, (example,), **names, dynamic_shapes=({0: "batch"},), dynamo=True
        )
        assert program is not None
        model = program.model_proto
        onnx.helper.set_model_props(
            model, {name: json.dumps(value) for name, value in metadata.items()}
        )
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())


def read_backbone(path: Path, format: str) -> Callable[[Tensor], Tensor]:
    if format == "safetensors":
        return load_backbone_file(path).backbone
    if format == "torch-export":
        return torch.export.load(io.BytesIO(path.read_bytes())).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])
