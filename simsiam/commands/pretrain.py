"""The command `pretrain`: from settings to a finished run folder."""

import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl

from simsiam.callbacks.checkpoint import BackgroundCheckpointIO, CheckpointCallback
from simsiam.callbacks.collapse import CollapseMonitor
from simsiam.callbacks.images import ImageLogger
from simsiam.callbacks.knn import KNNMonitor
from simsiam.callbacks.loggers import ResilientTensorBoardLogger, check_installed, make_loggers
from simsiam.callbacks.metrics import MetricsRecorder
from simsiam.callbacks.progress import ProgressCallback, about, estimate_seconds
from simsiam.callbacks.signals import SignalCallback
from simsiam.commands import launch
from simsiam.commands.resume import (
    Start,
    count_processes,
    explain_failures,
    find_start,
    validate_run,
)
from simsiam.config.commands import Pretrain, settings_to_keep, shell_command, subprocess_args
from simsiam.data import make_placeholders
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import default_stem, knn_unavailable_reason
from simsiam.evaluation.checkpoint import FACTS, load_backbone
from simsiam.module import SimSiam
from utils import distributed
from utils.console import plural, print_line, track_progress
from utils.device import (
    AUTO_PRECISIONS,
    choose_accelerator,
    choose_precision,
    git_commit,
    hardware,
    hidden_gpu,
    versions,
)
from utils.errors import require
from utils.filesystem import write_json
from utils.run_dir import RunDirectory, previous
from utils.weights import BACKBONE, write_weights

LONG = 6 * 3600  # seconds for which nobody would wait without being told
FOR_A_CPU = "--backbone resnet10 --width 16 --out-dim 512 --h-dim 128 --batch-size 64 --constant-predictor-lr"
FOR_A_CPU += " --epochs 20 --image-schedule 16:15 24:4"  # kNN 60 %: docs/benchmarks.md
LOG_EVERY = (
    100  # steps between points of a curve; epochs shorter than two of these have their means alone
)


@dataclass
class RunContext:
    """What the steps of a pre-training share."""

    config: Pretrain
    run: RunDirectory
    accelerator: str
    precision: Any
    data: ViewsDataModule
    model: SimSiam
    start: Start | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """What every checkpoint and exported file says of its origin."""
        about = {
            "classes": list(self.data.train.classes),
            "settings": settings_to_keep(self.config),
        }
        about |= {"versions": versions(), "commit": git_commit(), "precision": self.precision}
        return about | (
            {"images": self.data.dataset_digest} if self.data.dataset_digest else {}
        )  # a person's own


def pretrain(config: Pretrain) -> None:
    """Train, resume, or say that there is nothing to do. Mistakes are found before anything is written."""
    if not config.run.dry_run and launch.needs_launch(config.device.devices):
        raise SystemExit(launch.launch(config.device.devices or 1, subprocess_args(config)))
    accelerator = choose_accelerator(config.device.accelerator)
    precision = choose_precision(config.device.precision, accelerator)
    check_installed(config.monitor.logger)
    run = RunDirectory(config.run_dir)
    started = (
        (None, None) if config.run.dry_run else (config.device.devices, config.device.num_nodes)
    )
    with launch.process_group(*started, accelerator == "gpu"), ExitStack() as held:
        state = distributed.broadcast_result(lambda: validate_run(config, run))
        if state == "finished" and not config.run.overwrite:  # since `main.py` has looked
            return
        data = load_data(config, accelerator)
        context = RunContext(config, run, accelerator, precision, data, build_model(config, data))
        found = run.resumable()
        context.start = distributed.broadcast_result(
            lambda: find_start(config, run, data, context.model, state)
        )
        if (
            context.start and config.device.precision == "auto"
        ):  # on another device it may be another
            older = (
                "32-true" if accelerator == "cpu" else precision
            )  # what it was when checkpoints did not say
            kept = context.start.precision or older
            context.precision = kept if kept in AUTO_PRECISIONS else precision
        if config.run.dry_run:
            print(describe_run(context))
            return
        context.start = distributed.broadcast_result(
            lambda: acquire_run(context, (state, found), held)
        )
        train(context)


def load_data(config: Pretrain, accelerator: str) -> ViewsDataModule:
    data = ViewsDataModule(
        **asdict(config.data),
        batch_size=config.optimizer.batch_size,
        accumulate=config.optimizer.accumulate,
        views=config.method.views,
        image_schedule=config.method.image_schedule,
        seed=config.run.seed,
        policy=config.augmentation,
        compile=config.device.compile and accelerator == "gpu",
    )
    if config.run.dry_run and (placeholders := make_placeholders(data.options)):
        data.set_splits(placeholders)
        count, side = sum(map(len, placeholders)), data.train.side
        folder = f"{count:,} images would be decoded, {count * 3 * side**2 / 2**30:.2f} GiB, unless they are already"
        absent = (
            f"{config.data.dataset} is not in {config.data.data_dir}: it would be downloaded first"
        )
        print(folder if config.data.dataset == "folder" else absent)
        return data
    distributed.once_per_node(data.prepare_data)
    data.setup()
    same = distributed.broadcast_result(lambda: data.dataset_digest) == data.dataset_digest
    require(same, f"{config.data.data_dir}: not the same images as on the first machine")
    return data


def build_model(config: Pretrain, data: ViewsDataModule) -> SimSiam:
    pl.seed_everything(
        config.run.seed % 2**32, verbose=False
    )  # initial weights; nothing later uses this generator
    network, method, optimizer = asdict(config.network), asdict(config.method), config.optimizer
    del network["in_dim"], method["views"], method["image_schedule"]
    return SimSiam(
        **network | {"stem": config.network.stem or default_stem(data.size)},
        **method,
        learning_rate=optimizer.peak_rate,
        warmup_epochs=optimizer.warmup,
        momentum=optimizer.momentum,
        weight_decay=optimizer.weight_decay,
        constant_predictor_lr=optimizer.constant_predictor_lr,
        predictor_lr_scale=optimizer.predictor_lr_scale,
        image_size=data.size,
    )


def acquire_run(context: RunContext, seen: tuple[str, list[Any]], held: ExitStack) -> Start | None:
    """Lock the run's folder until `held` is closed, and write its config; the checkpoint to start from."""
    config, run, data, start = context.config, context.run, context.data, context.start
    held.enter_context(run.lock())
    require(
        (run.state(), run.resumable()) == seen, f"{run.path} has changed meanwhile: run this again"
    )
    print(describe_run(context), flush=True)
    if config.run.overwrite:
        run.delete()
    resolved = {  # what the settings left to the program
        "accelerator": context.accelerator,
        "precision": context.precision,
        "devices": distributed.world_size(),
        "learning_rate": config.optimizer.peak_rate,
        "warmup_epochs": config.optimizer.warmup,
        "proj_hidden": config.network.proj_hidden or config.network.out_dim,
        "in_dim": config.network.num_features,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "hardware": hardware(context.accelerator),
        "image_size": data.size,
        "stem": context.model.hparams["stem"],
        "images": data.dataset_digest,
    }
    settings = settings_to_keep(config)
    run.create(
        {"command": "pretrain", "settings": settings, "resolved": resolved, "versions": versions()}
    )
    run.remove_partial_files()
    if start and start.path == previous(
        run.last
    ):  # the damaged one must not take the place of the whole one
        os.replace(start.path, run.last)
        start = start._replace(path=run.last)
    return start


def describe_run(context: RunContext) -> str:
    """What is known of the run once its images are loaded; `announce` has said the rest."""
    config, data, model = context.config, context.data, context.model
    sizes = {
        name: sum(p.numel() for p in part.parameters()) / 1e6
        for name, part in model.named_children()
    }
    epochs, steps = config.optimizer.epochs, len(data.train) // config.optimizer.batch_size
    device = f"{count_processes(config)} x {context.accelerator}"
    margin = f" from {data.train.side} x {data.train.side}" if data.size < data.train.side else ""
    why = knn_unavailable_reason(data.train, data.test)
    hidden = hidden_gpu(config.device.accelerator)
    lines = [
        f"  images    {len(data.train):,} train and {len(data.test):,} {data.test.kind}, "
        + plural(len(data.train.classes), "class"),
        f"            views of {data.size} x {data.size} pixels{margin}",
        *([f"            {why}: kNN is off"] if why and config.monitor.knn_every else []),
        f"  network   {model.hparams['stem']} stem; parameters: backbone {sizes['backbone']:.2f} M,",
        f"            projector {sizes['projector']:.2f} M, predictor {sizes.get('predictor', 0):.2f} M",
        f"  steps     {plural(epochs, 'epoch')} of {plural(steps, 'step')} = {epochs * steps:,}",
        f"  device    {device.removeprefix('1 x ')}, precision {context.precision}",
        *([f"            {hidden}"] if hidden else []),
        *([f"  start     resumed from {context.start.path}"] if context.start else []),
        *(describe_time(context) if device == "1 x cpu" and not context.start else []),
        f"  watch     {shell_command('-m', 'tensorboard.main', '--logdir', context.run.path.parent)}",
    ]
    return "\n".join(lines)


def describe_time(context: RunContext) -> list[str]:
    """How long a run will take on this processor; for a long one, what suits it better."""
    epochs, every = context.config.optimizer.epochs, context.config.monitor.knn_every
    seconds = estimate_seconds(
        context.model, context.data, context.precision == "bf16-mixed", epochs, every
    )
    lines = [f"  time      {about(seconds)} on this CPU"]
    if seconds > LONG:
        lines[0] += ": it wants a GPU."
        lines.append("            What a CPU learns of CIFAR-10 in a quarter of an hour:")
        lines.append(f"            {shell_command(*FOR_A_CPU.split())}")
    return lines


def train(context: RunContext) -> None:
    """Run the Trainer, and write what a finished run consists of."""
    config, run, data, model, start = (
        context.config,
        context.run,
        context.data,
        context.model,
        context.start,
    )
    loggers = make_loggers(config, run, start.step if start else None)
    board = next(
        (logger for logger in loggers if isinstance(logger, ResilientTensorBoardLogger)), None
    )
    monitor, epochs = config.monitor, config.optimizer.epochs
    pictures_every = (
        max(1, epochs // 10) if monitor.pictures_every is None else monitor.pictures_every
    )
    on_gpu = context.accelerator == "gpu"
    knn = KNNMonitor(monitor.knn_k, monitor.knn_t, monitor.knn_every, print_fn=print_line)
    knn.compile = config.device.compile
    # The untrained kNN prints lines where there is no terminal; later ones have an epoch's line.
    knn.progress = lambda chunks, n, what: track_progress(
        chunks, n, what, lines=knn.untrained is None
    )
    recorder = MetricsRecorder(run, knn)
    io = BackgroundCheckpointIO(run, about=context.provenance)
    signals = SignalCallback()
    checkpoints = CheckpointCallback(run, recorder, config.run.checkpoint_every, io, signals)
    trainer = pl.Trainer(
        accelerator=context.accelerator,
        devices=distributed.local_world_size(),
        num_nodes=distributed.world_size() // distributed.local_world_size(),
        strategy="ddp" if distributed.world_size() > 1 else config.device.strategy,
        accumulate_grad_batches=config.optimizer.accumulate,
        use_distributed_sampler=False,  # EpochSampler shares the order of an epoch out
        precision=context.precision,
        benchmark=on_gpu,  # cuDNN tries its kernels for the sizes at hand, which do not change
        max_epochs=epochs,
        logger=loggers,
        callbacks=[
            signals,
            knn,
            recorder,
            ProgressCallback(recorder.words, lambda epoch: knn.remaining_seconds(epoch, epochs)),
            ImageLogger(
                run, knn, pictures_every, board.log_picture if board else lambda *picture: None
            ),
            CollapseMonitor(monitor.stop_on_collapse, print_fn=print_line),
            checkpoints,
        ],
        plugins=[io],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=LOG_EVERY
        if len(data.train) // config.optimizer.batch_size >= 2 * LOG_EVERY
        else 1_000_000,
        num_sanity_val_steps=0,
        default_root_dir=run.checkpoints,  # where Lightning's SLURM plugin writes, see `RunDirectory.resumable`
    )
    if config.device.compile and on_gpu:
        model.compile_networks(
            cuda_graphs=config.optimizer.accumulate == 1 and distributed.world_size() == 1
        )
    with explain_failures(run, start, checkpoints):
        trainer.fit(model, datamodule=data, ckpt_path=start.path if start else None)
        if distributed.rank() == 0:
            checkpoints.check_saved()
            finish_run(context, recorder, checkpoints, knn)


def finish_run(
    context: RunContext, recorder: MetricsRecorder, checkpoints: CheckpointCallback, knn: KNNMonitor
) -> None:
    """Write the backbone and summary.json, which makes the run finished; print where they are."""
    run, rows, data = context.run, recorder.rows, context.data
    run.write_rows(rows)  # once more: perhaps nothing was left to train, and the file was damaged
    last = rows[-1]
    facts = (
        {name: context.model.hparams[name] for name in FACTS} | context.provenance | {"row": last}
    )
    write_weights(run.backbone, BACKBONE, context.model.backbone.state_dict(), facts)
    load_backbone(run.backbone)  # a file that does not load is found now
    summary = {
        "epochs": last["epoch"],
        "step": last["step"],
        "kNN_accuracy": last.get("kNN_accuracy"),
        "kNN_best": checkpoints.best,
        "kNN_best_epoch": checkpoints.best_epoch,
        "kNN_untrained": knn.untrained,
        "train_loss": last["train_loss"],
        "z_std": last["z_std"],
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "images_per_second": round(sum(row["images_per_second"] for row in rows) / len(rows), 1),
    }
    write_json(run.summary, summary)
    accuracy = ""
    after = "neighbours" if knn_unavailable_reason(data.train, data.test) else "linear"
    if summary["kNN_accuracy"] is not None:
        accuracy = f"  kNN       {summary['kNN_accuracy']:.2f} % in the last epoch"
        accuracy += f", {checkpoints.best:.2f} % in the best (epoch {checkpoints.best_epoch})"
        accuracy += f", {knn.untrained:.2f} % untrained\n" if knn.untrained is not None else "\n"
    print(
        f"finished {plural(last['epoch'], 'epoch')} in {timedelta(seconds=round(summary['seconds']))}\n{accuracy}"
        f"  loss      {last['train_loss']:.4f}   z_std {last['z_std']:.3f}\n"
        f"  speed     {summary['images_per_second']:,.0f} images/s\n"
        f"  backbone  {run.backbone}\n"
        f"  next      {shell_command(after, run.path)}\n"
        f"            {shell_command('report', run.path)}"
    )
