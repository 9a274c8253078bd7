"""Compile a function once for each shape of its arguments, however many shapes there are."""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")


class CompiledPerShape(Generic[Result]):
    """A function that `torch.compile` compiles for each shape of its arguments.

    torch counts how often it compiles the code of a function. All sizes of images count, and so do
    all objects with the same method. After 8 times, torch raises an error for `fullgraph=True`, and
    otherwise computes without compiling. Here each shape gets a copy of the code, with a count of
    its own.

    It can be pickled, as for processes that Lightning spawns. They compile again.

    Args:
        function: A function or a method, written in Python.
        options: Arguments of `torch.compile`.
    """

    def __init__(self, function: Callable[..., Result], **options: Any) -> None:
        self.function = function
        self.options = options
        self._compiled: dict[tuple[torch.Size | int, ...], Callable[..., Result]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        # What is compiled holds for these shapes and these whole numbers, such as a size.
        parts: list[torch.Size | int] = []
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                parts.append(leaf.shape)
            elif isinstance(leaf, int):
                parts.append(leaf)
        key = tuple(parts)
        if key not in self._compiled:
            self._compiled[key] = torch.compile(_copy_code(self.function), **self.options)
        return self._compiled[key](*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self.function, "options": self.options, "_compiled": {}}


def _copy_code(function: Any) -> Any:
    """Return a function or method that computes the same, with a code object of its own."""
    if isinstance(function, MethodType):
        return MethodType(_copy_code(function.__func__), function.__self__)
    copy = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
