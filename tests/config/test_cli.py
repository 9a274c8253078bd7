"""The command line: what flags, defaults and a config file mean, and what `--help` shows."""

import re
from pathlib import Path

import pytest
import yaml

from simsiam.config.commands import COMMANDS, Pretrain, settings_to_keep
from simsiam.config.evaluation_commands import Evaluation
from tests.helpers import SMALL, Program
from utils.cli import parse
from utils.settings import flatten, to_flags


def parsed(*flags: str) -> Pretrain:
    return parse(Pretrain, list(flags), "main.py")


def test_the_originals_line_works_to_the_letter() -> None:
    config = parsed("--batch-size=512", "--epochs=800", "--save-dir=./simsiam")
    assert config.optimizer.batch_size == 512
    assert config.optimizer.epochs == 800
    assert config.run_dir == Path("simsiam/simsiam_cifar10")


ORIGINAL_FLAGS = {
    "epochs": 7,
    "batch_size": 64,
    "learning_rate": 0.5,
    "weight_decay": 0.001,
    "model_path": "m.ckpt",
    "knn_k": 9,
    "knn_t": 0.25,
    "in_dim": 512,
    "h_dim": 33,
    "out_dim": 44,
    "seed": 5,
    "save_dir": "s",
    "exp_name": "e",
    "version": "v",
}


def test_every_flag_of_the_original_is_obeyed() -> None:
    config = parsed(*to_flags(ORIGINAL_FLAGS))
    assert flatten(config) == flatten(Pretrain()) | ORIGINAL_FLAGS
    assert config.run_dir == Path("s/e/v")
    assert parsed("--ckpt-dir", "c").run.ckpt_dir == "c"


CARD = {
    "backbone": "resnet18",
    "width": 64,
    "out_dim": 1024,
    "proj_hidden": None,
    "proj_layers": 2,
    "h_dim": 512,
    "learning_rate": 0.06,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "epochs": 800,
    "knn_t": 0.1,
    "views": 2,
    "crop_scale": 0.2,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "jitter": 0.8,
    "grayscale": 0.2,
    "blur": 0,
    "solarize": 0,
    "vertical_flip": 0,
    "rotate": 0,
    "normalize": "dataset",
}


def test_the_defaults_are_the_card() -> None:
    defaults = flatten(Pretrain())
    assert {name: defaults[name] for name in CARD} == CARD
    assert Pretrain().optimizer.warmup == 10
    assert Pretrain().optimizer.images_per_step == 512
    assert Pretrain().monitor.neighbours == 200


def test_pretrain_is_the_command_without_a_name(program: Program) -> None:
    without_name = program(*SMALL, "--dry-run")
    with_name = program("pretrain", *SMALL, "--dry-run")
    estimate = r"about .*"  # of the time that training takes
    assert without_name[0] == with_name[0] == 0
    assert re.sub(estimate, "", without_name[1]) == re.sub(estimate, "", with_name[1])
    assert without_name[2] == with_name[2] == ""


@pytest.mark.parametrize(("epochs", "warmup"), [(800, 10), (100, 10), (50, 5), (1, 0.1)])
def test_the_default_warm_up_fits_every_run(epochs: int, warmup: float) -> None:
    assert parsed(f"--epochs={epochs}").optimizer.warmup == pytest.approx(warmup)


def test_flags_win_over_the_settings_of_a_config_file(tmp_path: Path) -> None:
    flags = ["--epochs=33", "--no-stop-grad", "--knn-t=0.5", "--train-images=77", "--save-dir=a b"]
    settings = settings_to_keep(parsed(*flags))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"command": "pretrain", "settings": settings, "versions": {}}))
    assert settings_to_keep(parsed("--config", str(file))) == settings
    changed = parsed(f"--config={file}", "--epochs=44", "--stop-grad")
    assert settings_to_keep(changed) == settings | {"epochs": 44, "stop_grad": True}


def test_the_rate_follows_the_batch_when_asked_to() -> None:
    auto = parsed("--learning-rate", "auto")
    assert auto.optimizer.peak_rate == pytest.approx(0.06)  # the paper's, for 512
    auto = parsed("--learning-rate", "auto", "--batch-size", "4096")
    assert auto.optimizer.peak_rate == pytest.approx(0.48)
    assert parsed("--batch-size", "4096").optimizer.peak_rate == 0.06


def test_help_is_a_page_with_groups_units_and_defaults(program: Program) -> None:
    status, out, _ = program("--help")
    assert status == 0
    for part in (
        "data options",
        "optimizer options",
        "or less for a small data set",
        "Epochs of linear warm-up",
        "--no-stop-grad",
        "--dry-run",
    ):
        assert part in out
    assert "(default: None)" not in out


def test_a_flag_may_be_written_with_underscores() -> None:
    assert parsed("--batch_size", "64", "--learning_rate=0.1") == parsed(
        "--batch-size", "64", "--learning-rate", "0.1"
    )


def test_a_dry_run_tells_and_writes_nothing(program: Program, tmp_path: Path) -> None:
    status, out, _ = program(*SMALL, "--epochs", "5", "--dry-run")
    assert status == 0 and not (tmp_path / "runs").exists()
    for part in (
        "200 train",
        "5 epochs of 4 steps",
        "= 20",
        "parameters",
        str(tmp_path / "runs" / "simsiam_patterns"),
    ):
        assert part in out


def test_a_dry_run_without_the_data_downloads_nothing(program: Program, tmp_path: Path) -> None:
    status, out, err = program("--data-dir", str(tmp_path / "data"), "--dry-run")
    assert (status, err) == (0, "") and not (tmp_path / "data").exists()
    assert (
        "would be downloaded" in out
        and "800 epochs of 97 steps" in out
        and "backbone 11.17 M" in out
    )


EVALUATIONS = [name for name, command in COMMANDS.items() if issubclass(command, Evaluation)]
PLACES = [
    "RUN --results-dir there --overwrite",
    "--results-dir there RUN --overwrite",
    "--results-dir=there --overwrite RUN",
    "--overwrite --results-dir there -- RUN",
    "--overwrite --checkpoint RUN --results-dir there",
    "--checkpoint=RUN --overwrite --results-dir there",
]


@pytest.mark.parametrize("name", EVALUATIONS)
@pytest.mark.parametrize("flags", PLACES)
def test_a_checkpoint_may_be_anywhere_among_the_flags(name: str, flags: str) -> None:
    options = parse(COMMANDS[name], flags.split(), f"main.py {name}").checkpoint
    assert options.checkpoint == "RUN"
    assert options.results_dir == "there"
    assert options.overwrite


def test_a_checkpoint_may_follow_a_flag_with_several_values() -> None:
    config = parse(COMMANDS["finetune"], ["--seeds", "0", "1", "RUN"], "main.py finetune")
    assert config.checkpoint.checkpoint == "RUN"
    assert config.finetune.seeds == (0, 1)


BAD_PATHS = {
    "knn": "PATH must be given: main.py knn PATH [flags]",
    "embed --output f.npz": "PATH must be given: main.py embed PATH [flags]",
    "knn a b": "b: give one PATH only",
    "knn a --checkpoint b": "a: give one PATH only",
    "knn a overwrite": "overwrite: did you mean --overwrite?",
    "embed output f.npz": "output: did you mean --output?",
    "embed a --output f.npz overwrite": "overwrite: did you mean --overwrite?",
    "embed overwrite --output overwrite.npz a": "overwrite: did you mean --overwrite?",
    "knn --bogus a": "--bogus: no such flag",
    "knn --over-write a": "--over-write: did you mean --overwrite?",
    "knn --no-overwrite --model a": "--model: no such flag",
    "finetune --seeds 0 1 a --overwrite": "PATH must be given: main.py finetune PATH [flags]",
    "report a --no-pictures b": "b: give RUN [RUN ...] one after another, with the flags behind",
}


@pytest.mark.parametrize("line", BAD_PATHS)
def test_a_misplaced_path_is_explained(line: str, program: Program) -> None:
    status, out, err = program(*line.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"main.py: {BAD_PATHS[line]}")
