"""What a finished run consists of, and what a person reads in the end."""

import shlex
from datetime import timedelta
from typing import Any

from simsiam.callbacks.checkpoint import CheckpointCallback
from simsiam.callbacks.images import log_final_pictures
from simsiam.callbacks.knn import KNNMonitor
from simsiam.callbacks.metrics import MetricsRecorder
from simsiam.callbacks.tensorboard import ResilientTensorBoardLogger
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import why_no_knn
from simsiam.evaluation.checkpoint import backbone_facts, load_backbone
from simsiam.module import SimSiam
from utils.export import BACKBONE, write_weights
from utils.filesystem import write_json
from utils.run_dir import RunDirectory


def finish(
    run: RunDirectory,
    data: ViewsDataModule,
    model: SimSiam,
    logger: ResilientTensorBoardLogger,
    recorder: MetricsRecorder,
    keeper: CheckpointCallback,
    knn: KNNMonitor,
    about: dict[str, Any],
) -> None:
    """Write the backbone, the last pictures and the summary, which is what makes a run finished; say where they are."""
    rows = recorder.rows
    run.write_rows(rows)  # once more: nothing was left to train, perhaps, and the file is not what it was
    last = rows[-1]
    facts = backbone_facts(model.hparams) | about | {"row": last}
    write_weights(run.backbone, BACKBONE, model.backbone.state_dict(), facts)
    backbone = load_backbone(run.backbone).to(data.mean.device)  # a file that does not load is found now
    log_final_pictures(logger.experiment, data, backbone, last["step"])
    summary = {
        "epochs": last["epoch"],
        "step": last["step"],
        "kNN_accuracy": last.get("kNN_accuracy"),
        "kNN_best": keeper.best,
        "kNN_best_epoch": keeper.best_epoch,
        "kNN_untrained": knn.untrained,
        "train_loss": last["train_loss"],
        "z_std": last["z_std"],
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "images_per_second": round(sum(row["images_per_second"] for row in rows) / len(rows), 1),
    }
    write_json(run.summary, summary)
    print(_closing_words(run, summary, labelled=why_no_knn(data.train, data.test) is None))


def _closing_words(run: RunDirectory, summary: dict[str, Any], labelled: bool) -> str:
    path = shlex.quote(str(run.path))
    lines = [f"finished {summary['epochs']} epochs in {timedelta(seconds=round(summary['seconds']))}"]
    if summary["kNN_accuracy"] is not None:
        untrained = summary["kNN_untrained"]
        lines.append(
            f"  kNN       {summary['kNN_accuracy']:.2f} % in the last epoch"
            + f", {summary['kNN_best']:.2f} % in the best (epoch {summary['kNN_best_epoch']})"
            + (f", {untrained:.2f} % untrained" if untrained is not None else "")
        )
    lines += [
        f"  loss      {summary['train_loss']:.4f}   z_std {summary['z_std']:.3f}",
        f"  speed     {summary['images_per_second']:,.0f} images/s",
        f"  backbone  {run.backbone}",
        f"  watch     tensorboard --logdir {path}",
        f"  next      python main.py {'linear' if labelled else 'neighbours'} --checkpoint {path}",
        f"            python main.py report {path}",
    ]
    return "\n".join(lines)
