"""Say how far a run has come and whether it has failed, in a few words."""

from simsiam.collapse import has_lost_rank, is_collapsed, lost_rank_threshold
from simsiam.report.records import Run
from utils.filesystem import is_locked


def describe_status(run: Run) -> str:
    """Return how far the run has come, such as "stopped, 2 of 3 epochs, collapsed"."""
    if run.folder.summary.exists():
        state = "finished"
    elif is_locked(run.folder.path):
        state = "running"
    else:
        state = "stopped"
    epoch = run.rows[-1]["epoch"]
    text = f"{state}, {epoch:.0f} of {run.settings.get('epochs', '?')} epochs"
    failure = describe_failure(run)
    if failure:
        text += f", {failure}"
    return text


def describe_failure(run: Run) -> str:
    """Return why the latest features are of little use; empty if nothing is known against them."""
    last_row = run.rows[-1]
    if "z_std" in last_row and is_collapsed(last_row["z_std"], last_row.get("rankme")):
        return "collapsed"
    ranks = run.values("rankme")
    if has_lost_rank(ranks, lost_rank_threshold(run.num_features, run.num_images)):
        return f"effective rank only {ranks[-1]:.1f} of {run.num_features}"
    return ""
