"""Loading: from a run folder, a .ckpt and a .safetensors; strictly; never running what a file contains."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from simsiam import SimSiam, load_backbone
from simsiam.features import extract_features
from tests.conftest import SMALL
from tests.test_resnet import cifar_stem

Program = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import main

    folder = tmp_path_factory.mktemp("runs")
    assert main.main([*SMALL, "--epochs", "1", "--save-dir", str(folder)]) == 0
    return folder / "simsiam_patterns"


def test_all_three_ways_give_the_same_network(run: Path) -> None:
    x = torch.rand(5, 3, 32, 32)
    outputs = []
    for path in (run, str(run), run / "checkpoints" / "last.ckpt", run / "backbone.safetensors"):
        backbone = load_backbone(path)
        assert not backbone.training and backbone.image_size == 32
        assert backbone.mean == pytest.approx(load_backbone(run).mean) and len(backbone.std) == 3
        outputs.append(backbone(x))
    assert all(torch.equal(outputs[0], output) for output in outputs)


def test_load_from_checkpoint_gives_the_module(run: Path) -> None:
    module = SimSiam.load_from_checkpoint(run / "checkpoints" / "last.ckpt").eval()
    x = torch.rand(5, 3, 32, 32)
    assert torch.equal(module(x), load_backbone(run)(x)) and module.hparams["width"] == 4


def test_the_best_checkpoint_loads_as_well(run: Path) -> None:
    SimSiam.load_from_checkpoint(run / "checkpoints" / "best.ckpt")
    load_backbone(run / "checkpoints" / "best.ckpt")


def test_the_loaded_features_are_those_that_were_monitored(run: Path) -> None:
    backbone = load_backbone(run)
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    ours = torch.nn.functional.normalize(backbone((images / 255 - mean[:, None, None]) / std[:, None, None]))
    torch.testing.assert_close(extract_features(backbone, images, mean, std), ours)


def test_timm_takes_the_file_strictly(tmp_path: Path) -> None:
    from utils.export import BACKBONE, write_weights

    trained = SimSiam(out_dim=8, h_dim=4).backbone
    write_weights(tmp_path / "b.safetensors", BACKBONE, trained.state_dict(), {"backbone": "resnet18"})
    theirs = cifar_stem(timm.create_model("resnet18", num_classes=0))
    theirs.load_state_dict(load_file(tmp_path / "b.safetensors"), strict=True)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(theirs.eval()(x), trained.eval()(x), atol=1e-6, rtol=1e-6)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch HACKED",)


def bad_files(good: Path, safe: Path, folder: Path) -> dict[str, str]:
    """File name -> what the message says. Each is a way for a file to be wrong."""
    whole = good.read_bytes()
    directory = bytearray(whole)
    directory[-200] ^= 0x80  # in the names of the archive's directory
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    content = {
        "empty.ckpt": b"",
        "truncated.ckpt": whole[: len(whole) // 2],
        "flipped.ckpt": bytes(flipped),
        "directory.ckpt": bytes(directory),
        "page.ckpt": b"<!DOCTYPE html><html><body>404</body></html>",
        "pickle.ckpt": pickle.dumps({"state_dict": {}}),
        "empty.safetensors": b"",
        "truncated.safetensors": safe.read_bytes()[:200],
        "page.safetensors": b"<!DOCTYPE html><html><body>404</body></html>",
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    torch.save({"state_dict": Bomb(), "hyper_parameters": {}}, folder / "bomb.ckpt")
    torch.save([1, 2], folder / "list.ckpt")
    torch.save({"model": {}}, folder / "foreign.ckpt")
    torch.save(torch.load(good, weights_only=True) | {"state_dict": {}}, folder / "weightless.ckpt")
    with zipfile.ZipFile(folder / "zip.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    save_file({"x": torch.zeros(1)}, folder / "foreign.safetensors")
    return {
        "empty.ckpt": "empty",
        "truncated.ckpt": "cut short",
        "flipped.ckpt": "damaged",
        "directory.ckpt": "ckpt",
        "page.ckpt": "not a checkpoint",
        "pickle.ckpt": "not a checkpoint",
        "bomb.ckpt": "nothing of it was run",
        "list.ckpt": "not a checkpoint",
        "foreign.ckpt": "not a checkpoint of this program",
        "weightless.ckpt": "do not fit",
        "zip.ckpt": "not readable",
        "empty.safetensors": "safetensors",
        "truncated.safetensors": "safetensors",
        "page.safetensors": "safetensors",
        "foreign.safetensors": "not a backbone of this program",
        "missing.ckpt": "no such file",
        "": "no checkpoint in this folder",
    }


def test_every_bad_file_is_answered_in_one_line(
    run: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bad"
    folder.mkdir()
    for name, answer in bad_files(run / "checkpoints" / "last.ckpt", run / "backbone.safetensors", folder).items():
        with pytest.raises(ValueError, match=answer):
            load_backbone(folder / name)
        for flag in ("--model-path", "--ckpt-dir"):
            status, out, err = program(*SMALL, flag, str(folder / name))
            assert (status, out) == (2, "") and err.count("\n") == 1, (name, flag, err)
            assert answer in err or flag == "--ckpt-dir", (name, err)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "HACKED").exists()


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(program: Program, tmp_path: Path) -> None:
    flags = ["--epochs", "3", "--checkpoint-every", "1"]
    assert program(*SMALL, *flags)[0] == 0
    folder = tmp_path / "runs" / "simsiam_patterns"
    (folder / "summary.json").unlink()  # as if it had been killed on its last metres
    last = folder / "checkpoints" / "last.ckpt"
    before = torch.load(last, weights_only=True)["state_dict"]
    last.write_bytes(last.read_bytes()[:-1000])
    status, out, err = program(*SMALL, *flags)
    assert status == 0 and err.count("\n") == 1 and "going back" in err and "last.previous.ckpt" in out
    after = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(before[name], after[name]) for name in before)
