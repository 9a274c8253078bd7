"""The command `pretrain`: from settings to a finished run folder."""

import os
import shlex
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl

from simsiam.augment import Policy
from simsiam.callbacks.checkpoint import CheckpointCallback
from simsiam.callbacks.collapse import CollapseMonitor
from simsiam.callbacks.images import Pictures
from simsiam.callbacks.knn import KNNMonitor
from simsiam.callbacks.metrics import MetricsRecorder
from simsiam.callbacks.progress import ProgressCallback
from simsiam.callbacks.signals import SignalCallback
from simsiam.callbacks.tensorboard import ResilientTensorBoardLogger
from simsiam.commands.finish import finish
from simsiam.config.commands import IMMATERIAL, OWN, Pretrain, differences, settings
from simsiam.data.cifar import absent, placeholders
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import default_stem, no_knn
from simsiam.evaluation.checkpoint import find_checkpoint, load_strictly, load_weights
from simsiam.module import SimSiam
from utils import distributed
from utils.checkpoint_io import AtomicCheckpointIO, BackgroundCheckpointIO, previous, read_resumable
from utils.console import print_line
from utils.device import choose_accelerator, choose_precision, git_commit, hardware, versions
from utils.errors import RunFailure, UserError, check, is_out_of_memory
from utils.run_dir import RunDirectory


def pretrain(config: Pretrain) -> None:
    """Train, resume, or say that there is nothing to do.

    Everything that a person could have got wrong is found before anything is written.
    """
    if config.seeds:
        from simsiam.commands import sweep

        sweep.run_all({f"seed {run.seed}": run for run in sweep.of_seeds(config)})
        return
    accelerator = choose_accelerator(config.accelerator)
    precision = choose_precision(config.precision, accelerator)
    run = RunDirectory(config.run_dir)
    started = (None, None) if config.dry_run else (config.devices, config.num_nodes)
    with distributed.process_group(*started, accelerator == "gpu"), ExitStack() as held:
        state = distributed.broadcast_result(lambda: look(config, run))
        if state == "finished" and not config.overwrite:
            print(f"{run.path} is finished already. --overwrite would start anew.")
            return
        data = build_data(config, compile=config.compile and accelerator == "gpu")
        if config.dry_run and (config.dataset == "folder" or absent(config.dataset, config.data_dir)):
            few = (config.train_images, config.test_images, config.image_size)
            data.use(placeholders(config.dataset, config.data_dir, *few))
            print(what_first(config, data))
        else:
            distributed.once_per_node(data.prepare_data)
            data.setup()
            distributed.check_equal(data.origin, f"{config.data_dir}: not the same images on all machines")
        model = build_model(config, data)
        found = run.resumable()
        start = distributed.broadcast_result(lambda: find_start(config, run, data, model, state))
        device = f"{processes(config)} x {accelerator}, precision {precision}".removeprefix("1 x ")
        words = description(config, run, data, model, device, start)
        if config.dry_run:
            print(words)
            return
        resolved = {  # what the settings left to the program
            "accelerator": accelerator,
            "precision": precision,
            "devices": distributed.world_size(),
            "learning_rate": config.peak_rate,
            "warmup_epochs": config.warmup,
            "proj_hidden": config.proj_hidden or config.out_dim,
            "in_dim": config.num_features,
            "train_images": len(data.train),
            "test_images": len(data.test),
            "hardware": hardware(accelerator),
            "image_size": data.size,
            "stem": model.hparams["stem"],
            "images": data.origin,
        }
        about = {"command": "pretrain", "settings": settings(config), "resolved": resolved, "versions": versions()}
        start = distributed.broadcast_result(lambda: claim(config, run, (state, found), start, about, words, held))
        train(config, run, data, model, accelerator, precision, start)


def processes(config: Pretrain) -> int:
    """How many share a batch, or would."""
    return (config.devices or 1) * (config.num_nodes or 1) if config.dry_run else distributed.world_size()


def look(config: Pretrain, run: RunDirectory) -> str:
    """The state of the run's folder.

    Raises:
        UserError: it holds a run of other settings, or what is no run.
    """
    shares = processes(config) * config.accumulate
    check(
        config.batch_size % shares == 0 and config.batch_size >= 2 * shares,
        f"--batch-size {config.batch_size}: {processes(config)} devices share it in equal parts of at least 2"
        + (f", {config.accumulate} times" if config.accumulate > 1 else ""),
    )
    state = run.state()
    if state != "new" and not config.overwrite:
        changed = differences(run.settings(), settings(config))
        check(
            not changed,
            f"{run.path} holds a run with other settings ({'; '.join(changed)}): "
            "give another --exp-name, or --overwrite to start anew",
        )
    if state == "finished" and not config.overwrite and config.dataset in OWN:
        began = run.settings().get("data_dir") or ""
        check(
            os.path.realpath(began) == os.path.realpath(os.path.expanduser(config.data_dir)),
            f"{run.path} holds a finished run on the images in {began}: give another --exp-name, or --overwrite",
        )
    if config.dataset == "folder":
        root = Path(config.data_dir).expanduser().resolve()
        root = root / "train" if (root / "train").is_dir() else root
        check(
            root not in run.path.resolve().parents,
            f"{run.path} lies in --data-dir {config.data_dir}, where its pictures would be taken for images: "
            "give another --save-dir",
        )
    return state


def claim(
    config: Pretrain,
    run: RunDirectory,
    seen: tuple[str, list[Path]],
    start: "Start | None",
    about: dict[str, Any],
    words: str,
    held: ExitStack,
) -> "Start | None":
    """Take the folder for this process until `held` is closed, and make it the run's; where the run goes on."""
    held.enter_context(run.lock())
    check((run.state(), run.resumable()) == seen, f"{run.path} has changed meanwhile: run this again")
    print(words, flush=True)
    if config.overwrite:
        run.delete()
    run.create(about)
    run.remove_partial_files()
    if start and start.path == previous(run.last):  # what was found damaged must not take the place of what is whole
        os.replace(start.path, run.last)
        start = start._replace(path=run.last)
    return start


def build_data(config: Pretrain, compile: bool) -> ViewsDataModule:
    policy = Policy(**{name: getattr(config, name) for name in Policy.__dataclass_fields__})
    names = ("dataset", "data_dir", "data_url", "train_images", "test_images", "image_size", "cache_dir", "data_memory")
    names += ("skip_bad_images", "batch_size", "accumulate", "views", "seed")
    return ViewsDataModule(**{name: getattr(config, name) for name in names}, policy=policy, compile=compile)


def build_model(config: Pretrain, data: ViewsDataModule) -> SimSiam:
    pl.seed_everything(config.seed % 2**32, verbose=False)  # the initial weights; nothing later asks this generator
    names = (
        *("backbone", "width", "out_dim", "h_dim", "proj_layers", "proj_hidden", "stop_grad", "predictor"),
        *("fixed_predictor", "heads_bn", "symmetric"),
        *("zero_init_residual", "momentum", "weight_decay", "constant_predictor_lr"),
    )
    return SimSiam(
        **{name: getattr(config, name) for name in names},
        learning_rate=config.peak_rate,
        warmup_epochs=config.warmup,
        image_size=data.size,
        stem=config.stem or default_stem(data.size),
        mean=data.mean.tolist(),
        std=data.std.tolist(),
    )


STATEFUL = (MetricsRecorder.state_key, CheckpointCallback.state_key)


class Start(NamedTuple):
    """Where a run goes on."""

    path: Path
    step: int  # optimizer steps done


def find_start(config: Pretrain, run: RunDirectory, data: ViewsDataModule, model: SimSiam, state: str) -> Start | None:
    """The checkpoint to resume from: the run's own newest whole one, else `--ckpt-dir`'s.

    Else None, and `model` starts as it is, or from the weights of `--model-path`.

    Raises:
        UserError: damaged, foreign, a checkpoint of other settings, or settings that do not go with the images.
    """
    check(
        config.knn_every == 0 or no_knn(data.train, data.test) is not None or config.knn_k <= len(data.train),
        f"--knn-k {config.knn_k} is more than the {len(data.train)} train images: give fewer, or --knn-every 0",
    )
    if state == "unfinished" and not config.overwrite and run.resumable():
        check(
            config.ckpt_dir in (None, run.settings().get("ckpt_dir")),
            f"{run.path} holds an unfinished run, which would be resumed instead of --ckpt-dir {config.ckpt_dir}: "
            "leave the flag out, or give another --exp-name",
        )
        check(
            run.images() in (None, data.origin),
            f"{run.path} holds an unfinished run on other images than are in {config.data_dir} now: "
            "give another --exp-name, or --overwrite to start anew",
        )
        return _newest_whole(run.resumable())
    if config.model_path:
        load_weights(model, config.model_path)
    if config.ckpt_dir is None:
        return None
    file = find_checkpoint(config.ckpt_dir, whole=True)
    content = read_resumable(file, STATEFUL)
    changed = differences(content["settings"] | {"model_path": None}, settings(config))
    check(
        not changed,
        f"{file} is of a run with other settings ({'; '.join(changed)}): "
        "--model-path starts a new run from its weights",
    )
    check(
        content["row"].get("epoch", 0) < config.epochs,
        f"{file} is of a finished run: nothing is left to train; --model-path starts a new run from its weights",
    )
    check(
        run.path.resolve() not in file.resolve().parents,
        f"{file} lies in {run.path}, which --overwrite would delete: give another --exp-name",
    )
    check(
        content.get("images") in (None, data.origin),
        f"{file} is of a run on other images than are in {config.data_dir}: "
        "--model-path starts a new run from its weights",
    )
    load_strictly(model, content["state_dict"], file)
    return Start(file, content["global_step"])


def _newest_whole(candidates: list[Path]) -> Start:
    problems = []
    for path in candidates:
        try:
            content = read_resumable(path, STATEFUL)
        except UserError as error:
            problems.append(str(error))
            continue
        if problems:
            print(f"warning: {problems[0]}; going back to the checkpoint before it", file=sys.stderr)
        return Start(path, content["global_step"])
    raise UserError(f"{'; '.join(problems)}; --overwrite starts anew")


def description(
    config: Pretrain, run: RunDirectory, data: ViewsDataModule, model: SimSiam, device: str, start: Start | None
) -> str:
    """What is about to be trained, for people."""
    millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.named_children()}
    steps = len(data.train) // config.batch_size
    pieces = f" ({config.accumulate} parts)" if config.accumulate > 1 else ""
    return (
        f"SimSiam on {config.dataset}: {len(data.train):,} train and {len(data.test):,} test images, "
        f"{len(data.train.classes)} classes\n"
        f"{about_images(config, data)}"
        f"  network   {config.backbone}, width {config.width}, {model.hparams['stem']} stem: "
        f"backbone {millions['backbone']:.2f} M, "
        f"projector {millions['projector']:.2f} M, predictor {millions.get('predictor', 0):.2f} M parameters\n"
        f"  training  {config.epochs} epochs of {steps} steps of {config.batch_size} images{pieces} x "
        f"{config.views} views = {config.epochs * steps:,} steps;\n"
        f"            learning rate {config.peak_rate:g} after {config.warmup:g} epochs of warm-up\n"
        f"  device    {device}\n"
        f"  run       {run.path}" + (f", resumed from {start.path}" if start else "") + "\n"
        f"  watch     tensorboard --logdir {shlex.quote(str(run.path))}"
    )


def about_images(config: Pretrain, data: ViewsDataModule) -> str:
    """What a person would not expect of the images: lines for `description`."""
    margin = f" from {data.train.side} x {data.train.side}" if data.size < data.train.side else ""
    lines = [f"views of {data.size} x {data.size} pixels{margin}"] if margin or data.size != 32 else []
    why = no_knn(data.train, data.test)
    if why and config.knn_every:
        lines.append(f"{why}: kNN is off")
    return "".join(f"  images    {line}\n" for line in lines)


def what_first(config: Pretrain, data: ViewsDataModule) -> str:
    """What a run would do before it trains."""
    if config.dataset != "folder":
        return f"{config.dataset} is not in {config.data_dir}: it would be downloaded first"
    n, side = len(data.train) + len(data.test), data.train.side
    return f"{n:,} images would be decoded, {n * 3 * side**2 / 2**30:.2f} GiB, unless they are already"


def provenance(config: Pretrain, data: ViewsDataModule) -> dict[str, Any]:
    """What every checkpoint and exported file says of where it is from."""
    return {
        "classes": list(data.train.classes),
        "settings": settings(config),
        "versions": versions(),
        "commit": git_commit(),
        **({"images": data.origin} if data.origin else {}),  # a person's own
    }


def train(
    config: Pretrain,
    run: RunDirectory,
    data: ViewsDataModule,
    model: SimSiam,
    accelerator: str,
    precision: Any,
    start: Start | None,
) -> None:
    """Run the Trainer and write what a finished run consists of."""
    step = start.step if start else 0  # TensorBoard forgets what it has from there on
    logger = ResilientTensorBoardLogger(
        run.path, name="", version=run.tensorboard.name, default_hp_metric=False, purge_step=step
    )
    if start is None and distributed.rank() == 0:
        logger.log_settings({name: value for name, value in settings(config).items() if name not in IMMATERIAL})
    knn_every = 0 if no_knn(data.train, data.test) else config.knn_every
    knn = KNNMonitor(config.knn_k, config.knn_t, knn_every, report=print_line)
    recorder = MetricsRecorder(run, knn)
    every = max(1, config.epochs // 10) if config.pictures_every is None else config.pictures_every
    pictures = Pictures(run, knn, every, logger.log_picture)
    collapse = CollapseMonitor(config.stop_on_collapse, report=print_line)
    about = provenance(config, data)
    io = BackgroundCheckpointIO(AtomicCheckpointIO(keep=run.last), about=dict(about))
    signals = SignalCallback()
    keeper = CheckpointCallback(run, recorder, config.checkpoint_every, io, signals)
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=distributed.local_world_size(),
        num_nodes=distributed.world_size() // distributed.local_world_size(),
        strategy="ddp" if distributed.world_size() > 1 else config.strategy,
        accumulate_grad_batches=config.accumulate,
        use_distributed_sampler=False,  # the order of an epoch is ours to share out
        precision=precision,
        max_epochs=config.epochs,
        logger=logger,
        callbacks=[signals, knn, recorder, ProgressCallback(recorder.words), pictures, collapse, keeper],
        plugins=[io],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1_000_000,  # epoch means are logged at each epoch's end; nothing is logged at a step
        num_sanity_val_steps=0,
        default_root_dir=run.checkpoints,  # where SLURM's plugin keeps its own, which `RunDirectory.resumable` knows
    )
    if config.compile and accelerator == "gpu":
        model.compile_networks()
    try:
        trainer.fit(model, datamodule=data, ckpt_path=start.path if start else None)
        if distributed.rank() == 0:
            keeper.check_saved()
            finish(run, data, model, logger, recorder, keeper, knn, about)
    except OSError as error:  # what could be written is written; the rest is done again
        kept = run.resumable()
        goes_on = f"the same command goes on from {kept[0]}" if kept else "nothing of the run is kept"
        file = os.fsdecode(error.filename or run.path)
        raise UserError(f"{file}: {error.strerror or error}: mend that; {goes_on}") from None
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise
        if distributed.is_lost_peer(error):
            raise SystemExit(1) from None
        if start is None or keeper.begun or isinstance(error, UserError | RunFailure):
            raise
        if run.path.resolve() not in start.path.resolve().parents:  # a new run, with nothing in it
            run.delete()
            with suppress(OSError):  # where a person keeps something else in it
                run.path.rmdir()
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(f"{start.path}: not a checkpoint that a run goes on from ({why})") from None
