"""Networks. They know nothing of the method that trains them.

A network is imported when it is first used, so that `models.choices` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.resnet import resnet10, resnet18, resnet34, resnet50

__all__ = ["resnet10", "resnet18", "resnet34", "resnet50"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("models.resnet"), name)
    raise AttributeError(f"module 'models' has no attribute {name!r}")
