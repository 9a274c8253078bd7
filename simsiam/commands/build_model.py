"""Build the module that a pre-training trains."""

from dataclasses import asdict

import pytorch_lightning as pl

from models.batch_norm import separates_views
from models.choices import is_library_backbone
from models.libraries import LibraryError, count_library_features
from simsiam.commands.resume import count_processes
from simsiam.config.commands import Pretrain
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import default_stem
from simsiam.module import SimSiam
from utils.errors import UserError, require


def build_model(config: Pretrain, data: ViewsDataModule) -> SimSiam:
    """Return the module with the initial weights of the run's seed.

    Raises:
        UserError: the backbone of a library is unknown, or does not fit the images or other flags.
    """
    # Only the initial weights come from this generator.
    pl.seed_everything(config.run.seed % 2**32, verbose=False)
    network = asdict(config.network)
    if not is_library_backbone(config.network.backbone):
        network["stem"] = config.network.stem or default_stem(data.size)
    del network["in_dim"]  # follows from the backbone
    method = asdict(config.method)
    for name in ("views", "image_schedule"):  # these are arguments of the datamodule
        del method[name]
    optimizer = asdict(config.optimizer)
    optimizer["learning_rate"] = config.optimizer.peak_rate
    optimizer["warmup_epochs"] = config.optimizer.warmup
    # The Trainer and the datamodule have these, and `learning_rate` is resolved.
    for name in ("epochs", "batch_size", "accumulate", "base_learning_rate"):
        del optimizer[name]
    try:
        model = SimSiam(**network, **method, **optimizer, image_size=data.size)
        if is_library_backbone(config.network.backbone):
            _check_library_backbone(config, data, model)
    except LibraryError as error:
        raise UserError(f"--backbone {config.network.backbone}: {error}") from None
    return model


def _check_library_backbone(config: Pretrain, data: ViewsDataModule, model: SimSiam) -> None:
    """Raise an error if a library's network does not fit the other flags."""
    name = config.network.backbone
    in_dim = config.network.in_dim
    num_features = model.projector[0].in_features
    require(
        in_dim is None or in_dim == num_features,
        f"--in-dim {in_dim}: {name} has {num_features} features. Give that number, or leave the "
        "flag out.",
    )

    # `--image-schedule` trains on views of several sizes.
    for size in sorted({data.view_size(epoch) for epoch in range(config.optimizer.epochs)}):
        count_library_features(name, data.size, size)

    processes = count_processes(config.device, config.run.dry_run)
    require(
        processes == 1 or separates_views(model.backbone),
        f"--backbone {name}: its batch normalisation cannot share statistics over {processes} "
        "processes. Train on one device.",
    )
