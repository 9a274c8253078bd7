"""SimSiam: the method, its data path and its monitors. A name is imported when it is first used."""

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

# Public name -> the module that defines it.
MODULES = {
    "CollapseMonitor": "simsiam.callbacks.collapse",
    "KNNMonitor": "simsiam.callbacks.knn",
    "SimSiam": "simsiam.module",
    "ViewsDataModule": "simsiam.data.datamodule",
    "load_backbone": "simsiam.evaluation.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `--help` does not wait for torch."""
    if name not in MODULES:
        raise AttributeError(f"module 'simsiam' has no attribute {name!r}")
    check_packages()
    return getattr(importlib.import_module(MODULES[name]), name)


def check_packages() -> None:
    """Raise ImportError if another module hides `models` or `utils`, which lie next to it."""
    root = Path(__file__).resolve().parent.parent
    for package in ("models", "utils"):
        spec = importlib.util.find_spec(package)
        location = "no such package"
        if spec is not None and spec.origin is not None:
            location = str(Path(spec.origin).resolve())
        if location != str(root / package / "__init__.py"):
            raise ImportError(
                f"simsiam needs its own package {package!r}, but Python finds {location}. "
                f"Put {root} first in sys.path."
            )
