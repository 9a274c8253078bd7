"""Flags of the augmentation: off they change nothing; on they reach views, pictures and runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from simsiam import ViewsDataModule, load_backbone
from simsiam.augment import Policy, augment, crop_and_flip_policy, draw
from simsiam.config.commands import COMMANDS, Pretrain, find_differences
from simsiam.data import dataset
from simsiam.data.dataset import IMAGENET_STATISTICS
from simsiam.evaluation.gallery import draw_views
from tests.helpers import SMALL, Program
from utils.errors import UserError
from utils.settings import flatten, iterate_options

ALL_ON = Policy(blur=0.5, solarize=0.3, vertical_flip=0.5, rotate=0.6)
FLAGS = "--blur=0.5 --blur-sigma 0.2 1.5 --solarize=0.3 --vertical-flip=0.5 --rotate=0.6"
NEW_FLAGS = ["blur", "blur_sigma", "solarize", "vertical_flip", "rotate", "normalize"]


def make_data(**options: Any) -> ViewsDataModule:
    data = ViewsDataModule("patterns", train_images=40, test_images=10, batch_size=8, **options)
    data.setup()
    return data


# ---------------------------------------------------------------- off


def test_every_other_probability_is_0_for_classifiers() -> None:
    """A probability is an option from 0 to 1. This fails for a new one that stays on."""
    policy = crop_and_flip_policy(0.3)
    assert (policy.crop_scale, policy.flip) == (0.3, Policy.flip)
    fields = Policy.__pydantic_fields__  # pyright: ignore[reportAttributeAccessIssue]
    limits = {name: str(field.metadata) for name, field in fields.items()}
    probabilities = {name for name in limits if limits[name] == "[Ge(ge=0), Le(le=1)]"}
    assert probabilities >= {"flip", "jitter", "grayscale", "blur", "solarize", "rotate"}
    assert {name for name in probabilities if getattr(policy, name) != 0} == {"flip"}


def test_classifiers_get_none_of_the_operations() -> None:
    policy = crop_and_flip_policy(0.2)
    params = draw(torch.arange(200), 32, seed=0, epoch=0, view=0, policy=policy)
    optional = (params.blur_sigma, params.solarize, params.vertical_flip, params.quarter_turns)
    assert optional == (None, None, None, None)
    assert not params.jitter.any() and not params.grayscale.any()


def count_operations(policy: Policy) -> dict[str, int]:
    """Return how often each operation is in the graph that `torch.compile` gets."""
    counts: dict[str, int] = {}

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        for node in graph.graph.nodes:
            name = getattr(node.target, "__name__", str(node.target))
            counts[name] = counts.get(name, 0) + 1
        return graph

    torch.compiler.reset()
    compiled = torch.compile(augment, fullgraph=True, backend=count)
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    statistics = {"mean": torch.zeros(3), "std": torch.ones(3)}
    compiled(images, torch.arange(8), seed=0, epoch=0, view=0, policy=policy, **statistics)
    return counts


def test_only_what_the_policy_can_apply_is_compiled() -> None:
    default = count_operations(Policy())
    crop_products = 2
    assert default["matmul"] == crop_products
    assert not default.keys() & {"pad", "diff", "flip"}
    assert count_operations(Policy(blur_sigma=(1.0, 3.0), normalize="imagenet")) == default
    everything = count_operations(ALL_ON)
    assert everything["matmul"] == crop_products + 4
    assert everything.keys() >= {"pad", "diff", "flip"}


def test_it_is_compiled_once_for_all_epochs_and_views() -> None:
    torch.compiler.reset()
    images = torch.arange(16 * 3 * 32 * 32).view(16, 3, 32, 32).to(torch.uint8)
    compiled = torch.compile(augment, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for epoch, view in ((0, 0), (0, 1), (700, 3)):
            arguments = {
                "seed": 0,
                "epoch": torch.tensor(epoch),
                "view": torch.tensor(view),
                "policy": ALL_ON,
                "mean": torch.zeros(3),
                "std": torch.ones(3),
            }
            expected = augment(images, torch.arange(16), **arguments)
            actual = compiled(images, torch.arange(16), **arguments)
            torch.testing.assert_close(actual, expected)


def test_a_run_from_before_the_flags_has_their_defaults() -> None:
    old = flatten(Pretrain())
    for name in NEW_FLAGS:
        del old[name]
    assert find_differences(old, flatten(Pretrain())) == []
    blurred = Pretrain(augmentation=Policy(blur=0.1))
    assert find_differences(old, flatten(blurred)) == ["blur"]


def test_only_commands_that_train_have_the_flags() -> None:
    for name in COMMANDS:
        flags = {option.field.name for option in iterate_options(COMMANDS[name])}
        assert (flags >= {*NEW_FLAGS}) == (name in ("pretrain", "ablate", "search")), name
        assert flags >= {*NEW_FLAGS} or not flags & {*NEW_FLAGS}, name


# ---------------------------------------------------------------- on


def test_all_views_have_them_at_each_size_of_the_schedule() -> None:
    """The blur is in pixels of the view, so it is drawn alike for all sizes."""
    data = make_data(policy=ALL_ON, views=3, image_schedule=["16:1"])
    plain = make_data(views=3, image_schedule=["16:1"])
    indices = torch.arange(8)
    for epoch, size in enumerate((16, 32)):
        views = data.make_views(indices, epoch)
        for number, (view, plain_view) in enumerate(
            zip(views, plain.make_views(indices, epoch), strict=True)
        ):
            assert view.shape == (8, 3, size, size) and not torch.equal(view, plain_view)
            expected = augment(
                data.train.images_at(indices),
                indices,
                seed=0,
                epoch=epoch,
                view=number,
                policy=ALL_ON,
                mean=data.mean,
                std=data.std,
                size=size,
            )
            torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


def test_pictures_of_views_show_them() -> None:
    pictures: list[Tensor] = []
    for changes in ({}, {"blur": 1.0}, {"solarize": 1.0}, {"vertical_flip": 1.0}, {"rotate": 1.0}):
        pictures.append(draw_views(make_data(policy=replace(Policy(), **changes))))
    for i, picture in enumerate(pictures):
        assert not any(torch.equal(picture, other) for other in pictures[:i])


def test_a_run_shows_them_keeps_them_and_resumes_only_with_them(
    program: Program, tmp_path: Path
) -> None:
    run = [*SMALL, "--exp-name=run", "--epochs=2", "--normalize=imagenet", *FLAGS.split()]
    status, out, err = program(*run)
    assert (status, err) == (0, "")
    assert f"augmented with {FLAGS} --normalize=imagenet\n" in out

    folder = tmp_path / "runs" / "run"
    settings = yaml.safe_load((folder / "config.yaml").read_text())["settings"]
    assert settings["blur_sigma"] == [0.2, 1.5] and settings["normalize"] == "imagenet"
    events = EventAccumulator(str(folder))
    events.Reload()
    hparams = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"blur_sigma" in hparams and b"0.2 1.5" in hparams
    backbone = load_backbone(folder)
    mean, std = IMAGENET_STATISTICS
    assert backbone.mean == pytest.approx(mean) and backbone.std == pytest.approx(std)

    assert program(*run)[0] == 0  # it is finished
    status, _, err = program(*run, "--blur-sigma", "0.2", "1")
    assert status == 2 and "--blur-sigma 0.2 1.5, now 0.2 1.0" in err
    status, _, err = program(*run, "--normalize", "dataset")
    assert status == 2 and "--normalize imagenet, now dataset" in err


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, []),
        ({"blur_sigma": (0.1, 0.9)}, ["not used, because --blur is 0: --blur-sigma 0.1 0.9"]),
        (
            {"jitter": 0, "hue": 0.3, "contrast": 0.1, "flip": 0},
            [
                "augmented with --flip=0.0 --jitter=0.0",
                "not used, because --jitter is 0: --contrast=0.1 --hue=0.3",
            ],
        ),
        ({"blur": 0.2, "hue": 0.3}, ["augmented with --hue=0.3 --blur=0.2"]),
    ],
)
def test_strengths_of_operations_that_never_happen_are_named(
    changes: dict[str, Any], lines: list[str]
) -> None:
    assert Policy(**changes).describe() == lines


def test_a_run_names_flags_that_change_nothing(program: Program) -> None:
    status, out, _ = program(*SMALL, "--blur-sigma", "0.1", "0.9", "--dry-run")
    assert status == 0 and "not used, because --blur is 0: --blur-sigma 0.1 0.9\n" in out
    assert "augmented with" not in out


def test_imagenets_statistics_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = make_data()
    monkeypatch.delattr(dataset, "channel_statistics")
    for data in (make_data(normalize="imagenet"), make_data(policy=Policy(normalize="imagenet"))):
        assert data.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
        assert data.std.tolist() == pytest.approx([0.229, 0.224, 0.225])
        view = data.make_views(torch.arange(4), 0)[1]
        plain_view = measured.make_views(torch.arange(4), 0)[1]
        pixels = plain_view * measured.std[:, None, None] + measured.mean[:, None, None]
        expected = (pixels - data.mean[:, None, None]) / data.std[:, None, None]
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


def test_another_normalisation_is_refused() -> None:
    with pytest.raises(UserError, match=r"normalize must be one of .*'imagenet'.* got 'x'"):
        make_data(normalize="x")
