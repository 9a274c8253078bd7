"""The command `export`: the backbone alone, in a file for use elsewhere."""

import importlib.util
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simsiam.augment import normalize
from simsiam.config.evaluation_commands import Export
from simsiam.config.options import EvaluationDataOptions
from simsiam.evaluation.checkpoint import LoadedCheckpoint, load_backbone_file
from simsiam.evaluation.context import EvaluationContext, add_images, open_checkpoint
from simsiam.evaluation.features import resize_to
from simsiam.evaluation.results import Results
from simsiam.evaluation.run_images import use_image_size
from utils.console import print_line
from utils.errors import UserError, require
from utils.filesystem import write_atomically
from utils.text import printable
from utils.weights import BACKBONE, write_weights

FORMAT_SUFFIXES = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
COMPARED_IMAGES = 64  # on which the features of checkpoint and export are compared
MAX_DIFFERENCE = 1e-4  # between features, as a share of the largest feature


def export(config: Export) -> None:
    """Write a file, load it, compare it with the checkpoint, and only then put it in place."""
    format = config.export.format
    suffix = FORMAT_SUFFIXES[format]
    if format == "onnx":
        require_onnx()
    output_flag = config.export.output
    require(
        output_flag is None or output_flag.endswith(suffix),
        f"--output {output_flag}: with --format {format} the name must end in {suffix}",
    )
    checkpoint = open_checkpoint(config, torch.device("cpu"))
    checkpoint = use_image_size(checkpoint, config.data.image_size)
    results = Results(config, checkpoint, f"export_{format}")
    output = results.choose_output(output_flag, f"backbone{suffix}")

    with results.lock():
        context, reason = find_images(config, checkpoint)
        if context is not None:
            context.announce()
            print_line(f"writing {printable(output)} and comparing it")
            compared_on = context.dataset
            classes = list(context.classes)
        else:
            print_line(f"without the images of the run: {reason}")
            print_line(f"writing {printable(output)} and comparing it on generated images")
            compared_on = "generated images"
            classes = []

        # The checkpoint's own class names are preferred to those of the data set.
        metadata: dict[str, Any] = {"classes": classes}
        metadata.update(checkpoint.metadata.model_dump(exclude_unset=True))
        metadata["checkpoint"] = str(checkpoint.file)
        mean, std = checkpoint.statistics
        images = choose_images(context, checkpoint)
        images = normalize(images.float() / 255, mean, std)
        differences: dict[int, float] = {}

        def write_and_compare(path: Path) -> None:
            write_backbone(path, format, checkpoint.backbone, images, metadata)
            exported = read_backbone(path, format)
            differences.update(compare_features(checkpoint.backbone, exported, images))
            for difference in differences.values():
                require(
                    difference <= MAX_DIFFERENCE,  # nan is not
                    f"{format}: features differ by {difference:.1e} of the largest feature, so "
                    "nothing was written. Try another --format",
                )

        # Writes to a temporary file, which replaces `output` only if nothing is raised.
        write_atomically(output, write_and_compare)
        size = output.stat().st_size
        print_line(
            f"{format}  {printable(output)}, {size / 2**20:.1f} MiB; features differ by "
            f"{max(differences.values()):.1e} of the largest at most"
        )
        results.write(
            {
                "format": format,
                "output": str(output),
                "bytes": size,
                "compared_on": compared_on,
                "largest_difference": differences,
            }
        )


def require_onnx() -> None:
    """Raise UserError if a package that ONNX needs is not installed."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    names = " ".join(missing)
    require(not missing, f"--format onnx needs {names}. Install with: pip install {names}")


def find_images(
    config: Export,
    checkpoint: LoadedCheckpoint,
) -> tuple[EvaluationContext | None, str]:
    """Return the run's images and "", or None and the reason why they are not available.

    An export needs no images, so none are downloaded or decoded for it unless flags name them.
    """
    # `--image-size` chooses the size of the network's input, and no images.
    flags_name_images = replace(config.data, image_size=None) != EvaluationDataOptions()
    try:
        context = add_images(config, checkpoint, torch.device("cpu"), download=flags_name_images)
    except UserError as error:
        if flags_name_images:
            raise
        return None, str(error)
    return context, ""


def choose_images(context: EvaluationContext | None, checkpoint: LoadedCheckpoint) -> Tensor:
    """Return images (n, 3, S, S) uint8 to compare on: images of the run, or random pixels."""
    size = checkpoint.metadata.image_size
    if context is not None:
        split = context.test if len(context.test) > 0 else context.train
        n = min(COMPARED_IMAGES, len(split))
        return resize_to(split.images_at(torch.arange(n)), size)
    assert size is not None  # `open_checkpoint` requires it
    generator = torch.Generator().manual_seed(0)
    shape = (COMPARED_IMAGES, 3, size, size)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def write_backbone(
    path: Path, format: str, backbone: nn.Module, images: Tensor, metadata: dict[str, Any]
) -> None:
    """Write the backbone with its metadata in one of the formats.

    Args:
        images: (n, 3, S, S) float32, of which one is used as an example for tracing.
    """
    # Two copies, because the exporters take a batch size of 1 for a constant.
    example = images[:1].repeat(2, 1, 1, 1)
    if format == "safetensors":
        write_weights(path, BACKBONE, backbone.state_dict(), metadata)
    elif format == "torch-export":
        batch = torch.export.Dim("batch")
        program = torch.export.export(backbone, (example,), dynamic_shapes=({0: batch},))
        # Given a path, torch insists on the suffix .pt2. Given an open file, torch raises a
        # RuntimeError with a stack of C++ if the disk is full.
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={"metadata.json": json.dumps(metadata)})
        path.write_bytes(content.getbuffer())
    else:
        write_onnx(path, backbone, example, metadata)


def write_onnx(path: Path, backbone: nn.Module, example: Tensor, metadata: dict[str, Any]) -> None:
    import onnx  # an optional package

    program = torch.onnx.export(
        backbone,
        (example,),
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes=({0: "batch"},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    properties = {name: json.dumps(value) for name, value in metadata.items()}
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def read_backbone(path: Path, format: str) -> Callable[[Tensor], Tensor]:
    """Load an exported file by the runtime of its format.

    Returns:
        A function from images (B, 3, S, S) to features (B, F).
    """
    if format == "safetensors":
        return load_backbone_file(path).backbone
    if format == "torch-export":
        # With a path instead of bytes, torch insists on the suffix .pt2.
        return torch.export.load(io.BytesIO(path.read_bytes())).module()

    import onnxruntime  # an optional package

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        outputs = session.run(["features"], {"images": images.numpy()})
        return torch.from_numpy(outputs[0])

    return run


@torch.no_grad()
def compare_features(
    backbone: nn.Module, exported: Callable[[Tensor], Tensor], images: Tensor
) -> dict[int, float]:
    """Return the largest difference between the features of two networks, by batch size.

    Args:
        backbone, exported: (B, 3, S, S) -> (B, F).
        images: (n, 3, S, S) float32. Batches of 1, n / 2 and n images are compared.

    Returns:
        Differences as a share of the largest feature.
    """
    n = len(images)
    batch_sizes = sorted({1, max(1, n // 2), n})
    differences: dict[int, float] = {}
    for batch_size in batch_sizes:
        batch = images[:batch_size]
        expected = backbone(batch)
        difference = (exported(batch) - expected).abs().max() / expected.abs().max()
        differences[batch_size] = difference.item()
    return differences
