"""Ranges of a search, and the settings of a run that its values stand for."""

from pathlib import Path
from typing import Any

import pytest

from simsiam.commands.tuning.space import (
    Choices,
    Range,
    built_in_space,
    check_space,
    choose_space,
    read_space,
)
from simsiam.commands.tuning.values import apply_values, scale_schedule, start_values
from simsiam.config.commands import PRETRAIN_DEFAULTS, Pretrain
from utils.errors import UserError
from utils.settings import flatten, from_settings

SIZE = 32


def make_base(**settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a run, and what they stand for."""
    config = from_settings(Pretrain, {"batch_size": 512, **settings})
    base = {name: value for name, value in flatten(config).items() if name in PRETRAIN_DEFAULTS}
    return base, start_values(config, SIZE)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"learning_rate": 3.0, "weight_decay": 0.1, "crop_scale": 0.9},
        {"warmup_epochs": 400, "batch_size": 16},
    ],
)
def test_built_in_ranges_contain_the_start(settings: dict[str, Any]) -> None:
    base, start = make_base(**settings)
    space = built_in_space(start, train_images=5000)
    for name, setting in space.items():
        assert setting.nearest(start[name]) == start[name]
    check_space(space, base, start, SIZE)


def test_ranges_are_described_in_words() -> None:
    assert Range(low=1e-5, high=0.01, log=True).describe() == "1e-05 to 0.01, by its logarithm"
    assert Range(low=0, high=2).describe() == "0 to 2"
    assert Choices(choices=[32, 64]).describe() == "32, 64"


def test_start_values_give_the_run_of_the_flags() -> None:
    base, start = make_base(learning_rate=0.1, batch_size=128, brightness=0.3, proj_hidden=64)
    values = {name: start[name] for name in built_in_space(start, 5000)}
    config = from_settings(Pretrain, apply_values(values, base, start, SIZE))
    flags = from_settings(Pretrain, base)
    assert config.optimizer.peak_rate == pytest.approx(0.1)
    assert config.optimizer.warmup == pytest.approx(flags.optimizer.warmup)
    assert config.augmentation == flags.augmentation
    assert config.network == flags.network
    assert config.method == flags.method


def test_combined_settings_change_all_their_options() -> None:
    base, start = make_base(epochs=20, hue=0.3)
    values = {
        "colour_jitter": 2.0,
        "heads_width": 0.5,
        "small_views_share": 0.25,
        "warmup_share": 0.1,
    }
    settings = apply_values(values, base, start, SIZE)
    assert (settings["brightness"], settings["hue"]) == (0.8, 0.5)  # a hue shift has a limit
    assert (settings["out_dim"], settings["h_dim"], settings["proj_hidden"]) == (512, 256, None)
    assert settings["image_schedule"] == ["16:5"]
    assert settings["warmup_epochs"] == 2.0
    assert settings["learning_rate"] == base["learning_rate"]  # it is not varied


def test_rate_follows_the_batch_size() -> None:
    base, start = make_base(learning_rate=0.08, batch_size=128)
    settings = apply_values({"batch_size": 256}, base, start, SIZE)
    assert from_settings(Pretrain, settings).optimizer.peak_rate == pytest.approx(0.16)


def test_small_views_need_room_and_no_schedule_of_ones_own() -> None:
    config = Pretrain()
    assert "small_views_share" in start_values(config, view_size=16)
    assert "small_views_share" not in start_values(config, view_size=12)
    _, start = make_base(image_schedule=["16:400"])
    assert "small_views_share" not in start


def test_schedule_is_scaled_to_the_length_of_a_trial() -> None:
    assert scale_schedule(["16:400", "24:100", "28:1"], 0.02) == ["16:8", "24:2"]


def test_file_replaces_the_ranges(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "out_dim: {low: 16, high: 64}\nmomentum: {low: 0.5, high: 0.95}\n"
        "batch_size: {choices: [32, 64]}\n"
    )
    _, start = make_base()
    space = choose_space(str(file), ["out_dim", "batch_size"], start, 5000)
    assert space == {"out_dim": Range(low=16, high=64), "batch_size": Choices(choices=[32, 64])}
    assert space["batch_size"].nearest(512) == 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "speed: {low: 1, high: 2}",
            "speed cannot be varied. There are backbone, base_learning_rate,",
        ),
        ("epochs: {low: 1, high: 2}", "epochs cannot be varied"),
        ("momentum: {low: 2, high: 1}", "low 2 must be less than high 1"),
        ("momentum: {low: 0, high: 1, log: true}", "log needs a low above 0"),
        ("momentum: {low: 0.1, high: .inf}", "momentum: {'low': 0.1, 'high': inf}: "),
        ("momentum: {low: 0.1}", "Give {low: 0.01, high: 1}"),
        ("momentum: {choices: [0.9]}", "momentum: {'choices': [0.9]}: "),
        ("momentum: 0.9", "momentum: 0.9: "),
        ("- momentum", "must have lines such as"),
        ("", "must have lines such as"),
        ("momentum: {low: [", "is not YAML"),
        ("x: !!python/object/apply:os.system ['false']", "is not YAML"),
    ],
)
def test_wrong_file_is_refused_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(content)
    _, start = make_base()
    with pytest.raises(UserError) as error:
        read_space(file, start)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_range_outside_an_option_is_refused() -> None:
    base, start = make_base()
    with pytest.raises(UserError, match=r"the range of momentum has 1.5: --momentum 1.5"):
        check_space({"momentum": Range(low=0.5, high=1.5)}, base, start, SIZE)


@pytest.mark.parametrize(
    "names", [("base_learning_rate", "learning_rate"), ("heads_width", "out_dim")]
)
def test_two_settings_of_the_same_option_are_refused(
    names: tuple[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("".join(f"{name}: {{low: 1, high: 2}}\n" for name in names))
    _, start = make_base()
    with pytest.raises(UserError, match="Vary one of them"):
        choose_space(str(file), (), start, 5000)


def test_rate_of_a_trial_takes_the_place_of_the_rate_auto_of_the_flags() -> None:
    base, start = make_base(learning_rate="auto", base_learning_rate=0.1)
    settings = apply_values({"learning_rate": 0.2}, base, start, SIZE)
    assert from_settings(Pretrain, settings).optimizer.peak_rate == 0.2
