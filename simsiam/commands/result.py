"""The result of a finished run: for summary.json, and in text for the user."""

from datetime import timedelta
from typing import Any

from simsiam.callbacks.checkpoint import CheckpointCallback
from simsiam.callbacks.knn import KNNMonitor
from simsiam.commands.describe import INDENT
from simsiam.config.commands import shell_command
from utils.console import format_count
from utils.run_dir import RunDirectory


def summarise(
    rows: list[dict[str, Any]], checkpoints: CheckpointCallback, knn: KNNMonitor
) -> dict[str, Any]:
    """Return the content of summary.json, from the row of each epoch."""
    last_row = rows[-1]
    seconds = sum(row["seconds"] for row in rows)
    images_per_second = sum(row["images_per_second"] for row in rows) / len(rows)
    initial_name = "kNN_start" if knn.pretrained else "kNN_untrained"
    return {
        "epochs": last_row["epoch"],
        "step": last_row["step"],
        "kNN_accuracy": last_row.get("kNN_accuracy"),
        "kNN_best": checkpoints.best,
        "kNN_best_epoch": checkpoints.best_epoch,
        initial_name: knn.initial,
        "train_loss": last_row["train_loss"],
        "z_std": last_row["z_std"],
        "seconds": round(seconds, 1),
        "images_per_second": round(images_per_second, 1),
    }


def describe_result(summary: dict[str, Any], run: RunDirectory, next_command: str) -> str:
    """Return the lines that end a finished run.

    Args:
        summary: the content of summary.json.
        next_command: the command to evaluate the run with, for example "linear".
    """
    duration = timedelta(seconds=round(summary["seconds"]))
    lines = [f"finished {format_count(summary['epochs'], 'epoch')} in {duration}"]
    if summary["kNN_accuracy"] is not None:
        knn = f"{summary['kNN_accuracy']:.2f} % in the last epoch"
        # The best epoch is not known if best.ckpt was removed and no epoch has come since.
        if summary["kNN_best"] is not None:
            knn += f", {summary['kNN_best']:.2f} % in the best (epoch {summary['kNN_best_epoch']})"
        if summary.get("kNN_untrained") is not None:
            knn += f", {summary['kNN_untrained']:.2f} % untrained"
        if summary.get("kNN_start") is not None:
            knn += f", {summary['kNN_start']:.2f} % at the start"
        lines.append(f"  kNN       {knn}")
    lines += [
        f"  loss      {summary['train_loss']:.4f}   z_std {summary['z_std']:.3f}",
        f"  speed     {summary['images_per_second']:,.0f} images/s",
        f"  backbone  {run.backbone}",
        f"  next      {shell_command(next_command, run.path)}",
        INDENT + shell_command("report", run.path),
    ]
    return "\n".join(lines)
