"""Choose where a pre-training starts: at step 0, or from a checkpoint.

The checkpoint is the run's own, or the one that the user names with --ckpt-dir.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from simsiam.callbacks.checkpoint import CheckpointCallback
from simsiam.callbacks.metrics import MetricsRecorder
from simsiam.config.commands import Pretrain, describe_differences, settings_to_keep
from simsiam.config.optimizer_options import OptimizerOptions
from simsiam.config.run_options import DeviceOptions, MonitorOptions
from simsiam.config.run_state import SQUARE_IMAGES, check_folder, has_square_images
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.knn_labels import choose_comparison
from simsiam.evaluation.checkpoint import find_checkpoint
from simsiam.evaluation.networks import load_strictly
from simsiam.evaluation.starting_weights import StartingWeights, load_weights
from simsiam.module import SimSiam
from utils import distributed
from utils.checkpoint_io import read_resumable
from utils.console import format_count
from utils.device import AUTO_PRECISIONS
from utils.errors import RunError, UserError, is_out_of_memory, require
from utils.run_dir import RunDirectory

# A resumable checkpoint must hold the states of these callbacks. Lightning stores them under the
# names of the classes.
REQUIRED_STATES = (MetricsRecorder.__name__, CheckpointCallback.__name__)
MAX_ERROR_LENGTH = 300  # characters of a library's error that a message quotes
MODEL_PATH_HINT = "Pass it as --model-path instead to start a new run from its weights."


class Start(NamedTuple):
    """A checkpoint to resume from."""

    path: Path
    step: int  # optimizer steps done
    precision: Any = None  # Lightning's name; None if an earlier version has not saved it


def count_processes(device: DeviceOptions, dry_run: bool) -> int:
    """Return how many processes share a batch; in a dry run, how many would."""
    if dry_run:
        return (device.devices or 1) * (device.num_nodes or 1)
    return distributed.world_size()


def validate_run(config: Pretrain, run: RunDirectory) -> str:
    """Check the batch size, if it is given, and the run's folder.

    Returns:
        The state of the folder, from `check_folder`.

    Raises:
        UserError: the batch does not split among the processes, or the folder cannot hold the run.
    """
    if config.optimizer.batch_size is not None:
        check_batch_size(config.optimizer, count_processes(config.device, config.run.dry_run))
    return check_folder(config, run)


def check_batch_size(optimizer: OptimizerOptions, processes: int) -> None:
    """Raise UserError unless processes and accumulation can share a batch equally."""
    batch_size = optimizer.images_per_step
    parts = processes * optimizer.accumulate
    nearest = max(2 * parts, batch_size // parts * parts)
    require(
        batch_size % parts == 0 and batch_size >= 2 * parts,
        f"--batch-size {batch_size} must split into {parts} equal parts of at least 2 images, "
        f"for {format_count(processes, 'device')} and --accumulate {optimizer.accumulate}. "
        f"Try {nearest} or {nearest + parts}.",
    )


def find_start(
    config: Pretrain, run: RunDirectory, data: ViewsDataModule, model: SimSiam, state: str
) -> Start | StartingWeights | None:
    """Return what training starts from; None for step 0 and the random weights of the run's seed.

    An unfinished run resumes from its own newest readable checkpoint. Otherwise `--ckpt-dir` names
    the checkpoint, or `model` takes the weights of `--model-path`.

    Args:
        state: of the run's folder, as `validate_run` returns it.

    Returns:
        The checkpoint to resume from, or the weights that `model` has got for step 0.

    Raises:
        UserError: no checkpoint is readable, or it belongs to another run.
    """
    check_knn_k(config.monitor, data)
    ckpt_dir = config.run.ckpt_dir
    if state == "unfinished" and run.resumable():
        return _find_own_checkpoint(run, data, ckpt_dir)
    if config.run.model_path:
        return load_weights(model, config.run.model_path)
    if not ckpt_dir:
        return None
    path = find_checkpoint(ckpt_dir, prefer_full=True)
    content = read_resumable(path, REQUIRED_STATES)
    _check_same_run(path, content, config, data)
    # The run's folder has checkpoints here only if --overwrite is about to delete them.
    require(
        not run.would_delete(path),
        f"{path} is in {run.path}, which --overwrite would delete. Pass another --exp-name.",
    )
    # Weights that do not fit must fail before anything is written. The Trainer loads them again.
    load_strictly(model, content["state_dict"], path)
    return Start(path, content["global_step"], content.get("precision"))


def check_knn_k(monitor: MonitorOptions, data: ViewsDataModule) -> None:
    """Raise UserError if the kNN monitor needs more neighbours than there are train images."""
    comparison = choose_comparison(data.train, data.test)
    if monitor.knn_every == 0 or comparison is None:
        return  # no kNN accuracy is measured
    if comparison.leave_one_out:
        return  # All other images vote if there are fewer than --knn-k.
    images = len(data.train)
    require(
        monitor.neighbours <= images,
        f"--knn-k {monitor.knn_k} is more than the {images} train images. "
        "Pass a smaller one, or --knn-every 0 to measure no kNN accuracy.",
    )


def has_measured_knn(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether kNN accuracy was measured in an epoch, of which each has a row of metrics."""
    return any("kNN_accuracy" in row for row in rows)


def _find_own_checkpoint(run: RunDirectory, data: ViewsDataModule, ckpt_dir: str | None) -> Start:
    """Return the newest readable checkpoint in the folder of an unfinished run."""
    # The --ckpt-dir that the run itself started from may stay: the same command resumes it.
    require(
        ckpt_dir is None or ckpt_dir == run.settings().get("ckpt_dir"),
        f"{run.path} holds an unfinished run, which would be resumed instead of "
        f"--ckpt-dir {ckpt_dir}. Leave out this flag, or pass another --exp-name.",
    )
    resolved = run.settings("resolved")
    digest = resolved.get("images")
    require(
        digest is None or digest == data.dataset_digest,
        f"{run.path} holds an unfinished run on other images than are in "
        f"{data.options.data_dir} now. Pass another --exp-name, or --overwrite to start again.",
    )
    problems: list[str] = []
    for path in run.resumable():
        try:
            content = read_resumable(path, REQUIRED_STATES)
        except UserError as error:
            problems.append(str(error))
            continue
        if problems:
            warning = f"warning: {problems[0]}; going back to the checkpoint before it"
            print(warning, file=sys.stderr)
        precision = content.get("precision", resolved.get("precision"))
        return Start(path, content["global_step"], precision)
    raise UserError(f"{'; '.join(problems)}. Pass --overwrite to start again from step 0.")


def _check_same_run(
    path: Path, content: dict[str, Any], config: Pretrain, data: ViewsDataModule
) -> None:
    """Raise UserError unless this run can continue from a checkpoint in another folder.

    It can if settings and images are the same, and the checkpoint has epochs left to train.
    """
    # Where the checkpoint's own run got its initial weights does not matter any more.
    settings = content["settings"] | {"model_path": None}
    if not has_measured_knn(content["callbacks"][MetricsRecorder.__name__]["rows"]):
        settings["knn_k"] = config.monitor.knn_k  # its own k was never used
    require(
        not has_square_images(settings),
        f"{path} is of a run of an earlier version, {SQUARE_IMAGES} {MODEL_PATH_HINT}",
    )
    differences = describe_differences(settings, settings_to_keep(config))
    require(
        not differences,
        f"{path} is from a run with other settings ({'; '.join(differences)}). {MODEL_PATH_HINT}",
    )
    epochs_done = content["row"].get("epoch", 0)
    require(
        epochs_done < config.optimizer.epochs,
        f"{path} is from a finished run, of which nothing is left to train. {MODEL_PATH_HINT}",
    )
    mode = data.train.image_cache
    earlier_mode = content.get("image_cache", mode)
    require(
        earlier_mode == mode,
        f"{path} is from a run with --image-cache {earlier_mode}, but here it is {mode}. "
        f"Pass --image-cache {earlier_mode}.",
    )
    digest = content.get("images")
    require(
        digest is None or digest == data.dataset_digest,
        f"{path} is from a run on other images than are in {config.data.data_dir}. "
        f"{MODEL_PATH_HINT}",
    )


def choose_resumed_precision(start: Start, accelerator: str, precision: Any) -> Any:
    """Return the precision in which a run with `--precision auto` resumes.

    This is the precision of the checkpoint, if "auto" could have chosen it. A checkpoint that does
    not save its precision resumes in fp32 on a CPU. Otherwise this machine's "auto" decides.

    Args:
        precision: what "auto" means on this machine, which may differ from the run's first one.
    """
    if not start.precision and accelerator == "cpu":
        # The version that wrote this checkpoint always took "auto" for fp32 on a CPU.
        return "32-true"
    if start.precision in AUTO_PRECISIONS:
        return start.precision
    return precision


@contextmanager
def explain_failures(
    run: RunDirectory, start: Start | None, checkpoints: CheckpointCallback
) -> Iterator[None]:
    """Explain the errors that a Trainer raises on a full disk or for an unusable checkpoint.

    Args:
        checkpoints: knows whether training has begun, which means that all state was restored.

    Raises:
        UserError: in place of such an error.
        SystemExit: in place of an error that only says that another process has ended.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of the output has ended, which is no fault of a disk; see main.py
    except OSError as error:
        file = error.filename or run.path
        reason = error.strerror or str(error)
        resumable = run.resumable()
        if resumable:
            command = checkpoints.signals.resume_command
            prospect = f"{command} then resumes from {resumable[0]}."
        else:
            prospect = "the same command then starts at step 0: no checkpoint was saved yet."
        raise UserError(f"{file}: {reason}. Fix this first; {prospect}") from None
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if distributed.is_lost_peer(error):
            raise SystemExit(1) from None  # the lost process has printed the reason
        is_explained = isinstance(error, UserError | RunError) or is_out_of_memory(error)
        if start is None or checkpoints.begun or is_explained:
            raise
        # The Trainer could not restore the checkpoint, whose content is not what Lightning expects.
        is_own_checkpoint = run.would_delete(start.path)
        if not is_own_checkpoint:
            # The run is new: its own files have no value yet.
            run.delete()
            # If the folder has other files too, `rmdir` fails and they stay.
            with suppress(OSError):
                run.path.rmdir()
        message = " ".join(str(error).split())[:MAX_ERROR_LENGTH]
        raise UserError(
            f"cannot resume from {start.path}: {type(error).__name__}: {message}. {MODEL_PATH_HINT}"
        ) from None
