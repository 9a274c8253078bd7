"""What is compiled computes the same for any number of shapes, and on a machine without compiler.

`torch.compile` counts traces before any backend gets them, so most tests use the eager backend.
"""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed

from simsiam.augment import Policy
from simsiam.compilation import CompiledPerShape
from simsiam.data.view_maker import ViewMaker

MEAN = torch.full((3,), 0.5)
STD = torch.full((3,), 0.25)
MORE_THAN_TORCH_ALLOWS = torch._dynamo.config.recompile_limit + 2


@pytest.fixture(autouse=True)
def forget_what_is_compiled() -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture
def eager_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def make_views(maker: ViewMaker, size: int, epoch: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return maker.crop_and_finish(images, torch.arange(4), epoch, size, MEAN, STD)


def make_maker(compile: bool) -> ViewMaker:
    return ViewMaker(2, seed=0, policy=Policy(), compile=compile)


def cut_corner(images: Tensor, indices: Tensor, *, size: int, **_: object) -> Tensor:
    """Take the place of `augment`, which takes a second to trace."""
    return images[:, :, :size, :size].float()


@pytest.mark.usefixtures("eager_backend")
def test_any_number_of_sizes_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simsiam.data.view_maker.augment", cut_corner)
    maker = make_maker(compile=True)
    for size in range(8, 8 + MORE_THAN_TORCH_ALLOWS):
        assert [view.shape[-1] for view in make_views(maker, size)] == [size, size]


@pytest.mark.usefixtures("eager_backend")
def test_any_number_of_objects_is_compiled() -> None:
    class Scale:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def apply(self, x: Tensor, *, shift: float = 1.0) -> Tensor:
            return self.factor * x + shift

    for factor in range(MORE_THAN_TORCH_ALLOWS):
        scale = Scale(float(factor))
        compiled = CompiledPerShape(scale.apply, fullgraph=True, dynamic=False)
        assert compiled(torch.ones(2)).tolist() == [factor + 1, factor + 1]


@pytest.mark.usefixtures("eager_backend")
def test_only_chosen_sizes_are_compiled_and_once_for_all_epochs() -> None:
    maker = make_maker(compile=False)
    maker.compile_sizes([16], pytest.fail)
    graphs = torch._dynamo.utils.counters["stats"]  # pyright: ignore[reportAttributeAccessIssue]
    for epoch in (0, 1):
        make_views(maker, 16, epoch)
        make_views(maker, 24, epoch)
    assert graphs["unique_graphs"] == 1


def test_a_cpu_without_a_compiler_makes_the_same_views(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise BackendCompilerFailed(fail, RuntimeError("No working compiler\nin 2 places"), None)

    calls: list[int] = []

    def compile_nothing(*_: object, **__: object) -> object:
        calls.append(1)
        return lambda *_, **__: fail()

    monkeypatch.setattr(torch, "compile", compile_nothing)
    lines: list[str] = []
    maker = make_maker(compile=False)
    maker.compile_sizes([16, 24], lines.append)
    for size in (16, 24):
        assert torch.equal(make_views(maker, size)[1], make_views(make_maker(False), size)[1])
    reason = "the augmentation is not compiled, which is slower: No working compiler"
    assert lines == [reason]
    assert calls == [1]
