"""SimSiam: the method, its data path and its monitors. Names are imported when they are first used."""

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simsiam.callbacks.collapse import CollapseMonitor
    from simsiam.callbacks.knn import KNNMonitor
    from simsiam.data.datamodule import ViewsDataModule
    from simsiam.evaluation.checkpoint import load_backbone
    from simsiam.module import SimSiam

__all__ = ["CollapseMonitor", "KNNMonitor", "SimSiam", "ViewsDataModule", "load_backbone"]
MODULES = (
    "callbacks.collapse",
    "callbacks.knn",
    "module",
    "data.datamodule",
    "evaluation.checkpoint",
)


def check_packages() -> None:
    """Raise ImportError if a module of somebody else's hides one of the packages beside this one."""
    root = Path(__file__).resolve().parent.parent
    for package in ("models", "utils"):
        found = importlib.util.find_spec(package)
        where = Path(found.origin).resolve() if found and found.origin else "nothing"
        if where != root / package / "__init__.py":
            raise ImportError(
                f"simsiam needs its own package {package!r}, but Python finds {where}: put {root} before it"
            )


def __getattr__(name: str) -> Any:
    """Import late, so that `--help` does not wait for torch."""
    if name in __all__:
        check_packages()
        return getattr(importlib.import_module(f"simsiam.{MODULES[__all__.index(name)]}"), name)
    raise AttributeError(f"module 'simsiam' has no attribute {name!r}")
