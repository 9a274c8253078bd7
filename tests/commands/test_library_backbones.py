"""Every command works on networks of torchvision and timm: a table of backbones and commands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

import main
from simsiam import SimSiam, load_backbone
from tests.at_steps import start_with_events
from tests.conftest import MakeOnce
from tests.helpers import CPU, Program, read_rows, read_summary, same_weights
from tests.processes import start

# Backbone -> number of features, and the name of the classifier that torchvision adds to it.
BACKBONES = {
    "torchvision/mobilenet_v3_small": (1024, "classifier.3"),
    "timm/vit_tiny_patch16_224": (192, None),
    "torchvision/resnet18": (512, "fc"),
    "torchvision/resnet50": (2048, "fc"),
    "torchvision/efficientnet_b0": (1280, "classifier.1"),
    "torchvision/vit_b_16": (768, "heads.head"),
    "timm/convnext_atto": (320, None),
    "timm/efficientnet_b0": (1280, None),
    "timm/mobilenetv3_small_100": (1024, None),
}
QUICK = ("torchvision/mobilenet_v3_small", "timm/vit_tiny_patch16_224")

DATA = "--dataset patterns --train-images 60 --test-images 30 --pictures-every 50"
NETWORK = "--out-dim 32 --h-dim 16 --batch-size 20 --knn-k 20"
FLAGS = f"{DATA} {NETWORK} {CPU} --checkpoint-every 1000 --epochs 1".split()

Check = Callable[[Program, str, Path, Path], None]


def run_ok(program: Program, *args: str) -> str:
    """Run a command that must succeed, and return what it prints."""
    status, out, err = program(*args)
    assert (status, err) == (0, ""), err
    return out


def evaluate(program: Program, command: str, run: Path, folder: Path, *flags: str) -> str:
    results = ["--results-dir", str(folder)]
    return run_ok(program, command, "--checkpoint", str(run), *results, *flags)


def check_knn(program: Program, name: str, run: Path, folder: Path) -> None:
    assert name in evaluate(program, "knn", run, folder)
    assert len(read_summary(folder / "knn")["per_class"]) == 10


def check_linear(program: Program, name: str, run: Path, folder: Path) -> None:
    evaluate(program, "linear", run, folder)
    head = load_file(folder / "linear" / "head.safetensors")
    assert head["weight"].shape == (10, BACKBONES[name][0])


def check_linear_augment(program: Program, name: str, run: Path, folder: Path) -> None:
    flags = ["--augment", "--epochs", "1", "--precision", "32", "--from-scratch"]
    evaluate(program, "linear", run, folder, *flags)
    assert read_summary(folder / "linear_augment_from_scratch")["steps"] > 0


def check_finetune(program: Program, name: str, run: Path, folder: Path) -> None:
    flags = ["--label-fraction", "0.5", "--epochs", "1", "--precision", "32"]
    evaluate(program, "finetune", run, folder, *flags)
    (tuned,) = folder.rglob("backbone.safetensors")
    before = load_backbone(run).state_dict()
    after = load_backbone(tuned).state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def check_finetune_from_scratch(program: Program, name: str, run: Path, folder: Path) -> None:
    flags = ["--from-scratch", "--label-fraction", "0.5", "--epochs", "1", "--precision", "32"]
    evaluate(program, "finetune", run, folder, *flags)


def check_embed(program: Program, name: str, run: Path, folder: Path) -> None:
    evaluate(program, "embed", run, folder)
    features = np.load(folder / "embed" / "features.npz")["features"]
    assert features.shape == (90, BACKBONES[name][0])


def check_neighbours(program: Program, name: str, run: Path, folder: Path) -> None:
    evaluate(program, "neighbours", run, folder)
    assert list(folder.rglob("*.png"))


def check_export(program: Program, name: str, run: Path, folder: Path) -> None:
    """The library that has the network loads the file by its own means."""
    evaluate(program, "export", run, folder)
    file = folder / "export_safetensors" / "backbone.safetensors"
    library, _, network_name = name.partition("/")
    size: dict[str, Any] = {}
    if "vit" in name:
        size = {"image_size" if library == "torchvision" else "img_size": 32}
    if library == "timm":
        theirs = timm.create_model(network_name, num_classes=0, checkpoint_path=str(file), **size)
    else:
        theirs = torchvision.models.get_model(network_name, **size)
        classifier = BACKBONES[name][1]
        assert classifier is not None
        # The file has no classifier. The next line requires that exactly this is missing.
        missing, unexpected = theirs.load_state_dict(load_file(file), strict=False)
        assert (sorted(missing), unexpected) == ([f"{classifier}.bias", f"{classifier}.weight"], [])
        theirs.set_submodule(classifier, nn.Identity())
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_backbone(run)(images), theirs.eval()(images))


def check_export_formats(program: Program, name: str, run: Path, folder: Path) -> None:
    """`export` itself compares the features."""
    for format in ("torch-export", "onnx"):
        evaluate(program, "export", run, folder, "--format", format)


def check_report(program: Program, name: str, run: Path, folder: Path) -> None:
    run_ok(program, "report", str(run), "--output", str(folder))
    (page,) = folder.glob("*.html")
    assert name in page.read_text()


def check_ablate(program: Program, name: str, run: Path, folder: Path) -> None:
    flags = ["--backbone", name, "--variants", "baseline", "--save-dir", str(folder)]
    status, _, err = program("ablate", *FLAGS, *flags)
    assert status == 0, err
    assert same_weights(folder / "ablation_patterns" / "baseline", run)


def check_resume(program: Program, name: str, run: Path, folder: Path) -> None:
    """A run that is stopped and resumed is the same run, to the bit."""
    args = [*FLAGS, "--backbone", name, "--save-dir", str(folder), "--exp-name", "run"]
    stopped = start_with_events({2: ["SIGTERM"]}, *args)
    _, err = stopped.communicate()
    assert stopped.returncode == 143 and "the same command resumes it" in err
    run_ok(program, *args)
    assert same_weights(folder / "run", run)
    assert read_rows(folder / "run") == read_rows(run)


def check_new_run_from_its_weights(program: Program, name: str, run: Path, folder: Path) -> None:
    args = ["--backbone", name, "--model-path", str(run), "--save-dir", str(folder)]
    run_ok(program, *FLAGS, *args)


def check_load_backbone(program: Program, name: str, run: Path, folder: Path) -> None:
    """Each kind of file gives the same network, whose layers are those of the library."""
    backbone = load_backbone(run)
    assert not backbone.training and backbone.image_size == 32
    assert len(backbone.mean) == len(backbone.std) == 3
    images = torch.randn(2, 3, 32, 32)
    module = SimSiam.load_from_checkpoint(run / "checkpoints" / "last.ckpt", map_location="cpu")
    with torch.no_grad():
        features = backbone(images)
        assert features.shape == (2, BACKBONES[name][0])
        assert torch.equal(load_backbone(run / "checkpoints" / "last.ckpt")(images), features)
        assert torch.equal(module.eval()(images), features)
    assert not [layer for layer in backbone.modules() if type(layer).__module__[:6] == "models"]


CHECKS: dict[str, Check] = {
    "knn": check_knn,
    "linear": check_linear,
    "linear --augment --from-scratch": check_linear_augment,
    "finetune": check_finetune,
    "finetune --from-scratch": check_finetune_from_scratch,
    "embed": check_embed,
    "neighbours": check_neighbours,
    "export": check_export,
    "export --format": check_export_formats,
    "report": check_report,
    "ablate": check_ablate,
    "resume": check_resume,
    "--model-path": check_new_run_from_its_weights,
    "load_backbone": check_load_backbone,
}
SLOW_COMMANDS = ("export --format",)


def make_table() -> list[Any]:
    """Return all pairs of a backbone and a command. The pairs of large networks are slow."""
    table: list[Any] = []
    for name in BACKBONES:
        for command in CHECKS:
            is_quick = name in QUICK and command not in SLOW_COMMANDS
            marks = () if is_quick else (pytest.mark.slow("a large network, or a slow exporter"),)
            table.append(pytest.param(name, command, marks=marks, id=f"{name} {command}"))
    return table


@pytest.mark.parametrize(("name", "command"), make_table())
def test_each_command_works_on_each_backbone(
    name: str, command: str, make_once: MakeOnce, program: Program, tmp_path: Path
) -> None:
    def train(folder: Path) -> None:
        args = [*FLAGS, "--backbone", name, "--save-dir", str(folder), "--exp-name", "run"]
        assert main.main(args) == 0

    run = make_once(name.replace("/", "_"), train) / "run"
    CHECKS[command](program, name, run, tmp_path)


def test_two_processes_learn_the_same_as_one(tmp_path: Path) -> None:
    """timm's layers of BN and activation share their statistics over the processes too."""
    flags = [*FLAGS, "--backbone", "timm/mobilenetv3_small_050", "--learning-rate", "0.001"]
    rows: list[dict[str, Any]] = []
    for devices in ("1", "2"):
        folder = ["--save-dir", str(tmp_path), "--exp-name", devices]
        process = start(*flags, *folder, "--devices", devices)
        out, err = process.communicate()
        assert (process.returncode, err) == (0, ""), err
        assert ("2 x cpu" in out) == (devices == "2")
        rows += read_rows(tmp_path / devices)
    one, two = rows
    assert one["train_loss"] == pytest.approx(two["train_loss"], abs=5e-4)
    assert one["z_std"] == pytest.approx(two["z_std"], abs=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backbone", "torchvision/resnet19"], "Did you mean torchvision/resnet18?"),
        (["--backbone", "timm/no_such_network"], "timm has no network"),
        (["--backbone", "torchvision"], "There are resnet10, resnet18, resnet34, resnet50, torchv"),
        (["--backbone", "timm/hf-hub:a/b"], "--backbone timm/hf-hub:a/b: There are resnet10"),
        (["--backbone", "resnet81"], "did you mean resnet18?"),
        (["--backbone", "timm/resnet18", "--width", "8"], "--width 8: only for the ResNets"),
        (["--backbone", "timm/resnet18", "--stem", "cifar"], "--stem cifar: only for the ResNets"),
        (["--backbone", "timm/resnet18", "--in-dim", "8"], "timm/resnet18 has 512 features"),
        (["--backbone", "torchvision/inception_v3"], "cannot take images of 32 x 32 pixels"),
        (
            ["--backbone", "timm/vit_tiny_patch16_224", "--image-schedule", "16:1"],
            "cannot take images of 16 x 16 pixels",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused_in_one_line(
    flags: list[str], message: str, program: Program, tmp_path: Path
) -> None:
    status, _, err = program(*FLAGS, *flags)
    assert status == 2 and err.count("\n") == 1
    assert message in err, err
    assert not (tmp_path / "runs").exists()
