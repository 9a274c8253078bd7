"""The weights that a new run starts from, with --model-path: of this program or of another one."""

import copy
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from simsiam.evaluation.checkpoint import (
    LoadedCheckpoint,
    find_checkpoint,
    load_backbone_file,
    load_content,
)
from simsiam.evaluation.foreign_weights import format_names, match_weights
from simsiam.evaluation.metadata import BACKBONE_HPARAMS, HEAD_HPARAMS
from simsiam.evaluation.networks import load_strictly
from utils.checkpoint_io import read_torch_file
from utils.errors import UserError, require
from utils.weights import KINDS, read_safetensors

# A network is loaded without Lightning, which takes seconds to import.
if TYPE_CHECKING:
    from simsiam.module import SimSiam

# A state dict has no Python objects. Only the user can know whether to trust a file that has some.
EXTRACT_WEIGHTS = (
    "import torch; "
    "torch.save(torch.load({file!r}, 'cpu', weights_only=False)['state_dict'], 'weights.pth')"
)
RANDOM_HEADS = "projector and predictor start from random weights"


@dataclass(frozen=True)
class StartingWeights:
    """What a new run has taken from a file.

    Attributes:
        lines: the description for the user. Each line is a sentence or a part of one.
        is_foreign: whether another program has written the file.
    """

    lines: tuple[str, ...]
    is_foreign: bool = False


def load_weights(model: "SimSiam", path: str | Path) -> StartingWeights:
    """Load weights into a new model: those of all networks, or those of the backbone alone.

    Args:
        model: trained further from these weights; its optimizer and epochs start from zero.
        path: a run folder, a `.ckpt` or a `.safetensors` of this program, or a file of another
            program in one of the layouts of `layouts.LAYOUTS`.

    Raises:
        UserError: the architecture in the file differs from the model's, or the file cannot be
            loaded. The model is unchanged.
    """
    file = find_checkpoint(path, prefer_full=True)
    if file.suffix == ".safetensors":
        text_metadata, content = read_safetensors(file)
        if text_metadata.get("kind") in KINDS:
            return _load_own_weights(model, load_backbone_file(file))
        return _load_foreign_weights(model, file, content)

    command = shlex.join(["python", "-c", EXTRACT_WEIGHTS.format(file=str(file))])
    hint = f". If you trust it, save its weights alone: {command}"
    content = read_torch_file(file, old_format=True, refusal_hint=hint)
    if _is_own_checkpoint(content):
        return _load_own_weights(model, load_content(file, content))
    return _load_foreign_weights(model, file, content)


def _is_own_checkpoint(content: Any) -> bool:
    """Return whether SimSiam or a subclass of it has saved this content."""
    if not isinstance(content, dict):
        return False
    hparams = content.get("hyper_parameters")
    if not isinstance(hparams, dict) or not isinstance(content.get("state_dict"), dict):
        return False
    # A subclass of SimSiam saves `subclass`. Otherwise only this program has both out_dim and
    # h_dim.
    return "subclass" in content or ("out_dim" in hparams and "h_dim" in hparams)


def _load_own_weights(model: "SimSiam", checkpoint: LoadedCheckpoint) -> StartingWeights:
    """Load all networks of a checkpoint; the backbone alone if it lacks the heads or has others."""
    file = checkpoint.file
    differences = _find_differences(checkpoint, BACKBONE_HPARAMS, model)
    require(not differences, f"{file}: another architecture: {'; '.join(differences)}")

    if checkpoint.projector is None or checkpoint.predictor is None:
        _load_or_restore(model.backbone, checkpoint.backbone.state_dict(), file)
        return StartingWeights((f"the backbone of {file}", RANDOM_HEADS))

    differences = _find_differences(checkpoint, HEAD_HPARAMS, model)
    if differences:
        _load_or_restore(model.backbone, checkpoint.backbone.state_dict(), file)
        reason = f"left out its projector and predictor: {'; '.join(differences)}"
        return StartingWeights((f"the backbone of {file}", reason, RANDOM_HEADS))

    networks = nn.ModuleDict(
        {
            "backbone": checkpoint.backbone,
            "projector": checkpoint.projector,
            "predictor": checkpoint.predictor,
        }
    )
    _load_or_restore(model, networks.state_dict(), file)
    return StartingWeights((f"backbone, projector and predictor of {file}",))


def _load_or_restore(network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Load weights strictly. If they do not fit, the network keeps the weights that it has.

    torch copies all weights that fit before it raises an error about the others.
    """
    before = copy.deepcopy(network.state_dict())
    try:
        load_strictly(network, state, file)
    except UserError:
        network.load_state_dict(before)
        raise


def _find_differences(
    checkpoint: LoadedCheckpoint, names: tuple[str, ...], model: "SimSiam"
) -> list[str]:
    """Return a phrase for each hyper-parameter with one of these names that differs."""
    differences: list[str] = []
    for name in names:
        in_file = checkpoint.hparams[name]
        in_model = model.hparams[name]
        if name == "proj_hidden":  # None means `out_dim`
            in_file = in_file or checkpoint.hparams["out_dim"]
            in_model = in_model or model.hparams["out_dim"]
        if in_file != in_model:
            differences.append(f"{name} is {in_file} in the file and {in_model} in the new run")
    return differences


def _load_foreign_weights(model: "SimSiam", file: Path, content: Any) -> StartingWeights:
    """Load the backbone of another program's file."""
    weights = match_weights(file, content, model.backbone, model.hparams)
    _load_or_restore(model.backbone, weights.state, file)
    lines = [f"the backbone of {file} ({weights.source})"]
    if weights.left_out:
        lines.append(f"left out {format_names(weights.left_out)}")
    lines += [*weights.notes, RANDOM_HEADS]
    return StartingWeights(tuple(lines), is_foreign=True)
