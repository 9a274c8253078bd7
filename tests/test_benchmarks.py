"""The benchmarks run with small sizes, and the script for a GPU machine runs from end to end."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from simsiam import SimSiam
from tests.benchmarks.timing import step_flops
from tests.helpers import ROOT, SMALL

CONTINUES = 3  # exit status of a leg after which there is more to do

# Flags that make a benchmark fast.
SMALL_SIZES = {
    "augment": "--images 256 --rounds 1 --threads 1",
    "knn": "--sizes 200 1000 32 --rounds 1",
    "step": "--width 16 --batch-size 8 --steps 2 --rounds 1",
    "convolutions": "--width 16 --batch-size 4 --rounds 1",
    "scale": "--axes batch bank --points 2 --rounds 1",
    "communication": "--processes 2 --batch-size 8 --width 4 --steps 1",
    "image_index": "--images 20000",
    "files": "--sizes 32 96 --files 20 --batch-size 10 --rounds 1 --width 4 --no-compile",
    "ceilings": "--backbone resnet10 --width 4 --batch-size 8 --images 100 --rounds 1",
}
PRINTED = {
    "augment": ["torchvision, PIL", "lightly's SimSiam transform", "kornia", "ours, compiled"],
    "knn": ["lightly", "scikit-learn", "faiss", "other answers"],
    "step": ["plain PyTorch", "as shipped", "granted", "Lightning's share"],
    "convolutions": ["ours, fp32", "lightly's, fp32, as shipped", "GFLOP/s"],
    "scale": ["exponent of time", "batch", "bank", "a message of BN"],
    "communication": ["31 (31)", "364 (364)", "64 x 64"],
    "image_index": ["list the folders", "order of an epoch", "peak bytes an image"],
    "files": ["crops of 96 x 96", "views of 32 x 32", "ratio of on", "minutes an epoch", "bound"],
    "ceilings": ["bf16 matrix product", "copy", "backward", "operations of a step", "kNN"],
}


@pytest.mark.slow("a start of Python with the packages to compare with; other tests check results")
@pytest.mark.parametrize("name", SMALL_SIZES)
def test_each_benchmark_prints_its_table(name: str) -> None:
    command = [sys.executable, f"tests/benchmarks/{name}.py", *SMALL_SIZES[name].split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for text in [*PRINTED[name], f"torch {torch.__version__}"]:
        assert text in done.stdout


# ---------------------------------------------------------------- h200.sh

HIDE_PEERS = """import sys
class Absent:
    def find_spec(name, *_):
        if name in ("lightly", "kornia", "faiss"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent)
"""


def write_wheel(folder: Path) -> None:
    """Write a wheel whose `sitecustomize` hides the packages to compare with."""
    files = {
        "sitecustomize.py": HIDE_PEERS,
        "bare-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: bare\nVersion: 1\n",
        "bare-1.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
        "bare-1.dist-info/RECORD": "",
    }
    folder.mkdir()
    with zipfile.ZipFile(folder / "bare-1-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)


def run_leg(
    *args: str, timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "tests/benchmarks/h200.sh", *args],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.timeout(850)
@pytest.mark.slow(
    "all benchmarks, pre-trainings in legs, a linear classifier, fine-tunings, a page"
)
def test_the_gpu_script_runs_from_end_to_end(tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels")
    environment = {"PYTHON": sys.executable, "MEASURE": "--accelerator cpu"}
    for name in ("RUNS", "RESULTS", "WHEELS", "SITE"):
        environment[name] = str(tmp_path / name.lower())
    for name, flags in SMALL_SIZES.items():
        environment[f"BENCH_{name}"] = flags
    environment["BENCH_ceilings"] = "--no-such-flag"
    results = tmp_path / "results"

    # The wrong flag fails, and the script runs everything else.
    done = run_leg("all", *SMALL, "--epochs", "60", timeout=800, LEG_SECONDS="540", **environment)
    printed = done.stdout[-3000:] + done.stderr
    assert done.returncode == 1, printed
    assert done.stderr.count("failed with") == 1, printed
    left_out = {"step": ["lightly"], "augment": ["lightly", "kornia"], "knn": ["lightly", "faiss"]}
    for name, peers in left_out.items():
        table = (results / f"{name}.txt").read_text()
        assert "ours" in table
        for peer in peers:
            assert f"{peer} is not installed: left out" in table

    # Nothing is measured again.
    done = run_leg("measure", LEG_SECONDS="1", **environment)
    assert done.returncode == 0

    # A leg is an error if it is too short for a single measurement, since repeating cannot help.
    (tmp_path / "runs/h200/results/linear/summary.json").unlink()
    done = run_leg("measure", LEG_SECONDS="1", **environment)
    assert done.returncode == 1

    assert json.loads((results / "summary.json").read_text())["epochs"] == 60
    assert len((results / "metrics.jsonl").read_text().splitlines()) == 60
    with tarfile.open(results / "curves.tar.gz") as curves:
        assert any("events.out" in name for name in curves.getnames())
    measured = (results / "measure.txt").read_text()
    for text in ("kNN accuracy", "linear", "fine-tun"):
        assert text in measured
    assert "finetune 0.1, " in (results / "report.html").read_text()


def write_python(folder: Path, command: str) -> str:
    """Write a program that is called instead of Python and runs a shell command."""
    folder.mkdir(exist_ok=True)
    (folder / "python").write_text(f"#!/bin/sh\n{command}\n")
    (folder / "python").chmod(0o755)
    return str(folder / "python")


def pretrain_leg(
    tmp_path: Path, python: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    environment |= {
        "RUNS": str(tmp_path / "runs"),
        "RESULTS": str(tmp_path / "results"),
        "PYTHON": python,
    }
    return run_leg("pretrain", *SMALL, "--epochs", "5", "--exp-name", "h200", **environment)


def test_a_leg_ends_when_its_time_is_over(tmp_path: Path) -> None:
    python = write_python(tmp_path / "bin", "exec sleep 1000")
    done = pretrain_leg(tmp_path, python, LEG_SECONDS="1")
    assert done.returncode == CONTINUES, done.stdout + done.stderr
    assert "call this again" in done.stdout


# main.py, which gets a SIGTERM in its ninth step.
STOPPED_MAIN = """
import sys
sys.path.insert(0, "")
from tests.at_steps import run_with_events
sys.exit(run_with_events(['{"9": ["SIGTERM"]}', *sys.argv[2:]]))
"""


@pytest.mark.slow("two starts of Python; that a leg ends, and that a run resumes, are quick tests")
def test_a_leg_resumes_the_run_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "stopped.py").write_text(STOPPED_MAIN)
    python = write_python(
        tmp_path / "bin", f'exec {sys.executable} -c "$(cat {tmp_path}/stopped.py)" "$@"'
    )
    checkpoint = tmp_path / "runs" / "h200" / "checkpoints" / "last.ckpt"
    for step in (9, 18):
        done = pretrain_leg(tmp_path, python)
        assert done.returncode == CONTINUES, done.stdout + done.stderr
        assert "call this again" in done.stdout
        assert torch.load(checkpoint, weights_only=True)["global_step"] == step
    assert "resumed from" in done.stdout
    assert (tmp_path / "results" / "metrics.jsonl").exists()


# ---------------------------------------------------------------- operations of a step


@pytest.mark.parametrize("views", [2, 4])
def test_counted_operations_are_those_of_a_real_step(views: int) -> None:
    def build() -> SimSiam:
        return SimSiam(backbone="resnet10", width=4, out_dim=16, h_dim=8)

    x = [torch.randn(6, 3, 32, 32) for _ in range(views)]
    with FlopCounterMode(display=False) as counter:
        build().training_step(x, 0)["loss"].backward()
    assert step_flops(build, 6, views, 32) == counter.get_total_flops()


def test_the_default_step_has_the_reported_operations() -> None:
    """Others report 3.33 GFLOP per view for this backbone. The heads add 2 %."""
    assert step_flops(SimSiam, 512, 2, 32) / 1024 == pytest.approx(3.33e9, rel=0.03)
