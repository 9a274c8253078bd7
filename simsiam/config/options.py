"""Groups of options that decide what is computed: data, network, method, optimizer.

A group is a heading in `--help`, a field is a flag, and the docstring below a field is its help.
The range of an option is part of its type. Nothing here imports torch, so that `--help` is quick.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from models.choices import FEATURES_PER_CHANNEL, BackboneName, ConvInit, HeadsBN, Stem
from simsiam.config.value_types import (
    AtLeast0,
    AtLeast1,
    BatchSize,
    ImageSize,
    Momentum,
    NotNegative,
    PairText,
    PathText,
    Positive,
    parse_image_schedule,
    parse_pixel_range,
)
from utils.errors import require
from utils.option_group import Hint, Rule, option_group

Dataset = Literal["cifar10", "cifar100", "patterns", "folder", "arrays"]
CUSTOM_DATASETS = ("folder", "arrays")  # the user's own images

SMALL_IMAGE = 64  # pixels; larger images get the imagenet stem and a margin for the crops
FOLDER_IMAGE_SIZE = 96  # pixels; small enough for one GPU, and most photographs are still clear

DEFAULT_LEARNING_RATE = 0.06  # the paper's rate for a batch of 512
# The default warm-up takes 10 epochs, but no more than a tenth of the run.
DEFAULT_WARMUP_EPOCHS = 10
RUN_TO_WARMUP_RATIO = 10


@option_group()
class DataOptions:
    """Data."""

    dataset: Dataset = "cifar10"
    """Data set. cifar10 and cifar100 are downloaded if necessary; patterns is generated, for
    demonstrations. For your own images there are two. folder has one of three layouts:
    DIR/train/CLASS/* with DIR/val/CLASS/*; DIR/CLASS/*; or DIR/* without labels. arrays is an
    .npz file of x_train, y_train, x_test and y_test, or one of MedMNIST."""
    data_dir: Annotated[PathText, Rule.CHANGEABLE_ON_RESUME] = "./data"
    """Folder of the data sets in torchvision's layout, or your folder of images, or your .npz
    file."""
    data_url: Annotated[
        str | None, Hint("URL", default="the publisher's"), Rule.CHANGEABLE_ON_RESUME
    ] = None
    """Download the archive from this mirror; its checksum must be the published one."""
    train_images: Annotated[AtLeast1 | None, Hint("N", default="all")] = None
    """Use the first N images of the train split (of a folder: N spread evenly)."""
    test_images: Annotated[AtLeast1 | None, Hint("N", default="all")] = None
    """Use the first N images of the test split (of a folder: N spread evenly)."""
    image_size: Annotated[
        ImageSize | None,
        Hint("PIXELS", default=f"the data set's own; {FOLDER_IMAGE_SIZE} for a folder"),
    ] = None
    """Side of a view. Above 64 pixels, the images of a folder are stored with a margin for the
    crops (256 pixels for 224)."""
    cache_dir: Annotated[
        PathText | None, Hint("DIR", default="~/.cache/simsiam"), Rule.CHANGEABLE_ON_RESUME
    ] = None
    """Folder for the decoded images of a folder."""
    skip_bad_images: Annotated[bool, Rule.CHANGEABLE_ON_RESUME] = False
    """Leave out unreadable images of a folder, instead of stopping with an error."""
    data_memory: Annotated[
        NotNegative | None, Hint("GIB", default="half of what is free"), Rule.CHANGEABLE_ON_RESUME
    ] = None
    """GiB of device memory for the data set; a larger data set is streamed from disk."""
    held_out_images: AtLeast0 = 0
    """Hold out N training images, and evaluate on them instead of the test images."""
    pixel_range: Annotated[PairText | None, Hint("LOW:HIGH", default="all of 8 or 16 bits")] = None
    """The pixel value that is black and the one that is white, in your own images. 0:4095 is for
    images of 12 bits in files of 16 bits."""

    def __post_init__(self) -> None:
        require(
            not self.held_out_images or self.test_images is None,
            f"--test-images {self.test_images}: with --held-out-images {self.held_out_images} the "
            "test images are not used. Drop one of the two flags.",
        )
        if self.pixel_range is not None:
            # The dataset of an evaluation is None if it is the checkpoint's.
            may_have_range = self.dataset is None or self.dataset in CUSTOM_DATASETS
            require(
                may_have_range,
                f"--pixel-range {self.pixel_range}: not for {self.dataset}, whose pixels have "
                "8 bits. Drop the flag.",
            )
            parse_pixel_range(self.pixel_range)

    @property
    def parsed_pixel_range(self) -> tuple[float, float] | None:
        """The two numbers in the text `pixel_range`."""
        return None if self.pixel_range is None else parse_pixel_range(self.pixel_range)

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
    """Folder of the data sets in torchvision's layout, or a folder of images, or an .npz file."""
    train_images: Annotated[AtLeast1 | None, Hint("N", default="as many as the run had")] = None
    """Use the first N images of the train split (of a folder: N spread evenly)."""
    test_images: Annotated[AtLeast1 | None, Hint("N", default="as many as the run had")] = None
    """Use the first N images of the test split (of a folder: N spread evenly)."""
    image_size: Annotated[ImageSize | None, Hint("PIXELS", default="the checkpoint's")] = None
    """Side of the images of a folder."""
    held_out_images: Annotated[AtLeast0 | None, Hint("N", default="as many as the run had")] = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Evaluate on N training images that the run held out; 0 for the test images."""


@option_group()
class NetworkOptions:
    """Network: the encoder f (backbone and projector) and the predictor h."""

    backbone: BackboneName = "resnet18"
    """Backbone; resnet10 is small enough for a CPU."""
    stem: Annotated[
        Stem | None, Hint("{cifar,imagenet}", default=f"cifar up to {SMALL_IMAGE} pixels")
    ] = None
    """First layers: cifar (3x3 convolution) or imagenet (7x7 of stride 2, max-pooling)."""
    width: AtLeast1 = 64
    """Channels of the first stage; a resnet18 has 8 x width features, a resnet50 32 x width."""
    in_dim: Annotated[
        AtLeast1 | None,
        Hint("N", default="follows from backbone and width"),
        Rule.CHANGEABLE_ON_RESUME,
    ] = None
    """Input dimension of the projector; if given, it must be the number of the backbone's
    features."""
    out_dim: AtLeast1 = 1024
    """Dimension d of the projections z and the predictions p."""
    h_dim: AtLeast1 = 512
    """Hidden dimension (bottleneck) of the predictor."""
    proj_layers: Literal[2, 3] = 2
    """Layers of the projector: the paper has 2 for CIFAR and 3 for ImageNet."""
    proj_hidden: Annotated[AtLeast1 | None, Hint("N", default="--out-dim")] = None
    """Hidden dimension of the projector."""
    heads_bn: HeadsBN = "paper"
    """Layers of the heads that have BN (table 3): those of the paper's default, none, the hidden
    layers, or all, which adds the output of h."""
    zero_init_residual: bool = True
    """Start each residual block as the identity (its last BN at zero)."""
    conv_init: ConvInit = "kaiming"
    """Initial weights of convolutions: kaiming (torchvision's) or torch (PyTorch's default)."""

    @property
    def num_features(self) -> int:
        """Number of the backbone's features, which is the projector's input dimension."""
        return self.width * FEATURES_PER_CHANNEL[self.backbone]

    def __post_init__(self) -> None:
        require(
            self.in_dim is None or self.in_dim == self.num_features,
            f"--in-dim {self.in_dim}: {self.backbone} of width {self.width} has "
            f"{self.num_features} features. Give that number, or leave the flag out.",
        )


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

    def __post_init__(self) -> None:
        parse_image_schedule(self.image_schedule)  # raises UserError if a text has no such form
        require(
            self.predictor or not self.fixed_predictor,
            "--fixed-predictor needs a predictor. Drop --no-predictor.",
        )


@option_group()
class OptimizerOptions:
    """Optimizer: SGD with linear warm-up and cosine decay."""

    epochs: AtLeast1 = 800
    """Length of the run; the cosine reaches 0 at its end."""
    batch_size: BatchSize = 512
    """Images in a step, each in several views. The last partial batch of an epoch is dropped."""
    accumulate: AtLeast1 = 1
    """Process each batch in N parts, one after another, in 1/N of the memory. BN uses the
    statistics of a part."""
    learning_rate: Annotated[Positive | Literal["auto"], Hint("RATE|auto")] = DEFAULT_LEARNING_RATE
    """Peak rate for this batch size; auto is the paper's 0.03 x batch size / 256. Small runs learn
    better with more, such as 0.15."""
    momentum: Momentum = 0.9
    """Momentum of SGD."""
    weight_decay: NotNegative = 5e-4
    """Weight decay of all parameters, BN included, as in the paper. With ten times more the
    representation collapses."""
    warmup_epochs: Annotated[
        NotNegative | None,
        Hint(
            "EPOCHS",
            default=f"{DEFAULT_WARMUP_EPOCHS}, or a tenth of a run below "
            f"{RUN_TO_WARMUP_RATIO * DEFAULT_WARMUP_EPOCHS} epochs",
        ),
    ] = None
    """Epochs of linear warm-up."""
    constant_predictor_lr: bool = False
    """Keep the predictor at the peak rate throughout (section 4.2)."""
    predictor_lr_scale: Positive = 1.0
    """Multiply the predictor's peak rate by this factor."""

    @property
    def peak_rate(self) -> float:
        """The learning rate, with "auto" resolved."""
        if self.learning_rate == "auto":
            return 0.03 * self.batch_size / 256
        return float(self.learning_rate)

    @property
    def warmup(self) -> float:
        """Epochs of warm-up, with the default resolved."""
        if self.warmup_epochs is None:
            return min(DEFAULT_WARMUP_EPOCHS, self.epochs / RUN_TO_WARMUP_RATIO)
        return self.warmup_epochs

    def __post_init__(self) -> None:
        require(
            self.warmup < self.epochs,
            f"--warmup-epochs {self.warmup_epochs}: must be less than --epochs {self.epochs}, "
            "or the rate never comes down",
        )
