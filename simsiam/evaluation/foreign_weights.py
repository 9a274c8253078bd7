"""Weights that another program has saved, for the backbone of a new run.

The names of the weights in a file say which layout it has. Its suffix does not matter. The heads of
other programs are left out, and named. Everything else is strict: each weight of the backbone must
be there with the right shape, and the backbone in the file must have no further weights.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simsiam.evaluation.layouts import LAYOUTS, Layout
from simsiam.evaluation.mismatch import BATCH_COUNT, describe_mismatch
from simsiam.evaluation.networks import rename_weights
from utils.errors import require
from utils.text import printable

# How the names of classifiers begin in the networks of torchvision, timm and lightly. aux1, aux2
# and AuxLogits are auxiliary classifiers. `fc.` also matches the projectors of programs that
# replace `fc` by one.
CLASSIFIERS = (
    *("fc.", "classifier.", "head.", "heads.", "linear."),
    *("aux1.", "aux2.", "AuxLogits."),
)
# Keys under which programs store a state dict next to the state of the optimizer and the like.
STATE_DICT_KEYS = ("state_dict", "model", "state_dict_ema", "model_ema")
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_NAMES = 4  # names that a message lists of one part of a network


@dataclass(frozen=True)
class ForeignWeights:
    """The weights of a backbone from a file of another program.

    Attributes:
        state: the state dict of the run's backbone.
        source: the kind of file, for the user.
        left_out: names of all weights in the file that are not used.
        notes: sentences for the user about how the network may differ from the file's.
    """

    state: dict[str, Tensor]
    source: str
    left_out: list[str]
    notes: list[str]


def match_weights(
    file: Path, content: Any, backbone: nn.Module, hparams: Mapping[str, Any]
) -> ForeignWeights:
    """Find the weights of `backbone` in the content of a file.

    Args:
        file: the file that messages name.
        content: tensors and plain values; the file may come from anywhere.
        backbone: the network that the run trains. It is not changed.
        hparams: the hyper-parameters of the run, to explain why a file does not fit.

    Raises:
        UserError: the file has no backbone or several, or its weights do not fit.
    """
    state = _remove_wrappers(find_state_dict(file, content))
    own_state = backbone.state_dict()
    layout = _find_layout(file, state, backbone)
    available = _rename_weights(_select(state, layout.prefix), backbone)

    _require_known_rest(file, state, layout)
    classifier: list[str] = []
    for name in available:
        if name.startswith(CLASSIFIERS) and name not in own_state:
            classifier.append(name)
    for name in classifier:
        del available[name]
    mismatch = describe_mismatch(available, own_state, hparams)
    require(mismatch is None, f"{file}: {mismatch}")

    weights: dict[str, Tensor] = {}
    for name, own_weight in own_state.items():
        if name in available:
            weights[name] = _convert(file, name, available[name], own_weight)
        else:
            weights[name] = torch.zeros_like(own_weight)  # only a count of batches can be missing

    inside = [layout.prefix + name for name in classifier]
    outside = [name for name in state if not name.startswith(layout.prefix)]
    notes = _describe_differences(layout, state, weights, available)
    return ForeignWeights(weights, layout.source, inside + outside, notes)


def find_state_dict(file: Path, content: Any) -> dict[str, Tensor]:
    """Return the state dict in the content of a file, which may have further values.

    Raises:
        UserError: there is none or more than one, or it is not a dictionary of tensors by name.
    """
    require(
        isinstance(content, dict) and len(content) > 0,
        f"{file} is not a checkpoint: it has no weights by name",
    )
    keys = [key for key in STATE_DICT_KEYS if isinstance(content.get(key), dict)]
    require(
        len(keys) <= 1,
        f"{file} holds several networks, under {' and '.join(keys)}. "
        "Save the one to start from in a file of its own.",
    )
    state = content[keys[0]] if keys else content
    require(len(state) > 0, f"{file} holds no weights")
    for name, weight in state.items():
        require(
            isinstance(name, str),
            f"{file}: the name of a weight must be text, got {printable(repr(name))[:80]}",
        )
        require(
            type(weight) in (Tensor, nn.Parameter) and not weight.is_nested,
            f"{file} is not a checkpoint with a state dict: "
            f"{printable(name)[:80]} is a {type(weight).__name__}, not a tensor",
        )
    return state


def _remove_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix that a wrapper around the whole network puts before every name."""
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in state):
            state = _select(state, wrapper)
    return state


def _select(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights whose names begin with `prefix`, under their names without it."""
    selected: dict[str, Tensor] = {}
    for name, weight in state.items():
        if name.startswith(prefix):
            selected[name.removeprefix(prefix)] = weight
    return selected


def _find_layout(file: Path, state: dict[str, Tensor], backbone: nn.Module) -> Layout:
    """Return the layout of a file: the one in which the file has all names of the backbone.

    If there is none, return the layout in which the file has the most of them, so that a message
    can say what does not fit.

    Raises:
        UserError: no name of the backbone occurs, or the file has two backbones.
    """
    own_names = backbone.state_dict().keys()
    required = {name for name in own_names if not name.endswith(BATCH_COUNT)}
    shared: dict[Layout, int] = {}
    for layout in LAYOUTS:
        available = _rename_weights(_select(state, layout.prefix), backbone)
        shared[layout] = len(required & available.keys())

    prefixes = ", ".join(repr(layout.prefix) for layout in LAYOUTS if layout.prefix)
    first_names = ", ".join(printable(name) for name in list(state)[:2])
    require(
        max(shared.values()) > 0,
        f"{file} has no weights of this run's backbone, neither under their own names nor under "
        f"{prefixes}. Its first names are {first_names[:160]}",
    )
    complete = [layout for layout in LAYOUTS if shared[layout] == len(required)]
    require(
        len(complete) <= 1,
        f"{file} holds {len(complete)} networks that fit this run's backbone, under "
        f"{' and '.join(repr(layout.prefix) for layout in complete)}. "
        "Save the one to start from in a file of its own.",
    )
    if complete:
        return complete[0]
    return max(LAYOUTS, key=lambda layout: shared[layout])


def _rename_weights(state: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Return the weights under the names that they have in the run's backbone.

    nn.Sequential(*resnet.children()), which lightly's users make to remove the classifier, has
    numbers for names: 0.weight is conv1.weight. The residual blocks of lightly's own ResNets call
    their `downsample` `shortcut`.
    """
    own_names = backbone.state_dict().keys()
    children = list(dict.fromkeys(name.split(".")[0] for name in own_names))
    numbers = list(dict.fromkeys(name.split(".")[0] for name in state))
    names_of_children: dict[str, str] = {}
    is_sequential = all(number.isdecimal() for number in numbers)
    # If the run's backbone is itself a Sequential, there is nothing to rename.
    has_same_names = set(numbers) == set(children)
    if is_sequential and len(numbers) == len(children) and not has_same_names:
        numbers.sort(key=int)
        names_of_children = dict(zip(numbers, children, strict=True))

    def find_own_name(name: str) -> str:
        first, dot, rest = name.partition(".")
        own_name = names_of_children.get(first, first) + dot + rest
        if own_name not in own_names:
            own_name = own_name.replace(".shortcut.", ".downsample.")
        return own_name

    # If two names in the file mean the same weight, `match_weights` refuses the name that is left.
    return rename_weights(state, find_own_name)


def _require_known_rest(file: Path, state: dict[str, Tensor], layout: Layout) -> None:
    """Raise UserError if the file has convolutions outside its backbone: another network.

    The convolutions of a moving average of the backbone are the exception.
    """
    if layout.prefix == "":
        return  # every name belongs to the backbone
    others: set[str] = set()
    for name, weight in state.items():
        is_convolution = weight.dim() == 4
        if is_convolution and not name.startswith((layout.prefix, *layout.average_prefixes)):
            others.add(name.split(".")[0] + ".")
    require(
        not others,
        f"{file} holds several networks, under {layout.prefix!r} and "
        f"{', '.join(repr(printable(name)[:80]) for name in sorted(others)[:MAX_NAMES])}. "
        "Save the one to start from in a file of its own.",
    )


def _convert(file: Path, name: str, weight: Tensor, own_weight: Tensor) -> Tensor:
    """Return a weight of the right shape in the dtype of the run's network.

    Raises:
        UserError: its dtype or layout is none that weights have, or a number is not finite.
    """
    is_plain = weight.layout == torch.strided and weight.device.type == "cpu"
    is_plain = is_plain and not weight.is_quantized
    if own_weight.is_floating_point():
        is_plain = is_plain and weight.dtype in DTYPES
    else:
        is_plain = is_plain and weight.dtype == own_weight.dtype
    require(
        is_plain,
        f"{file}: {name} has {weight.dtype} numbers ({weight.layout}, on {weight.device.type}), "
        f"which are no weights of this run's backbone ({own_weight.dtype})",
    )
    converted = weight.detach().to(own_weight.dtype)
    is_finite = bool(converted.isfinite().all())
    require(is_finite, f"{file}: {name} has numbers that are not finite")
    return converted


def _describe_differences(
    layout: Layout,
    state: dict[str, Tensor],
    weights: dict[str, Tensor],
    available: dict[str, Tensor],
) -> list[str]:
    """Return sentences about what the weights alone do not say."""
    notes: list[str] = []
    if any(name not in available for name in weights):
        notes.append(f"the file has no {BATCH_COUNT}: they start from 0")
    first_convolution = weights.get("conv1.weight")
    has_cifar_stem = first_convolution is not None and first_convolution.shape[-1] == 3
    is_of_solo_learn = layout.prefix == "backbone." and any(
        name.startswith("projector.") for name in state
    )
    if has_cifar_stem and is_of_solo_learn:
        notes.append(
            "solo-learn pads its 3x3 stem by 2 pixels and this program by 1, so features of "
            "borders differ a little"
        )
    return notes


def format_names(names: Iterable[str]) -> str:
    """Return all names in one line: those of a large part as `projector.* (14 weights)`."""
    parts: dict[str, list[str]] = {}
    for name in names:
        path = name.split(".")
        # `encoder.fc.0.weight` belongs to `encoder.fc`, the projector, and not to the encoder.
        is_inside = path[0] + "." in [layout.prefix for layout in LAYOUTS] and len(path) > 2
        part = ".".join(path[: 2 if is_inside else 1])
        parts.setdefault(part, []).append(name)
    texts: list[str] = []
    for part, names_of_part in parts.items():
        if len(names_of_part) <= MAX_NAMES:
            texts += [printable(name) for name in names_of_part]
        else:
            texts.append(f"{printable(part)}.* ({len(names_of_part)} weights)")
    return ", ".join(texts)
