"""Compile a function once for each shape of its arguments, however many shapes there are."""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")


def compile_per_shape(function: Callable[..., Result], **options: Any) -> Callable[..., Result]:
    """Return `function`, which `torch.compile` compiles for each shape of its arguments.

    torch counts how often it compiles the code of a function. All sizes of images count, and so do
    all objects with the same method. After 8 times, torch raises an error for `fullgraph=True`, and
    otherwise computes without compiling. Here each shape gets a copy of the code, with a count of
    its own.

    Args:
        function: A function or a method, written in Python.
        options: Arguments of `torch.compile`.
    """
    compiled: dict[tuple[torch.Size | int, ...], Callable[..., Result]] = {}

    def call(*args: Any, **kwargs: Any) -> Result:
        # What is compiled holds for these shapes and these whole numbers, such as a size.
        key: list[torch.Size | int] = []
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                key.append(leaf.shape)
            elif isinstance(leaf, int):
                key.append(leaf)
        if tuple(key) not in compiled:
            compiled[tuple(key)] = torch.compile(_copy_code(function), **options)
        return compiled[tuple(key)](*args, **kwargs)

    return call


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
