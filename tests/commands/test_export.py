"""`export`: each format, loaded by its own runtime, gives the features of the checkpoint."""

import importlib.util
import json
import resource
import signal
from pathlib import Path

import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import main
from simsiam import load_backbone
from simsiam.commands import export as export_command
from tests.helpers import Program, read_summary, with_cifar_stem
from tests.processes import Started

BATCHES = (1, 3, 64)
FORMATS = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}
METADATA = {
    "backbone",
    "width",
    "stem",
    "image_size",
    "mean",
    "std",
    "classes",
    "settings",
    "versions",
    "commit",
    "row",
}


def exported(format: str, run: Path, program: Program, folder: Path) -> Path:
    output = folder / f"b{FORMATS[format]}"
    flags = ["--format", format, "--output", str(output), "--results-dir", str(folder / "results")]
    status, out, err = program("export", "--checkpoint", str(run), *flags)
    assert (status, err) == (0, "") and str(output) in out, err
    compared = read_summary(folder / "results" / f"export_{format}")["largest_difference"]
    assert list(compared) == ["1", "32", "64"]  # by size of the batch
    return output


def check_metadata(metadata: dict, run: Path) -> None:
    assert metadata.keys() == METADATA | {"checkpoint"}
    assert metadata["backbone"] == "resnet10"
    assert (metadata["width"], metadata["image_size"]) == (4, 32)
    assert metadata["mean"] == pytest.approx(load_backbone(run).mean)
    assert metadata["std"][0] > 0
    assert metadata["classes"][0] == "airplane"
    assert metadata["settings"]["seed"] == 0
    assert "torch" in metadata["versions"]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert metadata["row"]["kNN_accuracy"] == last["kNN_accuracy"]
    assert metadata["row"]["epoch"] == 2


def test_safetensors(cifar10_run: Path, program: Program, tmp_path: Path) -> None:
    output = exported("safetensors", cifar10_run, program, tmp_path)
    with safe_open(output, "pt") as file:
        metadata = dict(file.metadata())
    del metadata["kind"]
    metadata = {name: json.loads(value) for name, value in metadata.items()}
    check_metadata(metadata, cifar10_run)
    images = torch.randn(5, 3, 32, 32)
    assert torch.equal(load_backbone(output)(images), load_backbone(cifar10_run)(images))


def test_torch_export(cifar10_run: Path, program: Program, tmp_path: Path) -> None:
    extra = {"metadata.json": ""}
    output = exported("torch-export", cifar10_run, program, tmp_path)
    loaded = torch.export.load(str(output), extra_files=extra)
    check_metadata(json.loads(extra["metadata.json"]), cifar10_run)
    for batch in BATCHES:
        images = torch.randn(batch, 3, 32, 32)
        torch.testing.assert_close(
            loaded.module()(images), load_backbone(cifar10_run)(images), atol=1e-6, rtol=1e-5
        )


@pytest.mark.slow(
    "an export more; the README's export to ONNX, compared by the command itself, is a quick test"
)
def test_onnx(cifar10_run: Path, program: Program, tmp_path: Path) -> None:
    output = exported("onnx", cifar10_run, program, tmp_path)
    properties = onnx.load(str(output)).metadata_props
    check_metadata({entry.key: json.loads(entry.value) for entry in properties}, cifar10_run)
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    assert [(x.name, x.shape) for x in session.get_inputs()] == [("images", ["batch", 3, 32, 32])]
    assert [(x.name, x.shape) for x in session.get_outputs()] == [("features", ["batch", 32])]
    for batch in BATCHES:
        images = torch.randn(batch, 3, 32, 32)
        features = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        torch.testing.assert_close(
            features, load_backbone(cifar10_run)(images), atol=1e-5, rtol=1e-4
        )


@pytest.mark.slow("a run of the full network; the README's code does the same in a quick test")
def test_torchvision_and_timm_take_the_safetensors_file_strictly(
    program: Program, tmp_path: Path
) -> None:
    import torchvision

    flags = ["--dataset", "patterns", "--train-images", "4", "--test-images", "64"]
    flags += ["--knn-every", "0", "--epochs", "1", "--batch-size", "2", "--accelerator", "cpu"]
    flags += ["--save-dir", str(tmp_path), "--exp-name", "run"]
    assert program(*flags)[0] == 0
    output = exported("safetensors", tmp_path / "run", program, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    expected = load_backbone(tmp_path / "run")(images)
    for theirs in (torchvision.models.resnet18(), timm.create_model("resnet18", num_classes=0)):
        network = with_cifar_stem(theirs).eval()
        network.load_state_dict(load_file(output), strict=True)
        torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "format",
    [
        *list(FORMATS)[:2],
        pytest.param("onnx", marks=pytest.mark.slow("an export more, as those beside it")),
    ],
)
def test_a_file_with_other_features_is_not_written(
    format: str, trained: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_backbone = export_command.write_backbone

    def write(
        path: Path, format: str, backbone: torch.nn.Module, images: torch.Tensor, metadata: dict
    ) -> None:
        other_backbone = load_backbone(trained)
        other_backbone.layer4[0].bn2.bias.data += 0.01
        write_backbone(path, format, other_backbone, images, metadata)

    monkeypatch.setattr(export_command, "write_backbone", write)
    output = tmp_path / f"b{FORMATS[format]}"
    flags = ["--format", format, "--output", str(output)]
    flags += ["--results-dir", str(tmp_path / "results")]
    status, _, err = program("export", "--checkpoint", str(trained), *flags)
    assert status == 2
    assert "features differ" in err
    assert not output.exists()
    assert not list(tmp_path.glob(".*"))  # nor a temporary file


def test_a_file_whose_features_are_not_finite_is_not_written(
    trained: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(*_: object) -> dict[int, float]:
        return {1: 0.0, 3: float("nan"), 64: 0.0}

    monkeypatch.setattr(export_command, "compare_features", compare)
    output = tmp_path / "b.safetensors"
    flags = ["--output", str(output), "--results-dir", str(tmp_path / "results")]
    status, _, err = program("export", "--checkpoint", str(trained), *flags)
    assert status == 2 and "features differ by nan" in err
    assert not output.exists()


def test_without_onnx_it_says_what_to_install(
    trained: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    absent = {"onnxscript", "onnxruntime"}
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in absent else find(name, *rest),
    )
    flags = ["--format", "onnx", "--results-dir", str(tmp_path / "results")]
    status, _, err = program("export", "--checkpoint", str(trained), *flags)
    assert status == 2
    assert err.endswith("pip install onnxscript onnxruntime\n")
    assert not (tmp_path / "results").exists()


def test_image_size_is_that_of_the_exported_network(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    output = tmp_path / "b.pt2"
    flags = ["--format", "torch-export", "--image-size", "16", "--output", str(output)]
    flags += ["--results-dir", str(tmp_path / "results")]
    status, _, err = program("export", "--checkpoint", str(trained), *flags)
    assert (status, err) == (0, "")
    extra = {"metadata.json": ""}
    network = torch.export.load(str(output), extra_files=extra).module()
    assert json.loads(extra["metadata.json"])["image_size"] == 16
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(
        network(images), load_backbone(trained)(images), rtol=1e-5, atol=1e-6
    )


def export_without_room(args: list[str]) -> int:
    """Run main.py with files of at most 10 kB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    return main.main(args)


def test_a_full_disk_is_reported_in_one_line(trained: Path, tmp_path: Path) -> None:
    """Given an open file, torch.export raises an error with a stack of C++."""
    flags = ["--format", "torch-export", "--results-dir", str(tmp_path)]
    process = Started(export_without_room, ["export", str(trained), *flags])
    _, err = process.communicate()
    assert process.returncode == 2
    assert "backbone.pt2: File too large" in err and err.count("\n") == 1, err
    assert not any(file.is_file() for file in tmp_path.rglob("*"))
