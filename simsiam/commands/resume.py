"""Where a pre-training starts: in a new folder, from a checkpoint of its own, or from one that the user names."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from simsiam.callbacks.checkpoint import CheckpointCallback
from simsiam.config.commands import Pretrain, describe_differences, settings_to_keep
from simsiam.config.run_state import check_folder
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import knn_unavailable_reason
from simsiam.evaluation.checkpoint import find_checkpoint, load_strictly, load_weights
from simsiam.module import SimSiam
from utils import distributed
from utils.checkpoint_io import read_resumable
from utils.console import plural
from utils.errors import RunError, UserError, is_out_of_memory, require
from utils.run_dir import RunDirectory

STATEFUL = ("Recorder", "Keeper")  # state keys of the callbacks whose state a checkpoint must hold


class Start(NamedTuple):
    """A checkpoint to resume from, the optimizer steps done in it, and Lightning's name for the precision of these."""

    path: Path
    step: int
    precision: Any = None  # not known of an older checkpoint


def count_processes(config: Pretrain) -> int:
    """Processes that share a batch; in a dry run, those that would."""
    asked = (config.device.devices or 1) * (config.device.num_nodes or 1)
    return asked if config.run.dry_run else distributed.world_size()


def validate_run(config: Pretrain, run: RunDirectory) -> str:
    """The state of the run's folder, as `check_folder`; UserError if the batch does not split among the processes."""
    processes, batch, accumulate = (
        count_processes(config),
        config.optimizer.batch_size,
        config.optimizer.accumulate,
    )
    parts = processes * accumulate
    require(
        batch % parts == 0 and batch >= 2 * parts,
        f"--batch-size {batch}: must split into {parts} equal parts of at least 2, for "
        f"{plural(processes, 'device')} and --accumulate {accumulate}",
    )
    return check_folder(config, run)


def find_start(
    config: Pretrain, run: RunDirectory, data: ViewsDataModule, model: SimSiam, state: str
) -> Start | None:
    """The run's own newest whole checkpoint, or that of `--ckpt-dir`; a new run's `model` gets `--model-path` here."""
    images, knn_k = len(data.train), config.monitor.knn_k
    require(
        config.monitor.knn_every == 0
        or knn_unavailable_reason(data.train, data.test) is not None
        or knn_k <= images,
        f"--knn-k {knn_k} is more than the {images} train images: give fewer, or --knn-every 0",
    )
    if state == "unfinished" and not config.run.overwrite and run.resumable():
        return _find_own(config, run, data)
    if config.run.model_path:
        load_weights(model, config.run.model_path)
    return _find_given(config, run, data, model) if config.run.ckpt_dir else None


def _find_own(config: Pretrain, run: RunDirectory, data: ViewsDataModule) -> Start:
    given, images = config.run.ckpt_dir, run.settings("resolved").get("images")
    why = f"would be resumed instead of --ckpt-dir {given}: leave the flag out, or give another --exp-name"
    require(
        given in (None, run.settings().get("ckpt_dir")),
        f"{run.path} holds an unfinished run, which {why}",
    )
    why = f"on other images than are in {config.data.data_dir} now: give another --exp-name, or --overwrite"
    require(
        images in (None, data.dataset_digest),
        f"{run.path} holds an unfinished run {why} to start anew",
    )
    problems = []
    for path in run.resumable():
        try:
            content = read_resumable(path, STATEFUL)
        except UserError as error:
            problems.append(str(error))
            continue
        if problems:
            print(
                f"warning: {problems[0]}; going back to the checkpoint before it", file=sys.stderr
            )
        return Start(
            path,
            content["global_step"],
            content.get("precision", run.settings("resolved").get("precision")),
        )
    raise UserError(f"{'; '.join(problems)}; --overwrite starts anew")


def _find_given(
    config: Pretrain, run: RunDirectory, data: ViewsDataModule, model: SimSiam
) -> Start:
    file = find_checkpoint(str(config.run.ckpt_dir), whole=True)
    content = read_resumable(file, STATEFUL)
    anew = "--model-path starts a new run from its weights"
    changed = describe_differences(
        content["settings"] | {"model_path": None}, settings_to_keep(config)
    )
    require(not changed, f"{file} is of a run with other settings ({'; '.join(changed)}): {anew}")
    finished = content["row"].get("epoch", 0) >= config.optimizer.epochs
    require(not finished, f"{file} is of a finished run: nothing is left to train; {anew}")
    inside = run.path.resolve() in file.resolve().parents
    require(
        not inside,
        f"{file} lies in {run.path}, which --overwrite would delete: give another --exp-name",
    )
    same = content.get("images") in (None, data.dataset_digest)
    require(same, f"{file} is of a run on other images than are in {config.data.data_dir}: {anew}")
    load_strictly(model, content["state_dict"], file)
    return Start(file, content["global_step"], content.get("precision"))


@contextmanager
def explain_failures(
    run: RunDirectory, start: Start | None, checkpoints: CheckpointCallback
) -> Iterator[None]:
    """Turn what a full disk or a strange checkpoint makes a Trainer raise into one line that says what to do."""
    try:
        yield
    except OSError as error:  # what could be written is written; the rest is done again
        goes_on = (
            f"the same command goes on from {kept[0]}"
            if (kept := run.resumable())
            else "nothing of it is kept"
        )
        raise UserError(
            f"{error.filename or run.path}: {error.strerror or error}: mend that; {goes_on}"
        ) from None
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if distributed.is_lost_peer(error):
            raise SystemExit(1) from None
        if (
            start is None
            or checkpoints.begun
            or is_out_of_memory(error)
            or isinstance(error, UserError | RunError)
        ):
            raise
        if run.path.resolve() not in start.path.resolve().parents:  # a new run, with nothing in it
            run.delete()
            with suppress(OSError):  # a person keeps something else in it
                run.path.rmdir()
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(f"{start.path}: not a checkpoint that a run goes on from ({why})") from None
