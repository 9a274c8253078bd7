"""From files to networks: strictly, and without running anything that a file contains."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from models.resnet import BACKBONES, STEMS, ResNet
from simsiam.module import SimSiam
from utils.checkpoint_io import read_state
from utils.errors import UserError, check
from utils.export import BACKBONE, read_weights
from utils.run_dir import RunDirectory


def find_checkpoint(path: str | Path, whole: bool = False) -> Path:
    """The file meant by a run folder, a folder of checkpoints, or a file.

    Args:
        whole: of a run folder, the state of the run rather than the backbone alone.

    Raises:
        UserError: there is none.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        check(path.exists(), f"{path}: no such file or folder")
        return path
    run = RunDirectory(path)
    states = [run.last, run.best, path / run.last.name]
    candidates = [*states, run.backbone] if whole else [run.backbone, *states]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise UserError(f"{path}: no checkpoint in this folder")


class Trained(NamedTuple):
    """What a checkpoint holds, on the CPU and in eval mode."""

    file: Path
    backbone: ResNet  # (B, 3, S, S) -> (B, F), with .mean, .std and .image_size of its images
    projector: nn.Sequential | None  # (B, F) -> (B, d); a file of the backbone alone has none
    about: dict[str, Any]  # `backbone_facts`, and of runs `PROVENANCE`: `row` are the epoch's figures


FACTS = ("backbone", "width", "stem", "image_size", "mean", "std")
LARGEST, WIDEST = 2**26, 2**14  # numbers that a file may ask for: of images; of channels and dimensions
PROVENANCE = ("classes", "settings", "versions", "commit", "row")


def backbone_facts(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """What it takes to build a backbone and to prepare its images, from the hyper-parameters of a SimSiam."""
    return {name: hparams[name] for name in FACTS}


def build_backbone(about: Mapping[str, Any], zero_init_residual: bool = True) -> ResNet:
    """The network that `backbone_facts` describe, with random weights."""
    return BACKBONES[about["backbone"]](about["width"], zero_init_residual, about["stem"])


def load_backbone(path: str | Path) -> ResNet:
    """The backbone of a run, on the CPU, in eval mode: (B, 3, S, S) -> (B, F).

    The images that it expects are RGB on the scale of 0 to 1, minus `.mean`, over `.std`; both are attributes of it
    (3 floats each), as is `.image_size` (S of its training, in pixels).

    Args:
        path: a run folder, a `.ckpt` or a `.safetensors`.

    Raises:
        ValueError: missing, damaged or foreign files, or weights that do not fit to the last key.
    """
    return load_trained(path, whole=False).backbone


def load_trained(path: str | Path, whole: bool = True) -> Trained:
    """Backbone, projector and provenance.

    Args:
        path: a run folder, a `.ckpt` or a `.safetensors`.
        whole: of a run folder, take its last checkpoint, which has the projector, rather than the backbone's file.

    Raises:
        UserError: as `load_backbone`.
    """
    file = find_checkpoint(path, whole)
    if file.suffix == ".safetensors":
        about, state = read_weights(file, BACKBONE)
        about.setdefault("stem", "cifar")  # older files know no other
        check_about(about, file)
        backbone, projector = build_backbone(about), None
        load_strictly(backbone, state, file)
    else:
        content = read_state(file)
        hparams = content["hyper_parameters"]
        about = {name: hparams[name] for name in FACTS if name in hparams}
        about.setdefault("stem", "cifar")
        about |= {name: content[name] for name in PROVENANCE if name in content}
        check_about(about, file)
        try:
            sizes = [value for value in hparams.values() if isinstance(value, int)]
            check(max(sizes) <= WIDEST, f"a size of {max(sizes)}")
            model = SimSiam(**hparams)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{file}: not a checkpoint of this program ({error})") from None
        load_strictly(model, content["state_dict"], file)
        backbone, projector = model.backbone, model.projector.eval()
    backbone.mean, backbone.std = tuple(about["mean"]), tuple(about["std"])
    backbone.image_size = about["image_size"]
    return Trained(file, backbone.eval(), projector, about)


def check_about(about: dict[str, Any], file: Path) -> None:
    """Raise UserError unless what a file says of itself can be: it may come from anywhere."""

    def size(value: Any) -> bool:
        return type(value) is int and 1 <= value <= LARGEST

    def count(value: Any) -> bool:
        return value is None or size(value)

    def numbers(value: Any, least: float) -> bool:
        kind = isinstance(value, list | tuple) and len(value) == 3 and all(type(x) in (float, int) for x in value)
        return kind and all(math.isfinite(x) and x > least for x in value)

    settings, row = about.get("settings", {}), about.get("row", {})
    facts = {
        "backbone": about.get("backbone") in list(BACKBONES),  # by ==: it need not be hashable
        "width": size(about.get("width")) and about["width"] <= WIDEST,
        "stem": about.get("stem") in list(STEMS),
        "image_size": size(about.get("image_size")) and about["image_size"] <= WIDEST,
        "mean": numbers(about.get("mean"), -math.inf),
        "std": numbers(about.get("std"), 0),
        "classes": all(isinstance(name, str) for name in about.get("classes", [])),
        "settings": isinstance(settings, dict)
        and all(isinstance(settings.get(name) or "", str) for name in ("dataset", "data_dir", "cache_dir"))
        and all(count(settings.get(name)) for name in ("train_images", "test_images")),
        "row": isinstance(row, dict) and all(type(row.get(name, 0)) is int for name in ("epoch", "step")),
    }
    wrong = [name for name, right in facts.items() if not right]
    check(not wrong, f"{file}: does not say its {', '.join(wrong)} as a file of this program does")


def load_weights(model: SimSiam, path: str | Path) -> None:
    """Start `model` from weights alone: a whole checkpoint's, or a `.safetensors` for the backbone.

    Raises:
        UserError: as `load_backbone`, and where the architecture differs.
    """
    file = find_checkpoint(path, whole=True)
    if file.suffix == ".safetensors":
        about, state = read_weights(file, BACKBONE)
        fits(model, about, ("backbone", "width", "stem"), file)
        load_strictly(model.backbone, state, file)
        return
    content = read_state(file)
    fits(model, content["hyper_parameters"], ARCHITECTURE, file)
    unknown = sorted(str(name) for name in content["hyper_parameters"] if name not in model.hparams)
    check(not unknown, f"{file}: not a checkpoint of this program (its settings {', '.join(unknown)} are unknown here)")
    load_strictly(model, content["state_dict"], file)


ARCHITECTURE = (
    *("backbone", "width", "stem", "out_dim", "h_dim", "proj_layers", "proj_hidden", "heads_bn", "predictor"),
)


def fits(model: SimSiam, about: dict[str, Any], keys: tuple[str, ...], file: Path) -> None:
    """Raise UserError that names what differs, where shapes alone would speak in riddles."""

    def resolved(hp: Mapping[str, Any]) -> dict[str, Any]:
        older = {"stem": "cifar", "heads_bn": "paper"}  # what a file that does not say so has
        return older | {**hp, "proj_hidden": hp.get("proj_hidden") or hp.get("out_dim")}

    theirs, ours = resolved(about), resolved(model.hparams)
    wrong = [f"{key} {theirs.get(key)}, not {ours[key]}" for key in keys if theirs.get(key) != ours[key]]
    check(not wrong, f"{file}: another architecture: {'; '.join(wrong)}")


def load_strictly(network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    try:
        network.load_state_dict(state, strict=True)
    except (RuntimeError, AttributeError, TypeError) as error:  # the latter two where keys or values are something else
        raise UserError(f"{file}: its weights do not fit: {' '.join(str(error).split())[:300]}") from None
