"""Load the weights of a checkpoint into a backbone that the user has built."""

from pathlib import Path

from torch import nn

from models.features import prepare_custom_backbone
from simsiam.evaluation.metadata import read_image_metadata, validate_image_metadata
from simsiam.evaluation.networks import evaluated_weights, load_strictly, set_image_metadata
from utils.checkpoint_io import read_checkpoint
from utils.weights import BACKBONE, read_weights


def load_into_backbone(file: Path, backbone: nn.Module) -> nn.Module:
    """Load a backbone's weights from a `.ckpt` or `.safetensors` into a module.

    Args:
        file: may be of any backbone, also of one that this program cannot build by itself.
        backbone: (B, 3, S, S) -> (B, F) or (B, F, 1, 1), of the same architecture. Changed in
            place.

    Returns:
        The module in eval mode, as `simsiam.load_backbone` returns a network. It gives (B, F).

    Raises:
        ValueError: the file is missing, damaged or of another program; or its weights do not match
            the module key by key; or the module does not give features.
    """
    if file.suffix == ".safetensors":
        values, state = read_weights(file, BACKBONE)
        metadata = validate_image_metadata(values, file)
    else:
        content = read_checkpoint(file)
        metadata = read_image_metadata(file, content)
        state = evaluated_weights(content["state_dict"])
    load_strictly(backbone, state, file)
    prepare_custom_backbone(backbone, metadata.image_size)
    set_image_metadata(backbone, metadata)
    return backbone.eval()
