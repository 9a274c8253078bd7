"""Explain in one line why the weights of another program do not fit the backbone of a run."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.resnet import BACKBONES
from simsiam.evaluation.metadata import MAX_SIZE
from utils.text import printable

STEM_OF_KERNEL = {3: "cifar", 7: "imagenet"}  # side of the first convolution's kernel
# Batch normalization counts its batches. Files of torch 0.4 and earlier have no such counts.
BATCH_COUNT = "num_batches_tracked"
MAX_NAMES = 3  # names that a message lists
MAX_NAME_LENGTH = 80  # characters of a name from a file


class Architecture(NamedTuple):
    """A ResNet of this program. The fields have the names of the flags."""

    backbone: str
    width: int
    stem: str

    @classmethod
    def of_run(cls, hparams: Mapping[str, Any]) -> "Architecture | None":
        """Return the architecture of a run; None if its backbone is from another library."""
        if hparams["backbone"] not in BACKBONES:
            return None
        return cls(hparams["backbone"], hparams["width"], hparams["stem"])

    def describe(self) -> str:
        return f"a {self.backbone} of width {self.width} with the {self.stem} stem"


def describe_mismatch(
    available: Mapping[str, Tensor], own_state: Mapping[str, Tensor], hparams: Mapping[str, Any]
) -> str | None:
    """Return how the weights in a file differ from those of the run's backbone; None if they fit.

    Args:
        available: the weights of the file's backbone without its classifier, under the names of the
            run's backbone.
        own_state: the state dict of the run's backbone.
        hparams: the hyper-parameters of the run.
    """
    required = [name for name in own_state if not name.endswith(BATCH_COUNT)]
    missing = [name for name in required if name not in available]
    unknown = [name for name in available if name not in own_state]
    wrong: list[str] = []
    for name, weight in available.items():
        if name in own_state and weight.shape != own_state[name].shape:
            wrong.append(name)
    if not missing and not unknown and not wrong:
        return None

    architecture = find_architecture(available)
    if architecture is not None and architecture != Architecture.of_run(hparams):
        return (
            f"it holds {architecture.describe()}, and this run has {_describe_run(hparams)}. "
            f"Pass {_list_flags(architecture, hparams)}"
        )

    problems: list[str] = []
    if wrong:
        name = wrong[0]
        in_file = tuple(available[name].shape)
        problem = f"{name} is {in_file} in the file and {tuple(own_state[name].shape)} in the run"
        if len(wrong) > 1:
            problem += f", and so on for {len(wrong) - 1} more"
        problems.append(problem)
    if missing:
        problems.append(f"the file lacks {_list_names(missing)}")
    if unknown:
        problems.append(f"the run's network lacks {_list_names(unknown)}")
    return f"its weights do not fit {_describe_run(hparams)}: {'; '.join(problems)}"


def find_architecture(weights: Mapping[str, Tensor]) -> Architecture | None:
    """Return the ResNet of this program that has exactly these weights; None if there is none."""
    first_convolution = weights.get("conv1.weight")
    if first_convolution is None or first_convolution.dim() != 4:
        return None
    width = first_convolution.shape[0]
    stem = STEM_OF_KERNEL.get(first_convolution.shape[-1])
    if stem is None or not 1 <= width <= MAX_SIZE:
        return None
    shapes = _select_shapes(weights)
    for name, build in BACKBONES.items():
        with torch.device("meta"):  # without memory for the weights
            network = build(width, stem=stem)
        if _select_shapes(network.state_dict()) == shapes:
            return Architecture(name, width, stem)
    return None


def _select_shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shape of each weight, without the counts of batches, which old files lack."""
    shapes: dict[str, torch.Size] = {}
    for name, weight in weights.items():
        if not name.endswith(BATCH_COUNT):
            shapes[name] = weight.shape
    return shapes


def _list_flags(architecture: Architecture, hparams: Mapping[str, Any]) -> str:
    """Return the flags that give a run this architecture, as far as they differ from the run's."""
    flags: list[str] = []
    for name, value in architecture._asdict().items():
        if hparams.get(name) != value:
            flags.append(f"--{name} {value}")
    return " ".join(flags)


def _describe_run(hparams: Mapping[str, Any]) -> str:
    architecture = Architecture.of_run(hparams)
    if architecture is None:
        return f"the backbone {hparams['backbone']}"
    return architecture.describe()


def _list_names(names: Sequence[str]) -> str:
    shown = [printable(name)[:MAX_NAME_LENGTH] for name in names[:MAX_NAMES]]
    text = ", ".join(shown)
    if len(names) > MAX_NAMES:
        text += f" and {len(names) - MAX_NAMES} more"
    return text
