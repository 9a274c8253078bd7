"""SimSiam: the method, its data path and its monitors. Names are imported when they are first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simsiam.callbacks.collapse import CollapseMonitor
    from simsiam.callbacks.knn import KNNMonitor
    from simsiam.data.datamodule import ViewsDataModule
    from simsiam.evaluation.checkpoint import load_backbone
    from simsiam.module import SimSiam

__all__ = ["CollapseMonitor", "KNNMonitor", "SimSiam", "ViewsDataModule", "load_backbone"]
MODULES = ("callbacks.collapse", "callbacks.knn", "module", "data.datamodule", "evaluation.checkpoint")


def __getattr__(name: str) -> Any:
    """Import late, so that `--help` does not wait for torch."""
    if name in __all__:
        return getattr(importlib.import_module(f"simsiam.{MODULES[__all__.index(name)]}"), name)
    raise AttributeError(f"module 'simsiam' has no attribute {name!r}")
