"""Check that a network maps images to features, and count the features."""

import torch
from torch import Tensor, nn

from models.eval_mode import eval_mode

# A module of the user is tried with images of this size if the size is not known.
DEFAULT_IMAGE_SIZE = 32
MAX_REASON_LENGTH = 200  # characters of another program's message
IMAGENET_CLASSES = 1000
# Names that torchvision and timm give to a classifier.
CLASSIFIER_NAMES = {"fc", "classifier", "head", "heads"}


def prepare_custom_backbone(network: nn.Module, image_size: int | None) -> int:
    """Return the number of features F of a module that the user has built.

    If its output is (B, F, 1, 1), as that of `nn.Sequential(*children[:-1])`, the module flattens
    it to (B, F) from now on.

    Raises:
        ValueError: The module cannot take images of this size, does not give features, or still has
            its classifier.
    """
    output = _pass_blank_image(network, image_size)
    if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:] == (1, 1):
        network.register_forward_hook(_flatten_output)
        output = output.flatten(1)
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise ValueError("the backbone must give features (B, F). Remove its classifier.")

    num_features = output.shape[1]
    classifier = _find_classifier(network)
    if classifier is not None and num_features == IMAGENET_CLASSES:
        raise ValueError(
            f"the backbone still has its classifier of {IMAGENET_CLASSES} classes. Remove it: "
            f"backbone{_to_expression(classifier)} = torch.nn.Identity()"
        )
    return num_features


def _pass_blank_image(network: nn.Module, image_size: int | None) -> object:
    side = image_size or DEFAULT_IMAGE_SIZE
    try:
        # In eval mode, BN accepts a single image and keeps its running statistics.
        with eval_mode(network), torch.no_grad():
            return network(torch.zeros(1, 3, side, side))
    # Networks for images of one size check it by assertions.
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON_LENGTH]
        advice = "Pass another image_size"
        if image_size is None:
            advice = "Pass image_size, the side of your images in pixels, to SimSiam"
        raise ValueError(
            f"the backbone cannot take images of {side} x {side} pixels ({reason}). {advice}"
        ) from error


def _flatten_output(network: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """Return (B, F) for an output (B, F, 1, 1). A hook of `network`."""
    return output.flatten(1)


def _find_classifier(network: nn.Module) -> str | None:
    """Return the name of a linear layer with an output for each class of ImageNet, if any."""
    for name, layer in network.named_modules():
        has_name = not CLASSIFIER_NAMES.isdisjoint(name.split("."))
        if has_name and isinstance(layer, nn.Linear) and layer.out_features == IMAGENET_CLASSES:
            return name
    return None


def _to_expression(name: str) -> str:
    """Return the Python expression for a layer: "classifier.3" -> ".classifier[3]"."""
    parts = [f"[{part}]" if part.isdecimal() else f".{part}" for part in name.split(".")]
    return "".join(parts)
