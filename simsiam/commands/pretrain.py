"""The command `pretrain`: train a network and leave a finished run folder."""

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
from torch import Tensor

from simsiam.callbacks.checkpoint import BackgroundCheckpointIO, CheckpointCallback
from simsiam.callbacks.collapse import CollapseMonitor
from simsiam.callbacks.images import ImageLogger
from simsiam.callbacks.knn import KNNMonitor
from simsiam.callbacks.loggers import ResilientTensorBoardLogger, check_installed, make_loggers
from simsiam.callbacks.metrics import MetricsRecorder
from simsiam.callbacks.progress import ProgressCallback
from simsiam.callbacks.signals import SignalCallback
from simsiam.commands import launch
from simsiam.commands.build_model import build_model
from simsiam.commands.describe import (
    RunContext,
    collect_provenance,
    describe_run,
    resolve_settings,
)
from simsiam.commands.estimate import measures_before_training
from simsiam.commands.fit import fit_to_data, resume_fit
from simsiam.commands.next_command import choose_next_command
from simsiam.commands.result import describe_result, summarise
from simsiam.commands.resume import (
    Start,
    choose_resumed_precision,
    explain_failures,
    find_start,
    validate_run,
)
from simsiam.config.commands import Pretrain, settings_to_keep, subprocess_args
from simsiam.config.options import ImageCache
from simsiam.config.run_state import find_image_cache
from simsiam.data import make_placeholders
from simsiam.data.datamodule import ViewsDataModule
from simsiam.evaluation.checkpoint import load_backbone
from simsiam.evaluation.metadata import METADATA_HPARAMS
from simsiam.evaluation.networks import evaluated_backbone
from simsiam.evaluation.starting_weights import StartingWeights
from utils import distributed, slurm
from utils.console import print_line, show_progress
from utils.device import choose_accelerator, choose_precision, package_versions
from utils.errors import require
from utils.filesystem import write_json
from utils.run_dir import RunDirectory, previous
from utils.weights import BACKBONE, write_weights

LOG_EVERY = 100  # steps between two points of a curve
NEVER = 0  # as `log_every_n_steps`: Lightning then logs only means of epochs


def pretrain(config: Pretrain) -> None:
    """Train a new run, resume an unfinished one, or return if the run is finished.

    Mistakes in the settings are found before anything is written.
    """
    devices = config.device.devices
    num_nodes = config.device.num_nodes
    if config.run.dry_run:  # one process is enough to describe a run of any number of processes
        devices = None
        num_nodes = None
    if devices is not None and launch.needs_launch(devices):
        # Start this command again in a process for each device. This process only waits for them.
        command = subprocess_args(config)
        raise SystemExit(launch.launch(devices, command, config.run.resume_command))

    accelerator = choose_accelerator(config.device.accelerator)
    precision = choose_precision(config.device.precision, accelerator)
    check_installed(config.monitor.logger)
    run = RunDirectory(config.run_dir)
    with launch.process_group(devices, num_nodes, accelerator == "gpu"), ExitStack() as cleanup:
        state = distributed.broadcast_result(lambda: validate_run(config, run))
        # main.py has checked this already, but another process may have finished the run since.
        if state == "finished":
            return
        config, fitted = distributed.broadcast_result(partial(resume_fit, config, run, state))
        image_cache = distributed.broadcast_result(partial(find_image_cache, config, run, state))
        data = load_data(config, accelerator, image_cache)
        config = fit_to_data(config, data)
        model = build_model(config, data)

        resumable_files = run.resumable()
        # `find_start` also loads the weights of --model-path into the model. Only rank 0 does this,
        # and DDP sends rank 0's weights to all ranks.
        origin = distributed.broadcast_result(lambda: find_start(config, run, data, model, state))
        start = origin if isinstance(origin, Start) else None
        weights = origin if isinstance(origin, StartingWeights) else None
        if start is not None and config.device.precision == "auto":
            precision = choose_resumed_precision(start, accelerator, precision)
        context = RunContext(
            config, run, accelerator, precision, data, model, start, fitted, weights
        )
        if config.run.dry_run:
            print(describe_run(context))
            return
        context.start = distributed.broadcast_result(
            lambda: acquire_run(context, state, resumable_files, cleanup)
        )
        train(context)


def load_data(config: Pretrain, accelerator: str, image_cache: ImageCache) -> ViewsDataModule:
    """Return the loaded images; in a dry run, placeholders for images that are not there yet.

    Args:
        image_cache: takes the place of `--image-cache`, see `find_image_cache`.
    """
    data = ViewsDataModule(
        **asdict(replace(config.data, image_cache=image_cache)),
        # `fit_to_data` needs the images to choose a batch size. BN needs two images at least.
        batch_size=config.optimizer.batch_size or 2,
        accumulate=config.optimizer.accumulate,
        views=config.method.views,
        heavy_views=config.method.heavy_views,
        image_schedule=config.method.image_schedule,
        seed=config.run.seed,
        policy=config.augmentation,
        compile=config.device.compile and accelerator == "gpu",
    )
    if config.run.dry_run:
        placeholders = make_placeholders(data.options)
        if placeholders is not None:
            data.set_splits(placeholders)
            if config.data.dataset != "folder":  # a folder has printed a line of its own
                where = config.data.data_dir
                print(f"{config.data.dataset} is not in {where}: it would be downloaded first")
            return data
    distributed.once_per_node(data.prepare_data)
    data.setup()
    digest_on_rank_0 = distributed.broadcast_result(lambda: data.dataset_digest)
    require(
        data.dataset_digest == digest_on_rank_0,
        f"{config.data.data_dir} does not hold the same images on this machine as on the first one",
    )
    return data


def acquire_run(
    context: RunContext, state: str, resumable_files: list[Path], cleanup: ExitStack
) -> Start | None:
    """Lock the run's folder, print the description of the run and write its config.yaml.

    Args:
        state, resumable_files: of the folder when `context` was made.
        cleanup: the folder stays locked until this is closed.

    Returns:
        The checkpoint to resume from, which may have got another name; None for a new run.

    Raises:
        UserError: another process is training in the folder, or has changed it since.
    """
    run = context.run
    start = context.start
    cleanup.enter_context(run.lock())
    is_unchanged = state in ("discarded", run.state()) and run.resumable() == resumable_files
    require(is_unchanged, f"{run.path} was changed by another process. Run this command again.")

    print(describe_run(context), flush=True)
    if state == "discarded":
        run.delete(keep_config=True)
    run.create(
        {
            "command": "pretrain",
            "settings": settings_to_keep(context.config),
            "resolved": resolve_settings(context) | slurm.describe_job(),
            "versions": package_versions(),
        }
    )
    run.remove_partial_files()

    # The run resumes from `last.previous.ckpt` only if `last.ckpt` is missing or damaged. Overwrite
    # `last.ckpt`, or the next save would replace the good `last.previous.ckpt` by the damaged file.
    if start is not None and start.path == previous(run.last):
        os.replace(start.path, run.last)
        start = start._replace(path=run.last)
    return start


def train(context: RunContext) -> None:
    """Run the Trainer, and write the files of a finished run."""
    config = context.config
    run = context.run
    start = context.start
    optimizer = config.optimizer
    monitor = config.monitor
    on_gpu = context.accelerator == "gpu"
    world_size = distributed.world_size()

    # `knn`, which is made below, calls this during the training.
    def show_knn_progress(chunks: Iterable[Tensor], total: int, label: str) -> Iterable[Tensor]:
        # Without a terminal, print progress only for the measurement before training. The line of
        # an epoch follows each later measurement.
        return show_progress(chunks, total, label, lines=not knn.has_measured)

    knn = KNNMonitor(
        monitor.neighbours,
        monitor.knn_t,
        monitor.knn_every,
        print_fn=print_line,
        progress=show_knn_progress,
        compile=config.device.compile,
        pretrained=config.run.model_path is not None,
        before_training=measures_before_training(context.data, optimizer.epochs),
    )
    recorder = MetricsRecorder(run, knn)
    progress = ProgressCallback(
        recorder.format_row, lambda epoch: knn.remaining_seconds(epoch, optimizer.epochs)
    )

    resumed_at = start.step if start is not None else None
    loggers = make_loggers(config, run, resumed_at)
    images_every = monitor.pictures_every
    if images_every is None:
        images_every = max(1, optimizer.epochs // 10)

    def log_image(tag: str, image: Tensor, step: int) -> None:
        for logger in loggers:
            if isinstance(logger, ResilientTensorBoardLogger):
                logger.log_image(tag, image, step)

    io = BackgroundCheckpointIO(run, extra_state=collect_provenance(context))
    signals = SignalCallback(config.run.resume_command)
    checkpoints = CheckpointCallback(run, recorder, config.run.checkpoint_every, io, signals)

    steps_per_epoch = len(context.data.train) // optimizer.images_per_step
    log_every = LOG_EVERY if steps_per_epoch >= 2 * LOG_EVERY else NEVER

    trainer = pl.Trainer(
        accelerator=context.accelerator,
        devices=distributed.local_world_size(),
        num_nodes=world_size // distributed.local_world_size(),
        strategy="ddp" if world_size > 1 else config.device.strategy,  # several processes need DDP
        accumulate_grad_batches=optimizer.accumulate,
        use_distributed_sampler=False,  # EpochSampler gives each process its part of a batch
        precision=context.precision,
        benchmark=on_gpu,  # cuDNN chooses its fastest kernels; the sizes of batches do not change
        max_epochs=optimizer.epochs,
        logger=loggers,
        # In this order: the recorder takes what `knn` has measured, and the checkpoint of an epoch
        # comes after everything else in it.
        callbacks=[
            signals,
            knn,
            recorder,
            progress,
            ImageLogger(run, knn, images_every, log_image),
            CollapseMonitor(monitor.stop_on_collapse, print_fn=print_line),
            checkpoints,
        ],
        plugins=[io],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=log_every,
        num_sanity_val_steps=0,
        # Lightning's SLURM plugin writes its checkpoints here; `RunDirectory.resumable` finds them.
        default_root_dir=run.checkpoints,
    )
    if config.device.compile and on_gpu:
        cuda_graphs = optimizer.accumulate == 1 and world_size == 1
        context.model.compile_networks(cuda_graphs=cuda_graphs)
    context.data.view_maker.compile_sizes(context.compiled_sizes, print_line)

    with explain_failures(run, start, checkpoints):
        ckpt_path = start.path if start is not None else None
        trainer.fit(context.model, datamodule=context.data, ckpt_path=ckpt_path)
        if distributed.rank() == 0:
            checkpoints.check_saved()
            finish_run(context, recorder, checkpoints, knn)


def finish_run(
    context: RunContext, recorder: MetricsRecorder, checkpoints: CheckpointCallback, knn: KNNMonitor
) -> None:
    """Write the backbone, then summary.json, which marks the run as finished. Print the result."""
    run = context.run
    # If a resumed run had no epoch left to train, nothing else has written metrics.jsonl.
    run.write_rows(recorder.rows)

    metadata = {name: context.model.hparams[name] for name in METADATA_HPARAMS}
    metadata.update(collect_provenance(context))
    metadata["row"] = recorder.row
    weights = evaluated_backbone(context.model).state_dict()
    write_weights(run.backbone, BACKBONE, weights, metadata)
    load_backbone(run.backbone)  # raises if the file does not load

    summary = summarise(recorder.rows, checkpoints, knn)
    write_json(run.summary, summary)

    next_command = choose_next_command(context.data.train, context.data.test)
    print(describe_result(summary, run, next_command))
