"""The commands that use a trained network: one frozen dataclass each, with its groups of options.

`utils.cli` makes the command line from these classes, and their docstrings are the text above the
flags in `--help`.
"""

from simsiam.config import evaluation_options as evaluation
from simsiam.config.linear_options import LinearOptions
from simsiam.config.options import EvaluationDataOptions
from simsiam.config.run_options import AcceleratorOptions, PrecisionOptions
from utils.errors import require
from utils.option_group import option_group


@option_group(kw_only=True)
class Evaluation:
    """What the commands that use a checkpoint have in common."""

    checkpoint: evaluation.CheckpointOptions
    data: EvaluationDataOptions = EvaluationDataOptions()


@option_group(kw_only=True)
class Knn(Evaluation):
    """Classify all test images by their nearest train images: k = 1, 20, 200 and T = .07, .1, .2.

    The features are those of the backbone and, if the checkpoint has a projector, those of the
    projector too. The accuracy of each class is also measured.

    Small images are measured a second time with a zoom (--test-zoom), as many papers do.
    """

    zoom: evaluation.ZoomOptions = evaluation.ZoomOptions()
    device: AcceleratorOptions = AcceleratorOptions()


@option_group(kw_only=True)
class Linear(Evaluation):
    """Train a linear classifier on the frozen backbone's features; measure it on all test images.

    Without --augment the features are computed once and the classifier is fitted by L-BFGS, which
    takes seconds, also on a CPU. Its weight decay is chosen on a held-out part of the train images.
    With --augment the classifier is trained by SGD on crops and flips, or by LARS as the paper does
    on ImageNet (--recipe imagenet).

    Test images are used once, after the last epoch. The classifier is kept as head.safetensors.

    Small images are measured a second time with a zoom (--test-zoom), as many papers do: by a
    classifier of their own or, with --augment, by the one that was trained on crops and flips.
    """

    linear: LinearOptions = LinearOptions()
    zoom: evaluation.ZoomOptions = evaluation.ZoomOptions()
    device: PrecisionOptions = PrecisionOptions()

    def __post_init__(self) -> None:
        options_of_augment = (
            self.linear.recipe,
            self.linear.optimizer,
            self.linear.epochs,
            self.linear.batch_size,
            self.linear.learning_rate,
            self.linear.crop_scale,
        )
        is_one_given = any(options_of_augment) or self.device.precision != "auto"
        require(
            self.linear.augment or not is_one_given,
            "--recipe, --optimizer, --epochs, --batch-size, --learning-rate, --crop-scale, "
            "--precision: each goes with --augment. Give --augment, or drop the flag.",
        )


@option_group(kw_only=True)
class Finetune(Evaluation):
    """Train the backbone and a new head on a share of the labels; measure it on all test images.

    `--label-fraction 0.1 --seeds 0 1 2` is the usual measurement: 10 % of the labels, three times.
    With `--from-scratch` it shows what the labels alone give. The same command again continues
    after the last finished seed.
    """

    finetune: evaluation.FinetuneOptions = evaluation.FinetuneOptions()
    device: PrecisionOptions = PrecisionOptions()


@option_group(kw_only=True)
class Embed(Evaluation):
    """Write the backbone's features of the data set, or of a folder of images.

    The .npz file holds the arrays features (N, F) float32, labels (N,), indices (N,), split (N,)
    and classes. If the images are files, it also holds their paths (N,). A .parquet file has the
    columns features, label, class, path, index and split.
    """

    embed: evaluation.EmbedOptions = evaluation.EmbedOptions()
    device: AcceleratorOptions = AcceleratorOptions()

    def __post_init__(self) -> None:
        data = self.data
        options_of_data_set = (
            self.embed.split,
            data.dataset,
            data.data_dir,
            data.train_images,
            data.test_images,
            data.held_out_images,
        )
        require(
            self.embed.images is None or all(option is None for option in options_of_data_set),
            "--split, --dataset, --data-dir, --train-images, --test-images, --held-out-images: "
            "each chooses images of a data set. Drop the flag, or --images.",
        )


@option_group(kw_only=True)
class Neighbours(Evaluation):
    """Draw a gallery of nearest neighbours.

    Each row shows an image and the train images that the backbone finds most similar.
    """

    neighbours: evaluation.NeighboursOptions = evaluation.NeighboursOptions()
    device: AcceleratorOptions = AcceleratorOptions()


@option_group(kw_only=True)
class Export(Evaluation):
    """Write the backbone alone, for use elsewhere: safetensors, torch.export or ONNX.

    The exported network takes batches of any size. The file holds its normalisation, image size,
    class names and provenance. It is loaded back and compared on images of the run, or else on
    generated ones, before it is put in place.
    """

    export: evaluation.ExportOptions = evaluation.ExportOptions()


@option_group(kw_only=True)
class Cache:
    """List the caches of decoded images: of which folder, how large, when used; or remove them.

    A run with --image-cache on decodes the images of a folder into a cache. The next run on the
    same folder decodes them again if the cache is gone.
    """

    cache: evaluation.CacheOptions = evaluation.CacheOptions()


@option_group(kw_only=True)
class Report:
    """Write one HTML page of a run, or of several side by side, and its figures as PNG.

    `python main.py report runs/simsiam_cifar10` or `python main.py report runs/*`

    Curves (kNN, loss, z_std, effective rank, images/s), a table of all results, nearest neighbours,
    accuracy and confusion of classes, a map of the features, views, and the command, versions and
    hardware of each run. Runs are named by the settings in which they differ; runs that differ only
    in the seed are drawn as their mean, with a band of one standard deviation.

    The page is one file and needs no network. Call it again, also while a run trains, to see the
    current state.
    """

    report: evaluation.ReportOptions
    device: AcceleratorOptions = AcceleratorOptions()
