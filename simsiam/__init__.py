"""SimSiam: the method, its data path and its monitors. Names are imported when they are first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simsiam.callbacks.collapse import CollapseMonitor
    from simsiam.callbacks.knn import KNNMonitor
    from simsiam.evaluation.checkpoint import load_backbone
    from simsiam.module import SimSiam

__all__ = ["CollapseMonitor", "KNNMonitor", "SimSiam", "load_backbone"]

_HOME = {
    "CollapseMonitor": "simsiam.callbacks.collapse",
    "KNNMonitor": "simsiam.callbacks.knn",
    "SimSiam": "simsiam.module",
    "load_backbone": "simsiam.evaluation.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import late, so that `--help` does not wait for torch."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'simsiam' has no attribute {name!r}")
