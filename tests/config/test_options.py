"""Options: every option has a help, and choices and defaults agree with those of the parts."""

import inspect
import subprocess
import sys
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest

import models
import simsiam
from models.choices import FEATURES_PER_CHANNEL, BackboneName, ConvInit, HeadsBN, Stem
from models.heads import HEADS_BN_CHOICES
from models.resnet import BACKBONES, CONV_INITS, STEMS
from simsiam.config.ablations import describe_unused_settings
from simsiam.config.commands import COMMANDS, PRETRAIN_DEFAULTS, Pretrain, find_differences
from simsiam.config.evaluation_options import (
    DEFAULT_LABEL_FRACTION,
    FinetuneOptions,
    FinetuneRates,
)
from simsiam.config.linear_options import LinearOptions, LinearTraining
from simsiam.config.network_options import NetworkOptions
from simsiam.config.optimizer_options import DEFAULT_BATCH_SIZE, OptimizerOptions
from simsiam.config.options import (
    DataOptions,
    MethodOptions,
)
from simsiam.config.recipe_files import pretrain_values
from simsiam.config.run_options import DEFAULT_KNN_K, MonitorOptions
from simsiam.config.value_types import parse_image_schedule
from tests.helpers import ROOT, SMALL, Program
from utils.cli import parse
from utils.errors import UserError
from utils.knn import knn_predict
from utils.option_group import get_help
from utils.settings import flatten, iterate_options


def test_the_parts_import_no_command_line() -> None:
    code = """
import sys, simsiam
for name in simsiam.__all__:
    getattr(simsiam, name)
    print(name, [module for module in ("tyro", "utils.cli") if module in sys.modules])
simsiam.SimSiam("resnet10", width=4)
simsiam.ViewsDataModule("patterns", train_images=8, batch_size=4).setup()
simsiam.KNNMonitor()
simsiam.CollapseMonitor()
print("used", [module for module in ("tyro", "utils.cli") if module in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} []" for name in [*simsiam.__all__, "used"]]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help(command: str) -> None:
    groups = get_type_hints(COMMANDS[command])
    for option in iterate_options(COMMANDS[command]):
        assert get_help(groups[option.group], option.field.name), option.field.name


# ---------------------------------------------------------------- choices


def test_the_choices_are_those_of_the_networks() -> None:
    assert get_args(BackboneName) == tuple(BACKBONES) == tuple(models.__all__)
    assert get_args(Stem) == STEMS
    assert get_args(ConvInit) == CONV_INITS
    assert get_args(HeadsBN) == HEADS_BN_CHOICES


@pytest.mark.parametrize("backbone", get_args(BackboneName))
def test_the_number_of_features_is_that_of_the_network(backbone: BackboneName) -> None:
    network = BACKBONES[backbone](width=4)
    assert network.num_features == 4 * FEATURES_PER_CHANNEL[backbone]
    assert NetworkOptions(backbone=backbone, width=4).num_features == network.num_features


def test_models_knows_no_other_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'resnet19'"):
        models.__getattr__("resnet19")


# ---------------------------------------------------------------- defaults


def default_of(function: object, argument: str) -> object:
    return inspect.signature(function).parameters[argument].default  # pyright: ignore[reportArgumentType]


def test_the_parts_have_the_defaults_of_the_flags() -> None:
    arguments = inspect.signature(simsiam.SimSiam).parameters.keys()
    for group in (NetworkOptions, MethodOptions, OptimizerOptions):
        # The flag --stem depends on the size of the images, which SimSiam does not know.
        for name in (arguments & group.__dataclass_fields__.keys()) - {"stem"}:
            assert default_of(simsiam.SimSiam, name) == getattr(group, name), name
    for name in ("dataset", "data_dir"):
        assert default_of(simsiam.ViewsDataModule, name) == getattr(DataOptions, name), name
    assert default_of(simsiam.ViewsDataModule, "batch_size") == DEFAULT_BATCH_SIZE
    for function in (simsiam.KNNMonitor, knn_predict):
        assert default_of(function, "k") == DEFAULT_KNN_K
        assert default_of(function, "temperature") == MonitorOptions.knn_t


def test_linear_resolves_its_defaults() -> None:
    default = LinearTraining("sgd", 100, 256, 0.1, 0.8, raw_features=False, initial_std=0)
    assert LinearOptions(augment=True).resolve("cifar10", 10_000) == default
    changed = LinearOptions(augment=True, epochs=7, crop_scale=0.5, batch_size=64)
    expected = replace(default, epochs=7, crop_scale=0.5, batch_size=64)
    assert changed.resolve("cifar10", 10_000) == expected


def test_linear_resolves_the_recipe_of_main_lincls() -> None:
    lars = LinearTraining("lars", 90, 4096, 1.6, 0.08, raw_features=True, initial_std=0.01)
    assert LinearOptions(augment=True).resolve("imagenet", 10_000) == lars
    smaller = LinearOptions(augment=True, batch_size=1024).resolve("imagenet", 10_000)
    assert smaller == replace(lars, batch_size=1024, learning_rate=0.4)
    few_images = LinearOptions(augment=True).resolve("imagenet", 512)
    assert few_images == replace(lars, batch_size=512, learning_rate=0.2)
    sgd = LinearOptions(augment=True, optimizer="sgd").resolve("imagenet", 10_000)
    assert sgd == replace(lars, optimizer="sgd", batch_size=256, learning_rate=30)
    with pytest.raises(UserError, match="--optimizer lars: the recipe cifar10 has no settings"):
        LinearOptions(augment=True, optimizer="lars").resolve("cifar10", 10_000)


def test_finetune_resolves_its_defaults() -> None:
    assert FinetuneOptions().fraction == DEFAULT_LABEL_FRACTION
    assert FinetuneOptions().rates == FinetuneRates(0.03, 0.03)
    assert FinetuneOptions(from_scratch=True).rates == FinetuneRates(0.3, 0.1)
    assert FinetuneOptions(from_scratch=True, learning_rate=0.2).rates == FinetuneRates(0.2, 0.1)


# ---------------------------------------------------------------- values


def test_an_image_schedule_is_a_list_of_phases() -> None:
    assert parse_image_schedule(("16:12", "24:6")) == [(16, 12), (24, 6)]


@pytest.mark.parametrize("text", ["16", "16:0", "0:3", "16x2", "16:2:3", "-16:2", ""])
def test_another_image_schedule_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"--image-schedule {text}: must be PIXELS:EPOCHS"):
        parse_image_schedule([text])


def test_only_settings_that_matter_make_a_difference() -> None:
    settings = flatten(Pretrain())
    changed = settings | {"epochs": 6, "knn_every": 3, "save_dir": "elsewhere"}
    assert find_differences(settings, changed) == ["epochs"]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--predictor-lr-scale 10 --constant-predictor-lr --h-dim 64", None),
        ("--no-predictor", None),
        ("--recipe imagenet --no-predictor", None),  # the user has not given the recipe's values
        (
            "--no-predictor --predictor-lr-scale 10 --constant-predictor-lr",
            "there is no predictor: --constant-predictor-lr --predictor-lr-scale=10.0",
        ),
        ("--no-predictor --h-dim 64", "there is no predictor: --h-dim=64"),
        ("--fixed-predictor --h-dim 64", None),
        (
            "--fixed-predictor --h-dim 64 --constant-predictor-lr",
            "the predictor is fixed: --constant-predictor-lr",
        ),
        (
            "--recipe imagenet --fixed-predictor --no-constant-predictor-lr",
            "the predictor is fixed: --no-constant-predictor-lr",
        ),
    ],
)
def test_flags_of_a_predictor_that_is_not_trained_are_named(flags: str, line: str | None) -> None:
    config = parse(Pretrain, flags.split(), "main.py")
    defaults = PRETRAIN_DEFAULTS | pretrain_values(config.run.recipe)
    expected = None if line is None else f"not used, because {line}"
    assert describe_unused_settings(flatten(config), defaults) == expected


def test_a_run_names_the_flags_of_a_predictor_that_it_has_not(program: Program) -> None:
    flags = ["--no-predictor", "--predictor-lr-scale", "10"]
    status, out, _ = program(*SMALL, *flags, "--dry-run")
    assert status == 0
    assert "because there is no predictor: --h-dim=16 --predictor-lr-scale=10.0\n" in out


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"dataset": "patterns", "stored_side": 64},
            "patterns has no image files: --stored-side=64",
        ),
        (
            {"dataset": "arrays", "skip_bad_images": True},
            "arrays has no image files: --skip-bad-images",
        ),
        ({"cache_dir": "c"}, "cifar10 has no image files: --cache-dir=c"),
        (
            {"dataset": "folder", "image_cache": "off", "stored_side": 200},
            "--image-cache is off: --stored-side=200",
        ),
        ({"dataset": "folder", "data_url": "u"}, "folder is not downloaded: --data-url=u"),
        ({"data_url": "u"}, None),
        ({"dataset": "folder", "cache_dir": "c", "stored_side": 200}, None),
    ],
)
def test_options_that_mean_nothing_for_the_images_are_named(
    options: dict[str, Any], line: str | None
) -> None:
    expected = [] if line is None else [f"not used, because {line}"]
    assert DataOptions(**options).describe_unused() == expected
