"""Groups of options that decide what is computed: data and method.

A group is a heading in `--help`, a field is a flag, and the docstring below a field is its help.
The range of an option is part of its type. Nothing here imports torch, so that `--help` is quick.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from simsiam.config.value_types import (
    AtLeast0,
    AtLeast1,
    ImageSize,
    NotNegative,
    PairText,
    PathText,
    PixelConversion,
    parse_background,
    parse_image_schedule,
    parse_pixel_range,
)
from utils.errors import require
from utils.option_group import Hint, Rule, option_group, to_flag
from utils.settings import to_flags

ImageCache = Literal["auto", "on", "off"]
HeavyLoss = Literal["one-way", "symmetric"]
Dataset = Literal["cifar10", "cifar100", "patterns", "folder", "arrays"]
CUSTOM_DATASETS = ("folder", "arrays")  # the user's own images
DOWNLOADED_DATASETS = ("cifar10", "cifar100")

SMALL_IMAGE = 64  # pixels; larger images get the imagenet stem, and clean ones a margin
FOLDER_IMAGE_SIZE = 96  # pixels; small enough for one GPU, and most photographs are still clear


@option_group()
class DataOptions:
    """Data."""

    dataset: Dataset = "cifar10"
    """Data set. cifar10 and cifar100 are downloaded if necessary; patterns is generated, for
    demonstrations. For your own images there are two. folder is DIR/train/CLASS/* with
    DIR/val/CLASS/*; DIR/CLASS/*; DIR/* without labels; or a list, see --data-dir. arrays is an
    .npz file of x_train, y_train, x_test and y_test, or one of MedMNIST."""
    data_dir: Annotated[PathText, Rule.CHANGEABLE_ON_RESUME] = "./data"
    """Folder of the data sets in torchvision's layout; or your folder of images, .txt of paths,
    .csv of path,label[,split] or .npz file."""
    data_url: Annotated[
        str | None, Hint("URL", default="the publisher's"), Rule.CHANGEABLE_ON_RESUME
    ] = None
    """Download the archive from this mirror; its checksum must be the published one."""
    train_images: Annotated[AtLeast1 | None, Hint("N", default="all")] = None
    """Use the first N images of the train split (of a folder: N spread evenly)."""
    test_images: Annotated[AtLeast0 | None, Hint("N", default="all")] = None
    """Use the first N images of the test split (of a folder: N spread evenly); 0 for none."""
    image_size: Annotated[
        ImageSize | None,
        Hint("PIXELS", default=f"the data set's own; {FOLDER_IMAGE_SIZE} for a folder"),
    ] = None
    """Side of a view."""
    cache_dir: Annotated[
        PathText | None, Hint("DIR", default="~/.cache/simsiam"), Rule.CHANGEABLE_ON_RESUME
    ] = None
    """Folder for the decoded images of a folder."""
    image_cache: ImageCache = "auto"
    """on decodes the images of a folder once, into --cache-dir; off decodes the files in each
    epoch; auto is on if that takes less than 64 GiB and a quarter of the free disk."""
    stored_side: Annotated[AtLeast1 | None, Hint("PIXELS", default="twice --image-size")] = None
    """Longest shorter side of an image in the cache, in pixels; larger images are made smaller."""
    skip_bad_images: Annotated[bool, Rule.CHANGEABLE_ON_RESUME] = False
    """Leave out unreadable images of a folder, instead of stopping with an error. With
    --image-cache off, the next image takes the place of an unreadable one."""
    data_memory: Annotated[
        NotNegative | None, Hint("GIB", default="half of what is free"), Rule.CHANGEABLE_ON_RESUME
    ] = None
    """GiB of device memory for the data set; a larger data set is streamed from disk."""
    held_out_images: AtLeast0 = 0
    """Hold out N training images, and evaluate on them instead of the test images."""
    pixel_range: Annotated[PairText | None, Hint("LOW:HIGH", default="all of 8 or 16 bits")] = None
    """The pixel value that is black and the one that is white, in your own images. 0:4095 is for
    images of 12 bits in files of 16 bits."""
    background: Annotated[str, Hint("COLOUR")] = "white"
    """The colour behind your own images that have transparency: white, black, R,G,B or #rrggbb."""

    def __post_init__(self) -> None:
        require(
            not self.held_out_images or self.test_images is None,
            f"--test-images {self.test_images}: with --held-out-images {self.held_out_images} the "
            "test images are not used. Drop one of the two flags.",
        )
        # The dataset of an evaluation is None if it is the checkpoint's.
        is_published = self.dataset is not None and self.dataset not in CUSTOM_DATASETS
        require(
            self.pixel_range is None or not is_published,
            f"--pixel-range {self.pixel_range}: not for {self.dataset}, whose pixels have "
            "8 bits. Drop the flag.",
        )
        require(
            self.background in (None, "white") or not is_published,
            f"--background {self.background}: not for {self.dataset}, which has no transparency. "
            "Drop the flag.",
        )
        require(
            self.image_cache in (None, "auto") or self.dataset in (None, "folder"),
            f"--image-cache {self.image_cache}: only --dataset folder has image files. "
            "Drop the flag.",
        )
        size = self.image_size or FOLDER_IMAGE_SIZE
        require(
            self.stored_side is None or self.stored_side >= size or is_published,
            f"--stored-side {self.stored_side} is less than the {size} pixels of --image-size.",
        )
        _ = self.conversion  # raises UserError if a text has another form

    @property
    def conversion(self) -> PixelConversion:
        """`pixel_range` and `background` as numbers."""
        pixel_range = None
        if self.pixel_range is not None:
            pixel_range = parse_pixel_range(self.pixel_range)
        # The background of an evaluation is None if it is the checkpoint's.
        return PixelConversion(pixel_range, parse_background(self.background or "white"))

    def describe_unused(self) -> list[str]:
        """Return lines about given options that mean nothing for this data set, as flags.

        They are not refused, because a run of an earlier version may have them.
        """
        reasons: dict[str, str] = {}  # name of an option -> why it means nothing
        if self.dataset != "folder":
            no_files = f"{self.dataset} has no image files"
            reasons |= dict.fromkeys(("cache_dir", "stored_side", "skip_bad_images"), no_files)
        elif self.image_cache == "off":
            reasons["stored_side"] = "--image-cache is off"
        if self.dataset not in DOWNLOADED_DATASETS:
            reasons["data_url"] = f"{self.dataset} is not downloaded"

        lines: list[str] = []
        for name, reason in reasons.items():
            value = getattr(self, name)
            if value != getattr(DataOptions, name):
                lines.append(f"not used, because {reason}: {' '.join(to_flags({name: value}))}")
        return lines

    @property
    def path(self) -> Path:
        """`data_dir` with ~ expanded."""
        return Path(self.data_dir).expanduser()


@option_group()
class EvaluationDataOptions(DataOptions):
    """Data: the images that the checkpoint was trained on, unless others are given."""

    dataset: Annotated[Dataset | None, Hint("NAME", default="the checkpoint's")] = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Data set: cifar10, cifar100, patterns, folder or arrays."""
    data_dir: Annotated[  # pyright: ignore[reportIncompatibleVariableOverride]
        PathText | None,
        Hint("DIR", default="where the run had it, or ./data"),
        Rule.CHANGEABLE_ON_RESUME,
    ] = None
    """Folder of the data sets in torchvision's layout, or your images: a folder, list or .npz."""
    train_images: Annotated[AtLeast1 | None, Hint("N", default="as many as the run had")] = None
    """Use the first N images of the train split (of a folder: N spread evenly)."""
    test_images: Annotated[AtLeast0 | None, Hint("N", default="as many as the run had")] = None
    """Use the first N images of the test split (of a folder: N spread evenly); 0 for none."""
    image_size: Annotated[ImageSize | None, Hint("PIXELS", default="the checkpoint's")] = None
    """Side of the images that the network sees: for a folder any, otherwise at most their own."""
    image_cache: Annotated[ImageCache | None, Hint("MODE", default="the run's, or auto")] = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """on decodes the images of a folder once, off whenever they are needed."""
    held_out_images: Annotated[AtLeast0 | None, Hint("N", default="as many as the run had")] = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Evaluate on N training images that the run held out; 0 for the test images."""
    background: Annotated[str | None, Hint("COLOUR", default="the run's, or white")] = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """The colour behind images with transparency: white, black, R,G,B or #rrggbb."""


@option_group()
class MethodOptions:
    """Method: SimSiam (arXiv 2011.10566) and its ablations."""

    views: Annotated[int, Field(ge=2)] = 2
    """Views of each image. More than two are FastSiam: each prediction is compared with the mean of
    the other projections."""
    image_schedule: Annotated[tuple[str, ...], Hint("PIXELS:EPOCHS", default="none")] = ()
    """Train on smaller views first, which is cheaper: 16:12 24:6 is 12 epochs of 16 pixels, then 6
    epochs of 24 pixels, then full size."""
    stop_grad: bool = True
    """Stop the gradient at z. Without it the representation collapses."""
    predictor: bool = True
    """Use the predictor h. Without it the representation collapses."""
    fixed_predictor: bool = False
    """Keep h at its random initial weights (section 4.2). The network learns nothing then."""
    symmetric: bool = True
    """Predict each view from the other; --no-symmetric is D(p1, z2) alone (section 4.6)."""
    heavy_views: AtLeast0 = 0
    """Add N heavy views of each image: RandAugment of the first N views. They learn one-way, as in
    DSSL."""
    heavy_loss: HeavyLoss = "one-way"
    """one-way is DSSL's loss of heavy views, with the next two weights. symmetric treats them as
    ordinary views."""
    heavy_weight_in: NotNegative = 0.9
    """Weight of the heavy views' predictions of the views that they are made of."""
    heavy_weight_out: NotNegative = 0.1
    """Weight of these views' predictions of their heavy views."""

    def __post_init__(self) -> None:
        parse_image_schedule(self.image_schedule)  # raises UserError if a text has no such form
        require(
            self.predictor or not self.fixed_predictor,
            "--fixed-predictor needs a predictor. Drop --no-predictor.",
        )
        require(
            self.heavy_views <= self.views,
            f"--heavy-views {self.heavy_views}: must not be more than --views {self.views}. Each "
            "heavy view is made of another view.",
        )
        if self.heavy_views == 0:
            for name in ("heavy_loss", "heavy_weight_in", "heavy_weight_out"):
                value = getattr(self, name)
                require(
                    value == getattr(MethodOptions, name),
                    f"{to_flag(name)} {value}: there are no heavy views. Add --heavy-views 2, or "
                    "drop the flag.",
                )
