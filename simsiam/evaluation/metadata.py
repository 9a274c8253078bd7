"""The metadata of a checkpoint: the names of its hyper-parameters, and how they are validated.

A file may come from anywhere, so each value is checked before it is used.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    Field,
    FiniteFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from models.choices import LIBRARY_BACKBONE_PATTERN, is_library_backbone
from models.heads import CUSTOM_BACKBONE_PREFIX
from models.resnet import BACKBONES, STEMS
from simsiam.config.network_options import NetworkOptions
from utils.errors import UserError, require

# The hyper-parameters of SimSiam by their use. Together they are all the arguments of
# `SimSiam.__init__` (tests/evaluation/test_checkpoint.py compares the two).
BACKBONE_HPARAMS = ("backbone", "width", "stem")
HEAD_HPARAMS = ("out_dim", "h_dim", "proj_layers", "proj_hidden", "heads_bn", "predictor")
INITIALIZATION_HPARAMS = ("zero_init_residual", "conv_init")
IMAGE_HPARAMS = ("image_size", "mean", "std", "classes")
TRAINING_HPARAMS = (
    "stop_grad",
    "fixed_predictor",
    "symmetric",
    "learning_rate",
    "momentum",
    "weight_decay",
    "warmup_epochs",
    "constant_predictor_lr",
    "predictor_lr_scale",
    "heavy_views",
    "heavy_loss",
    "heavy_weight_in",
    "heavy_weight_out",
)
ALL_HPARAMS = (
    *BACKBONE_HPARAMS,
    *HEAD_HPARAMS,
    *INITIALIZATION_HPARAMS,
    *IMAGE_HPARAMS,
    *TRAINING_HPARAMS,
)

# The hyper-parameters that a file of the backbone alone has as its metadata.
METADATA_HPARAMS = (*BACKBONE_HPARAMS, *IMAGE_HPARAMS)
# Further metadata, which a run's checkpoint has next to its hyper-parameters.
PROVENANCE = ("settings", "versions", "commit", "row", "images", "image_cache")

# The largest number of channels, dimensions or pixels, so that no file can exhaust the memory.
MAX_SIZE = 2**14
Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
StandardDeviation = Annotated[FiniteFloat, Field(gt=0)]
ThreeChannels = Field(min_length=3, max_length=3)


class ImageMetadata(BaseModel, strict=True, extra="allow"):
    """How to prepare the images of a backbone, and where it comes from.

    `image_size`, `mean` and `std` are None if the network was trained with a custom data loader,
    from which they cannot be read.
    """

    image_size: Size | None
    mean: Annotated[Sequence[FiniteFloat], ThreeChannels] | None
    std: Annotated[Sequence[StandardDeviation], ThreeChannels] | None
    classes: Sequence[str] = ()
    settings: dict[str, Any] = {}  # the run's settings; code that uses a value must check its type
    row: dict[str, int | float | None] = {}  # the last row of the run's metrics.jsonl
    images: str | None = None  # the digest of the run's images, unless they are published ones
    image_cache: str | None = None  # "on" or "off", on which the digest depends


class BackboneMetadata(ImageMetadata):
    """How to build a backbone by its name, how to prepare its images, and where it comes from.

    `width` and `stem` are None for a network of a library, which is determined by its name.
    """

    backbone: Annotated[str, Field(pattern=f"^({'|'.join(BACKBONES)}|{LIBRARY_BACKBONE_PATTERN})$")]
    width: Size | None
    # Files from before there were two stems do not have this field.
    stem: Annotated[str, Field(pattern=f"^({'|'.join(STEMS)})$")] | None = "cifar"

    @field_validator("width", "stem")
    @classmethod
    def _belongs_to_backbone(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a ResNet of this program without a value, and a library's network with one."""
        is_library = is_library_backbone(info.data.get("backbone"))
        if is_library != (value is None):
            raise ValueError("does not belong to this backbone")
        return value


Metadata = TypeVar("Metadata", bound=ImageMetadata)


def validate_metadata(values: dict[str, Any], file: Path) -> BackboneMetadata:
    """Return the metadata of a file as an object with checked types and ranges.

    Raises:
        UserError: a value is missing or invalid.
    """
    return _validate(BackboneMetadata, values, file)


def _validate(kind: type[Metadata], values: dict[str, Any], file: Path) -> Metadata:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        # A list such as `mean` can have several errors; its name is printed once.
        invalid = {str(problem["loc"][0]) for problem in error.errors()}
        names = [name for name in (*METADATA_HPARAMS, *PROVENANCE) if name in invalid]
        raise UserError(
            f"{file}: not a file of this program: it has no valid {', '.join(names)}"
        ) from None


def read_metadata(file: Path, content: dict[str, Any]) -> BackboneMetadata:
    """Return the metadata of a `.ckpt`.

    Args:
        file: the file that messages name.
        content: as `utils.checkpoint_io.read_checkpoint` returns it.

    Raises:
        UserError: a value is missing or invalid, or the backbone is not one of this program's.
    """
    hparams = content["hyper_parameters"]
    backbone = str(hparams.get("backbone"))
    class_name = backbone.removeprefix(CUSTOM_BACKBONE_PREFIX).strip()
    require(
        not backbone.startswith(CUSTOM_BACKBONE_PREFIX),
        f"{file}: its backbone is a custom {class_name}, which "
        "this program cannot build. Build it in your own code, and load the weights with "
        "load_backbone(path, backbone=module)",
    )
    return validate_metadata(_select_metadata(content), file)


def read_image_metadata(file: Path, content: dict[str, Any]) -> ImageMetadata:
    """Return the metadata of a `.ckpt` whose backbone the user builds.

    Raises:
        UserError: a value is missing or invalid.
    """
    return _validate(ImageMetadata, _select_metadata(content), file)


def validate_image_metadata(values: dict[str, Any], file: Path) -> ImageMetadata:
    """Return the metadata of a file whose backbone the user builds, with checked types and ranges.

    Raises:
        UserError: a value is missing or invalid.
    """
    return _validate(ImageMetadata, values, file)


def _select_metadata(content: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata that a `.ckpt` has."""
    # A run's checkpoint has `classes` in both places; the hyper-parameters take precedence.
    available = content | content["hyper_parameters"]
    values: dict[str, Any] = {}
    for name in (*METADATA_HPARAMS, *PROVENANCE):
        if name in available:
            values[name] = available[name]
    return values


def read_hparams(file: Path, content: dict[str, Any], metadata: BackboneMetadata) -> dict[str, Any]:
    """Return the hyper-parameters of a `.ckpt`, completed by defaults for those that it lacks.

    Files of older versions lack hyper-parameters that were added later.

    Raises:
        UserError: a hyper-parameter is unknown, or a size is too large.
    """
    hparams: dict[str, Any] = asdict(NetworkOptions())
    del hparams["in_dim"]  # no hyper-parameter: the flag only checks backbone and width
    hparams["predictor"] = True
    hparams["image_size"] = None
    for name, value in content["hyper_parameters"].items():
        # Names that begin with an underscore are written by LightningCLI.
        if not str(name).startswith("_"):
            hparams[name] = value
    hparams["stem"] = metadata.stem

    unknown = sorted(str(name) for name in hparams.keys() - set(ALL_HPARAMS))
    require(
        not unknown,
        f"{file}: not a checkpoint of this program: unknown hyper-parameters {', '.join(unknown)}. "
        "If it was saved by a subclass of SimSiam whose on_save_checkpoint does not call super(), "
        "load it with SUBCLASS.load_from_checkpoint",
    )
    # Nearly all integers among the hyper-parameters are sizes. The others, such as booleans and
    # warmup_epochs, are far below MAX_SIZE in every real run.
    largest = max(value for value in hparams.values() if isinstance(value, int))
    require(largest <= MAX_SIZE, f"{file}: a size of {largest} is too large; {MAX_SIZE} is allowed")
    return hparams
