"""The command line: every flag of the original, and an answer in one line to whatever is wrong."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import main
from simsiam.config.commands import COMMANDS, Pretrain, settings_to_keep
from tests.helpers import ROOT, SMALL, Program, is_announcement, limit_memory
from tests.processes import Started
from utils.cli import flatten, parse
from utils.errors import UserError


def parsed(*flags: str) -> Pretrain:
    return parse(Pretrain, list(flags), "main.py")


# ---------------------------------------------------------------- meaning


def test_the_originals_line_works_to_the_letter() -> None:
    config = parsed("--batch-size=512", "--epochs=800", "--save-dir=./simsiam")
    assert (config.optimizer.batch_size, config.optimizer.epochs, config.run_dir) == (
        512,
        800,
        Path("simsiam/simsiam_cifar10"),
    )


def test_every_flag_of_the_original_is_obeyed() -> None:
    flags = (
        "--epochs 7 --batch-size 64 --learning-rate 0.5 --weight-decay 0.001 --model-path m.ckpt --knn-k 9 "
        "--knn-t 0.25 --in-dim 512 --h-dim 33 --out-dim 44 --seed 5 --save-dir s --exp-name e --version v"
    )
    config = parsed(*flags.split())
    o = config.optimizer
    assert (o.epochs, o.batch_size, o.learning_rate, o.weight_decay) == (7, 64, 0.5, 0.001)
    assert (
        config.run.model_path,
        config.monitor.knn_k,
        config.monitor.knn_t,
        config.network.in_dim,
    ) == (
        "m.ckpt",
        9,
        0.25,
        512,
    )
    assert (config.network.h_dim, config.network.out_dim, config.run.seed, config.run_dir) == (
        33,
        44,
        5,
        Path("s/e/v"),
    )
    assert parsed("--ckpt-dir", "c").run.ckpt_dir == "c"


def test_the_defaults_are_the_card() -> None:
    c = SimpleNamespace(**flatten(Pretrain()))
    assert (c.backbone, c.width, c.out_dim, c.proj_hidden, c.h_dim, c.proj_layers) == (
        "resnet18",
        64,
        1024,
        None,
        512,
        2,
    )
    assert (c.batch_size, c.learning_rate, c.momentum, c.weight_decay) == (512, 0.06, 0.9, 5e-4)
    assert (c.epochs, Pretrain().optimizer.warmup, c.knn_k, c.knn_t, c.views) == (
        800,
        10,
        200,
        0.1,
        2,
    )
    assert (c.crop_scale, c.brightness, c.contrast, c.saturation, c.hue, c.jitter, c.grayscale) == (
        0.2,
        0.4,
        0.4,
        0.4,
        0.1,
        0.8,
        0.2,
    )


def test_pretrain_is_the_command_without_a_word(program: Program) -> None:
    assert COMMANDS["pretrain"] is Pretrain
    (status, *without), (_, *with_word) = (
        program(*word, *SMALL, "--dry-run") for word in ((), ("pretrain",))
    )
    assert status == 0 and [re.sub(r"about .*", "", text) for text in without] == [
        re.sub(r"about .*", "", text) for text in with_word
    ]


@pytest.mark.parametrize(("epochs", "warmup"), [(800, 10), (100, 10), (50, 5), (1, 0.1)])
def test_the_default_warm_up_fits_every_run(epochs: int, warmup: float) -> None:
    assert parsed(f"--epochs={epochs}").optimizer.warmup == pytest.approx(warmup)


def test_a_config_file_gives_the_settings_and_flags_beside_it_win(tmp_path: Path) -> None:
    first = parsed(
        "--epochs",
        "33",
        "--no-stop-grad",
        "--knn-t",
        "0.5",
        "--train-images",
        "77",
        "--save-dir",
        "a b",
    )
    file = tmp_path / "config.yaml"
    file.write_text(
        yaml.safe_dump({"command": "pretrain", "settings": settings_to_keep(first), "versions": {}})
    )
    assert settings_to_keep(parsed("--config", str(file))) == settings_to_keep(first)
    changed = parsed(f"--config={file}", "--epochs=44", "--stop-grad")
    assert (
        changed.optimizer.epochs,
        changed.method.stop_grad,
        changed.monitor.knn_t,
        changed.data.train_images,
    ) == (
        44,
        True,
        0.5,
        77,
    )


def test_the_rate_follows_the_batch_when_asked_to() -> None:
    assert parsed("--learning-rate", "auto").optimizer.peak_rate == pytest.approx(
        0.06
    )  # the paper's, for 512
    assert parsed(
        "--learning-rate", "auto", "--batch-size", "4096"
    ).optimizer.peak_rate == pytest.approx(0.48)
    assert parsed("--batch-size", "4096").optimizer.peak_rate == 0.06


def test_help_is_a_page_with_groups_units_and_defaults(program: Program) -> None:
    status, out, _ = program("--help")
    assert status == 0
    for part in (
        "data options",
        "optimizer options",
        "(default: 512)",
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


# ---------------------------------------------------------------- bad input: status 2, one line, nothing written

BAD_FLAGS = {
    "--bogus 1": "--bogus: no such flag",
    "--bach-size 3": "did you mean --batch-size?",
    "--lr 0.1": "called --learning-rate",
    "--gpus 2": "called --devices",
    "--max-epochs 5": "called --epochs",
    "--max_epochs 5": "called --epochs",
    "--accelerator cuda": "did you mean gpu?",
    "--precision bf16-mixed": "did you mean bf16?",
    "--dataset CIFAR10": "did you mean cifar10?",
    "stray": "stray",
    "--epochs": "--epochs",
    "--epochs 0": "--epochs 0: should be greater than or equal to 1",
    "--epochs -3": "greater than or equal to 1",
    "--epochs 2.5": "--epochs",
    "--batch-size 1": "greater than or equal to 2",
    "--batch-size 0": "greater than or equal to 2",
    "--batch-size 201": "200 train images",
    "--epochs 10 --warmup-epochs 10": "never comes down",
    "--epochs 10 --warmup-epochs 20": "less than --epochs 10",
    "--backbone resnet19": "resnet18",
    "--dataset mnist": "cifar10",
    "--learning-rate 0": "greater than 0",
    "--learning-rate nan": "finite",
    "--learning-rate much": "--learning-rate",
    "--accumulate 3": "equal parts",
    "--accumulate 100": "at least 2",
    "--num-nodes 2": "torchrun --nnodes",
    "--weight-decay -1": "greater than or equal to 0",
    "--momentum 1": "less than 1",
    "--knn-k 0": "greater than or equal to 1",
    "--knn-k 201": "200 train images",
    "--knn-t 0": "greater than 0",
    "--views 1": "greater than or equal to 2",
    "--width 0": "greater than or equal to 1",
    "--in-dim 512": "has 32 features",
    "--proj-layers 4": "proj-layers",
    "--crop-scale 0": "greater than 0",
    "--grayscale 2": "less than or equal to 1",
    "--hue 0.6": "0.5",
    "--train-images 0": "greater than or equal to 1",
    "--seed -1": "greater than or equal to 0",
    "--checkpoint-every 0": "greater than or equal to 1",
    "--exp-name a/b": "plain name",
    "--exp-name ..": "plain name",
    f"--exp-name {'x' * 300}": "too long",
    "--dataset cifar10 --data-dir /no/such --data-url foo": "unknown url type",
    "--dataset cifar10 --dry-run --train-images 60000 --data-dir /no/such": "has 50000",
    "--ckpt-dir a --model-path b": "one of them",
    "--ckpt-dir /no/such/file": "no such file",
    "--save-dir ~nosuch/runs": "no such home folder",
    "--model-path /no/such/file": "no such file",
    "--config /no/such/file": "No such file",
    "--config ~nosuch/file": "No such file",
    "--precision 16": "GPU",
    "--dataset cifar10 --data-dir /no/such --data-url http://127.0.0.1:9/x": "--dataset patterns",
}
if not torch.cuda.is_available():
    BAD_FLAGS["--accelerator gpu"] = "no GPU"


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_a_wrong_flag_is_answered_in_one_line(flags: str, program: Program, tmp_path: Path) -> None:
    status, out, err = program(*SMALL, *flags.split())
    assert status == 2 and is_announcement(out)
    assert err.startswith("main.py: ") and err.count("\n") == 1 and BAD_FLAGS[flags] in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("", "settings"),
        ("just text", "settings"),
        ("settings: {bogus: 1}", "bogus"),
        ("settings: {epochs: many}", "--epochs"),
        ("settings: {epochs: 0}", "--epochs 0: should be greater than or equal to 1"),
        (
            "settings: !!python/object/apply:os.system ['touch HACKED']",
            "could not determine a constructor",
        ),
        ("settings: [", "--config"),
        ("\x00\xff", "--config"),
    ],
)
def test_a_wrong_config_file_is_answered_in_one_line(
    content: str, answer: str, program: Program, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content, encoding="latin-1")
    status, _, err = program(*SMALL, "--config", str(file))
    assert status == 2 and err.count("\n") == 1 and answer in err
    assert sorted(os.listdir(tmp_path)) == ["config.yaml"]


def test_a_save_dir_that_is_a_file_or_not_writable(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for save_dir in (file, file / "below"):
        status, _, err = program(*SMALL, "--save-dir", str(save_dir))
        assert (
            status == 2
            and "is a file" in err
            and err.count("\n") == 1
            and file.read_text() == "mine"
        )
    status, _, err = program(*SMALL, "--save-dir", "/proc/nowhere")
    assert status == 2 and err.count("\n") == 1


@pytest.mark.parametrize("name", ["simsiam", "models", "tests"])
def test_no_run_may_take_the_place_of_our_own_folders(name: str, program: Program) -> None:
    before = sorted((ROOT / name).iterdir())
    for flags in ([], ["--overwrite"]):
        status, _, err = program(*SMALL, "--save-dir", str(ROOT), "--exp-name", name, *flags)
        assert status == 2 and "not a run" in err and sorted((ROOT / name).iterdir()) == before


def test_the_real_program_leaves_with_status_2() -> None:
    done = subprocess.run(
        [sys.executable, "main.py", "--epochs", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == ""


def test_an_error_names_the_flag_and_not_its_group() -> None:
    with pytest.raises(UserError, match=r"^--epochs 0: should be greater than or equal to 1$"):
        parsed("--epochs", "0")


def with_little_memory(args: list[str]) -> int:
    """main.py, whom the kernel refuses more than 200 MiB beyond what the program is."""
    limit_memory(200 * 2**20)
    return main.main(args)


def test_too_little_memory_is_answered_in_one_line(tmp_path: Path) -> None:
    few = "--dataset patterns --train-images 2048 --test-images 100 --batch-size 2048 --epochs 1 --accelerator cpu"
    process = Started(
        with_little_memory, [*few.split(), "--knn-every", "0", "--save-dir", str(tmp_path)]
    )
    _, err = process.communicate()
    assert process.returncode == 2 and err.count("\n") == 1, err
    assert "out of memory" in err and "--accumulate" in err
