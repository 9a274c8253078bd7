"""Load checkpoints: strictly, and without running any code that a file contains."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.libraries import count_library_features
from models.resnet import ResNet
from simsiam.evaluation.custom_backbone import load_into_backbone
from simsiam.evaluation.features import Preparation, extract_features
from simsiam.evaluation.metadata import (
    BackboneMetadata,
    read_hparams,
    read_metadata,
    validate_metadata,
)
from simsiam.evaluation.networks import (
    build_all_networks,
    build_backbone,
    evaluated_weights,
    load_strictly,
    remove_compile_prefix,
    require_backbone_fit,
    require_fit,
    set_image_metadata,
)
from utils.checkpoint_io import read_checkpoint
from utils.console import show_progress
from utils.errors import require
from utils.run_dir import RunDirectory
from utils.weights import BACKBONE, read_weights


@dataclass(frozen=True)
class LoadedCheckpoint:
    """The networks of a file, in eval mode, and the file's metadata.

    `projector` and `predictor` are None if the file has the backbone alone.
    """

    file: Path
    metadata: BackboneMetadata
    # SimSiam's hyper-parameters; if only the backbone is loaded, metadata.model_dump().
    hparams: dict[str, Any]
    backbone: nn.Module  # (B, 3, S, S) -> (B, F), with .mean, .std and .image_size of its images
    projector: nn.Module | None = None  # (B, F) -> (B, d)
    predictor: nn.Module | None = None  # (B, d) -> (B, d)

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (3,) of the training images, on the backbone's device."""
        device = next(self.backbone.parameters()).device
        mean = torch.tensor(self.metadata.mean, device=device)
        std = torch.tensor(self.metadata.std, device=device)
        return mean, std

    @property
    def preparation(self) -> Preparation:
        """How the backbone expects its images."""
        assert self.metadata.image_size is not None  # `open_checkpoint` requires it
        return Preparation(*self.statistics, self.metadata.image_size)

    @property
    def num_features(self) -> int:
        """The number of the backbone's features, F."""
        if isinstance(self.backbone, ResNet):
            return self.backbone.num_features
        return count_library_features(self.metadata.backbone, self.metadata.image_size)

    def extract_features(
        self,
        chunks: Iterable[Tensor],
        n: int,
        label: str,
        unit: bool = True,
        zoom: float = 1.0,
    ) -> Tensor:
        """Return the features (N, F) of the N images in all chunks, and show the progress.

        Args:
            chunks: (B, 3, side, side) uint8 each. Images larger than the training images are
                resized to their size.
            n: an upper bound of N.
            label: names the images in the progress.
            unit: L2-normalise each row, for cosines.
            zoom: magnify the images by this factor and take their centre, see `zoom_in`.
        """
        chunks = show_progress(chunks, n, f"features of {label}")
        mean, std = self.statistics
        size = self.metadata.image_size
        return extract_features(self.backbone, chunks, mean, std, unit, n, size, zoom)


def find_checkpoint(path: str | Path, prefer_full: bool = False) -> Path:
    """Return the checkpoint file that is meant by the path of a file or of a folder.

    Args:
        path: a file, which is returned as it is, or the folder of a run or of its checkpoints.
        prefer_full: in a folder, prefer a `.ckpt` with all networks to the file of the
            backbone alone.

    Raises:
        UserError: there is no such path, or no checkpoint in the folder.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        require(path.exists(), f"{path}: no such file or folder")
        return path

    run = RunDirectory(path)
    # The third file exists if `path` is the folder `checkpoints` of a run.
    full_files = [run.last, run.best, path / run.last.name]
    candidates = [run.backbone, *full_files]
    if prefer_full:
        candidates = [*full_files, run.backbone]
    files = [file for file in candidates if file.exists()]
    require(len(files) > 0, f"{path}: no checkpoint in this folder")
    return files[0]


def load_backbone(path: str | Path, backbone: nn.Module | None = None) -> nn.Module:
    """Load the backbone of a run folder, a `.ckpt` or a `.safetensors`, onto the CPU.

    The backbone expects RGB images on the scale of 0 to 1, minus its `.mean`, divided by its
    `.std`. Both are attributes with 3 floats. If the network was trained with a custom data loader,
    they are not known: reading them raises an error, which is an AttributeError and, for a ResNet
    of this program, also a ValueError. `.image_size` is the side S of the training images in
    pixels. A network that has an attribute of this name for itself keeps it.

    Args:
        path: the file or the folder.
        backbone: a module of the same architecture, which takes the weights. It is needed if the
            run was given a module as its backbone, since this program cannot build that.

    Returns:
        The network (B, 3, S, S) -> (B, F), in eval mode.

    Raises:
        ValueError: the file is missing, damaged or of another program, or its weights do not match
            the network key by key.
    """
    if backbone is not None:
        return load_into_backbone(find_checkpoint(path), backbone)
    return load_checkpoint(path, prefer_full=False).backbone


def load_checkpoint(path: str | Path, prefer_full: bool = True) -> LoadedCheckpoint:
    """Load all networks that a file has, onto the CPU.

    Args:
        path, prefer_full: as in `find_checkpoint`.

    Raises:
        UserError: in the cases in which `load_backbone` raises ValueError, its base class.
    """
    file = find_checkpoint(path, prefer_full)
    if file.suffix == ".safetensors":
        return load_backbone_file(file)
    return load_content(file, read_checkpoint(file))


def load_content(file: Path, content: dict[str, Any]) -> LoadedCheckpoint:
    """Load all networks that a `.ckpt` has, as `load_checkpoint` does.

    Args:
        file: the file that messages name.
        content: as `utils.checkpoint_io.read_checkpoint` returns it.
    """
    if "subclass" in content:
        return _load_backbone_of_subclass(file, content)
    return _load_whole_checkpoint(file, content)


def load_backbone_file(file: Path) -> LoadedCheckpoint:
    """Load a safetensors file of a backbone; its suffix does not matter.

    Raises:
        UserError: in the cases in which `load_backbone` raises ValueError, its base class.
    """
    values, state = read_weights(file, BACKBONE)
    return _load_backbone_alone(file, validate_metadata(values, file), state)


def _load_whole_checkpoint(file: Path, content: dict[str, Any]) -> LoadedCheckpoint:
    """Load backbone, projector and predictor of a `.ckpt`."""
    metadata = read_metadata(file, content)
    hparams = read_hparams(file, content, metadata)
    state = remove_compile_prefix(content["state_dict"])
    require_fit(file, hparams, state)
    networks = build_all_networks(file, hparams).eval()
    load_strictly(networks, state, file)

    backbone = networks["backbone"]
    set_image_metadata(backbone, metadata)
    return LoadedCheckpoint(
        file, metadata, hparams, backbone, networks["projector"], networks["predictor"]
    )


def _load_backbone_of_subclass(file: Path, content: dict[str, Any]) -> LoadedCheckpoint:
    """Load the backbone from a `.ckpt` of a subclass of SimSiam.

    Only the subclass's own code knows its other parts.
    """
    metadata = read_metadata(file, content)
    return _load_backbone_alone(file, metadata, evaluated_weights(content["state_dict"]))


def _load_backbone_alone(
    file: Path, metadata: BackboneMetadata, state: dict[str, Any]
) -> LoadedCheckpoint:
    require_backbone_fit(file, metadata, state)
    backbone = build_backbone(metadata)
    load_strictly(backbone, state, file)
    return LoadedCheckpoint(file, metadata, metadata.model_dump(), backbone)
