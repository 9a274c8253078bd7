"""Recipes: named settings below those of --config and of the flags."""

import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from simsiam.commands.sweep import make_variant
from simsiam.config.commands import (
    Ablate,
    Linear,
    Pretrain,
    find_differences,
    pretrain_command,
    settings_to_keep,
    subprocess_args,
)
from simsiam.config.recipe_files import FOLDER, RecipeName, read_recipe
from tests.helpers import Program
from utils.cli import parse
from utils.errors import UserError
from utils.settings import flatten, from_settings


def parsed(*flags: str) -> Pretrain:
    return parse(Pretrain, list(flags), "main.py")


def test_the_choices_are_the_files() -> None:
    assert sorted(get_args(RecipeName)) == sorted(file.stem for file in FOLDER.iterdir())


@pytest.mark.parametrize("name", get_args(RecipeName))
def test_every_recipe_has_only_known_settings_with_valid_values(name: RecipeName) -> None:
    settings = flatten(from_settings(Pretrain, read_recipe(name).pretrain))
    for option, value in read_recipe(name).pretrain.items():
        assert settings[option] == value


def test_the_default_recipe_is_the_defaults() -> None:
    assert parsed("--recipe", "cifar10") == parsed() == Pretrain()


PAPER: dict[str, Any] = {
    "backbone": "resnet50",
    "image_size": 224,
    "proj_layers": 3,
    "out_dim": 2048,
    "proj_hidden": None,
    "h_dim": 512,
    "learning_rate": "auto",
    "base_learning_rate": 0.05,
    "weight_decay": 1e-4,
    "momentum": 0.9,
    "constant_predictor_lr": True,
    "warmup_epochs": 0,
    "epochs": 100,
    "crop_scale": 0.2,
    "jitter": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grayscale": 0.2,
}


def test_imagenet_has_the_papers_settings() -> None:
    config = parsed("--recipe", "imagenet")
    settings = flatten(config)
    assert {name: settings[name] for name in PAPER} == PAPER
    assert config.optimizer.images_per_step == 512
    assert config.optimizer.peak_rate == pytest.approx(0.1)  # .05 x 512 / 256
    assert config.optimizer.warmup == 0


def test_flags_win_over_the_recipe_and_all_else_stays_the_recipes() -> None:
    changed = parsed("--epochs", "7", "--recipe=imagenet", "--no-constant-predictor-lr")
    expected = flatten(parsed("--recipe", "imagenet"))
    expected.update(epochs=7, constant_predictor_lr=False)
    assert flatten(changed) == expected


def write_config(config: Pretrain, file: Path, **changes: Any) -> str:
    settings = settings_to_keep(config) | changes
    file.write_text(yaml.safe_dump({"settings": settings}))
    return str(file)


def test_a_config_file_wins_over_its_recipe(tmp_path: Path) -> None:
    old = parsed("--recipe", "imagenet", "--epochs", "7")
    file = write_config(old, tmp_path / "config.yaml")
    assert settings_to_keep(parsed("--config", file)) == settings_to_keep(old)
    assert parsed("--config", file, "--recipe", "imagenet").optimizer.epochs == 7
    # A setting that the file leaves open has the recipe's value.
    file = write_config(old, tmp_path / "config.yaml", warmup_epochs=None)
    assert parsed("--config", file).optimizer.warmup_epochs == 0


def test_a_recipe_that_would_change_nothing_is_refused(tmp_path: Path) -> None:
    file = write_config(parsed(), tmp_path / "config.yaml")
    with pytest.raises(UserError, match="--recipe imagenet would change nothing"):
        parsed("--config", file, "--recipe", "imagenet")


def test_an_unknown_recipe_is_named_with_and_without_a_file(tmp_path: Path) -> None:
    file = write_config(parsed("--recipe", "imagenet"), tmp_path / "config.yaml")
    for flags in (["--recipe", "nope"], ["--config", file, "--recipe", "nope"]):
        with pytest.raises(UserError, match=r"--recipe nope: There are cifar10, imagenet$"):
            parsed(*flags)
    with pytest.raises(UserError, match=r"--optimizer nope: There are lars, sgd$"):
        parse(Linear, ["run", "--optimizer", "nope"], "main.py linear")


def test_a_batch_that_is_given_reaches_the_processes() -> None:
    """Without the flag, they would choose a batch that splits into three parts."""
    config = parsed("--devices", "3", "--batch-size", "512")
    assert parsed(*subprocess_args(config)[2:]) == config


@pytest.mark.parametrize(
    "flags",
    [
        "--recipe imagenet",
        # These are defaults without the recipe, so they must be in the command.
        "--recipe imagenet --epochs 800 --weight-decay 0.0005 --no-constant-predictor-lr",
        "--recipe imagenet --learning-rate 0.06 --warmup-epochs 10 --batch-size 512",
        "--recipe imagenet --warmup-epochs None",
        "--dataset folder --batch-size 512 --knn-k 200",
        "--train-images 100 --batch-size 512",
        "--learning-rate auto --base-learning-rate 0.1",
        "--logger",  # no logger at all
    ],
)
def test_commands_of_a_run_give_its_settings(flags: str) -> None:
    config = parsed(*flags.split())
    command = pretrain_command(settings_to_keep(config))
    assert settings_to_keep(parsed(*shlex.split(command)[2:])) == settings_to_keep(config)
    assert parsed(*subprocess_args(config)[2:]) == config


def test_variants_keep_the_recipe() -> None:
    config = parse(Ablate, ["--recipe", "imagenet", "--epochs", "9"], "main.py ablate")
    variant = make_variant(config, "no-bn")
    assert variant.network.backbone == "resnet50" and variant.optimizer.epochs == 9
    assert parsed(*subprocess_args(variant)[2:]) == variant
    batch = make_variant(config, "batch-1024")
    assert batch.optimizer.peak_rate == pytest.approx(0.2)
    assert parsed(*subprocess_args(batch)[2:]) == batch


def test_a_base_rate_that_is_not_used_is_refused() -> None:
    with pytest.raises(UserError, match="is only used by --learning-rate auto"):
        parsed("--base-learning-rate", "0.1")
    # The recipe's base rate may be unused, since the user has not given it.
    assert parsed("--recipe", "imagenet", "--learning-rate", "0.2").optimizer.peak_rate == 0.2
    auto = parsed("--learning-rate", "auto", "--base-learning-rate", "0.1", "--batch-size", "64")
    assert auto.optimizer.peak_rate == pytest.approx(0.025)


def test_a_rate_takes_the_place_of_the_rate_auto_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("settings: {learning_rate: auto, base_learning_rate: 0.1}")
    config = parsed("--config", str(file), "--learning-rate", "0.2")
    assert config.optimizer.peak_rate == 0.2
    # A process of the run has the flags alone, and the report prints them.
    assert parsed(*subprocess_args(config)[2:]).optimizer.peak_rate == 0.2
    command = pretrain_command(settings_to_keep(config))
    assert parsed(*shlex.split(command)[2:]).optimizer.peak_rate == 0.2


def test_runs_of_versions_without_recipes_had_the_defaults() -> None:
    new = settings_to_keep(parsed("--batch-size", "512", "--knn-k", "200"))
    old = {
        name: value for name, value in new.items() if name not in ("recipe", "base_learning_rate")
    }
    assert find_differences(old, new) == []
    changed = settings_to_keep(parsed("--recipe", "imagenet"))
    assert {"backbone", "weight_decay", "learning_rate"} <= set(find_differences(old, changed))


def test_a_base_rate_that_is_not_used_makes_no_difference() -> None:
    flags = ["--recipe", "imagenet", "--learning-rate", "0.1"]
    of_recipe = settings_to_keep(parsed(*flags))
    other = of_recipe | {"recipe": "cifar10", "base_learning_rate": 0.03}
    assert find_differences(of_recipe, other) == []
    auto = settings_to_keep(parsed("--recipe", "imagenet"))
    assert find_differences(auto, auto | {"base_learning_rate": 0.03}) == ["base_learning_rate"]


def test_a_dry_run_shows_the_resolved_values(program: Program) -> None:
    flags = "--recipe imagenet --dataset patterns --image-size 32 --backbone resnet10 --width 4"
    small = "--train-images 300 --test-images 20 --accelerator cpu --out-dim 32"
    status, out, _ = program(*flags.split(), *small.split(), "--dry-run")
    assert status == 0
    shown = " ".join(out.split())
    for part in (
        "recipe imagenet",
        "batch 64 images instead of 512, to fit 300 train images; learning rate 0.0125",
        "batch_size 64",
        "learning_rate 0.0125",
        "weight_decay 0.0001",
        "warmup_epochs 0",
        "constant_predictor_lr True",
        "proj_hidden 32",
        "stem cifar",
        "knn_k 30",
    ):
        assert part in shown
