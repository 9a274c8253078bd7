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
from simsiam.evaluation.checkpoint import load_backbone_file
from simsiam.evaluation.context import open_context
from simsiam.evaluation.features import center
from simsiam.evaluation.results import Results
from utils.console import print_line
from utils.errors import check
from utils.filesystem import write_atomically
from utils.weights import BACKBONE, write_weights

SUFFIXES = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}
ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")
IMAGES = 64  # real ones, on which the file is compared with the checkpoint
TOLERANCE = 1e-4  # largest difference between features, as a share of the largest feature


def export(config: Export) -> None:
    """Write the file, load it back, compare it on real images, and only then put it in place."""
    format, given = config.export.format, config.export.output
    suffix = SUFFIXES[format]
    missing = [name for name in ONNX_NEEDS if format == "onnx" and importlib.util.find_spec(name) is None]
    check(not missing, f"--format onnx needs {' '.join(missing)}: pip install {' '.join(missing)}")
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

    @torch.no_grad()
    def write_and_compare(path: Path) -> None:
        write_backbone(path, format, checkpoint.backbone, images, metadata)
        run = read_backbone(path, format)
        for n in sorted({1, len(images) // 2 or 1, len(images)}):
            expected, got = checkpoint.backbone(images[:n]), run(images[:n])
            differences[n] = ((got - expected).abs().max() / expected.abs().max()).item()
        worst = max(differences.values())
        check(worst <= TOLERANCE, f"{format}: features differ by {worst:.1e} of the largest; nothing was written")

    context.announce()
    print_line(f"writing {output} and comparing it")
    write_atomically(output, write_and_compare)
    size, worst = output.stat().st_size, max(differences.values())
    print_line(f"{format}  {output}, {size / 2**20:.1f} MiB; features differ by {worst:.1e} of the largest at most")
    results.write({"format": format, "output": str(output), "bytes": size, "largest_difference": differences})


def write_backbone(path: Path, format: str, backbone: ResNet, images: Tensor, metadata: dict[str, Any]) -> None:
    example = images[:1].repeat(2, 1, 1, 1)  # the exporters take a batch size of 1 for a constant
    if format == "safetensors":
        write_weights(path, BACKBONE, backbone.state_dict(), metadata)
    elif format == "torch-export":
        program = torch.export.export(backbone, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        with open(path, "wb") as file:  # given a name, torch insists on its suffix
            torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    else:
        import onnx

        names: dict[str, Any] = {"input_names": ["images"], "output_names": ["features"], "verbose": False}
        program = torch.onnx.export(backbone, (example,), **names, dynamic_shapes=({0: "batch"},), dynamo=True)
        assert program is not None
        model = program.model_proto
        onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
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
