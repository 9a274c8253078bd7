"""The command line: any mistake is answered in one line with status 2, and nothing is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main
from simsiam.config.commands import Pretrain
from tests.helpers import ROOT, SMALL, Program, limit_memory, prints_only_header
from tests.processes import Started
from utils.cli import parse
from utils.errors import UserError

BAD_FLAGS = {
    "--qqq 1": "--qqq: no such flag",
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
    "--blur -0.1": "greater than or equal to 0",
    "--blur-sigma 1": "--blur-sigma needs 2 values: LOW HIGH",
    "--blur-sigma 2 1": "--blur-sigma 2 1: LOW must not be more than HIGH",
    "--blur-sigma 1 inf": "less than or equal to 1024",
    "--normalize cifar10": "There are dataset, imagenet",
    "--recipe nope": "nope: There are cifar10, imagenet\n",
    "--train-images 0": "greater than or equal to 1",
    "--seed -1": "greater than or equal to 0",
    "--checkpoint-every 0": "greater than or equal to 1",
    "--exp-name a/b": "plain name",
    "--exp-name ..": "plain name",
    f"--exp-name {'x' * 300}": "too long",
    f"--exp-name {chr(0x1F431) * 70}": "takes 280 bytes, which is too long",
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
    assert status == 2 and prints_only_header(out)
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
        parse(Pretrain, ["--epochs", "0"], "main.py")


def with_little_memory(args: list[str]) -> int:
    """Run main.py, to which the kernel gives at most 1 GiB more memory.

    That is enough for everything before the first batch. With less, a library that does not check
    its own small allocations could crash first.
    """
    limit_memory(2**30)
    return main.main(args)


def test_too_little_memory_is_answered_in_one_line(tmp_path: Path) -> None:
    images = ["--dataset", "patterns", "--train-images", "2048", "--test-images", "100"]
    batch = ["--batch-size", "2048", "--epochs", "1", "--accelerator", "cpu", "--knn-every", "0"]
    process = Started(with_little_memory, [*images, *batch, "--save-dir", str(tmp_path)])
    _, err = process.communicate()
    assert process.returncode == 2 and err.count("\n") == 1, err
    assert "out of memory" in err and "--accumulate" in err


@pytest.mark.parametrize(
    "message",
    [
        "std::bad_alloc",
        "could not create a primitive",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes",
    ],
)
def test_each_library_says_in_its_own_words_that_memory_is_exhausted(
    message: str, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust_memory(*_: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(main, "run_command", exhaust_memory)
    status, _, err = program("knn")
    assert status == 2 and err.count("\n") == 1 and f"out of memory ({message}" in err
