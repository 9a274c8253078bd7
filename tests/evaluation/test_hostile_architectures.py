"""Files that name networks of libraries: what they may name, and what they cannot cause."""

import builtins
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from models.libraries import build_library_backbone
from simsiam import load_backbone
from tests.helpers import Program, limit_memory
from tests.processes import Started
from utils.weights import BACKBONE, write_weights

METADATA = {
    "backbone": "torchvision/mobilenet_v3_small",
    "width": None,
    "stem": None,
    "image_size": 32,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "classes": [],
}


def write_file(path: Path, **changes: Any) -> Path:
    network = build_library_backbone("torchvision/mobilenet_v3_small", 32)
    write_weights(path, BACKBONE, network.state_dict(), METADATA | changes)
    return path


def test_a_file_of_a_librarys_network_loads(tmp_path: Path) -> None:
    backbone = load_backbone(write_file(tmp_path / "a.safetensors"))
    assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, 1024)
    assert (backbone.mean, backbone.image_size) == ((0.5, 0.5, 0.5), 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "timm/hf-hub:timm/resnet18.a1_in1k"}, "no valid backbone"),
        ({"backbone": "timm/local-dir:/tmp"}, "no valid backbone"),
        ({"backbone": "timm/../../etc"}, "no valid backbone"),
        ({"backbone": "os/system"}, "no valid backbone"),
        ({"backbone": "torchvision/resnet18\n"}, "no valid backbone"),
        ({"backbone": "torchvision/get_model"}, "torchvision has no network"),
        ({"backbone": "torchvision/maskrcnn_resnet50_fpn"}, "torchvision has no network"),
        ({"backbone": "timm/no_such_network"}, "timm has no network"),
        ({"backbone": "torchvision/resnet18"}, "weights do not fit"),
        ({"width": 64}, "no valid width"),
        ({"stem": "cifar"}, "no valid stem"),
        ({"backbone": "resnet18"}, "no valid width, stem"),
        ({"image_size": 10**9}, "no valid image_size"),
        ({"backbone": "torchvision/vit_b_16", "image_size": 40}, "cannot take images of 40 x 40"),
        ({"backbone": "torchvision/vit_b_16", "image_size": None}, "is built for one size"),
    ],
)
def test_a_hostile_file_is_refused_in_one_line(
    changes: Mapping[str, Any],
    message: str,
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing that the file names is imported, and nothing is downloaded."""
    file = write_file(tmp_path / "a.safetensors", **changes)
    name = str(changes.get("backbone", "")).rpartition("/")[2]
    original_import = builtins.__import__

    def guarded_import(module: str, *args: Any, **kwargs: Any) -> Any:
        assert name == "" or module != name
        return original_import(module, *args, **kwargs)

    def refuse(*args: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(builtins, "__import__", guarded_import)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    status, out, err = program("knn", "--checkpoint", str(file), "--dataset", "patterns")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and message in err, err


def run_with_little_memory(args: list[str]) -> int:
    limit_memory(1000 * 2**20)
    return main.main(args)


@pytest.mark.parametrize("name", ["torchvision/vit_h_14", "torchvision/regnet_y_128gf", "resnet50"])
def test_a_file_that_describes_a_huge_network_takes_no_memory(name: str, tmp_path: Path) -> None:
    """These networks have 2 to 200 GB of weights."""
    changes: dict[str, Any] = {"backbone": name, "image_size": 14 * 1024}
    if name == "resnet50":
        changes.update(width=4096, stem="cifar")
    file = write_file(tmp_path / "a.safetensors", **changes)
    process = Started(run_with_little_memory, ["knn", str(file), "--dataset", "patterns"])
    _, err = process.communicate()
    assert process.returncode == 2 and "weights do not fit" in err, err
    assert err.count("\n") == 1
