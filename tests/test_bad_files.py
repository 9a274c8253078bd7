"""Damaged, foreign and hostile files: one line on stderr, the right status, none of their code run, nothing lost.

The tables list what was tried, with the answer; `pytest -v` shows each as a test of its own. What lies in a checkpoint
that is whole but untrue is in test_evaluation.py, images that are none in test_images.py, wrong flags in test_cli.py.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save
from torchvision.datasets import CIFAR10

from simsiam import SimSiam, load_backbone
from simsiam.commands.pretrain import STATEFUL
from simsiam.config.commands import COMMANDS
from simsiam.data import load_dataset
from simsiam.data.dataset import DatasetSpec
from simsiam.evaluation.checkpoint import load_weights
from tests.helpers import CIFAR_FOLDER, SMALL, Program, linked, rows, same_weights
from utils.checkpoint_io import read_resumable
from utils.errors import UserError

PAGE = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch HACKED",)


class Good(NamedTuple):
    """A whole run's files, for others to be made of."""

    raw: bytes  # of its last.ckpt
    content: dict[str, Any]  # likewise, read
    safe: bytes  # of its backbone.safetensors
    weights: dict[str, torch.Tensor]  # likewise, read


@pytest.fixture(scope="module")
def good(trained: Path) -> Good:
    last, safe = trained / "checkpoints" / "last.ckpt", trained / "backbone.safetensors"
    return Good(last.read_bytes(), torch.load(last, weights_only=True), safe.read_bytes(), load_file(safe))


def saved(content: object, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def compressed(raw: bytes) -> bytes:
    """The same archive as a bomb would be: a small file that unpacks to a large one."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return zipped({name: archive.read(name) for name in archive.namelist()}, zipfile.ZIP_DEFLATED)


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


Made = Callable[[Good], bytes]
CHECKPOINTS: dict[str, tuple[Made, str]] = {
    "empty.ckpt": (lambda g: b"", "empty"),
    "one_byte.ckpt": (lambda g: b"P", "not a checkpoint, or cut short"),
    "half.ckpt": (lambda g: g.raw[: len(g.raw) // 2], "not a checkpoint, or cut short"),
    "without_its_end.ckpt": (lambda g: g.raw[:-1000], "not a checkpoint, or cut short"),
    "zeros.ckpt": (lambda g: bytes(len(g.raw)), "not a checkpoint, or cut short"),
    "bit_in_the_weights.ckpt": (lambda g: flipped(g.raw, len(g.raw) // 2), "damaged (the checksum of"),
    "bit_at_the_start.ckpt": (lambda g: flipped(g.raw, 2), "damaged (the checksum of"),
    "bit_in_the_directory.ckpt": (lambda g: flipped(g.raw, len(g.raw) - 200), "ckpt"),
    "doubled.ckpt": (lambda g: g.raw + g.raw[: len(g.raw) // 2], "not a checkpoint, or cut short"),
    "page.ckpt": (lambda g: PAGE, "not a checkpoint, or cut short"),
    "picture.ckpt": (lambda g: b"\x89PNG\r\n\x1a\n" + bytes(500), "not a checkpoint, or cut short"),
    "gzipped.ckpt": (lambda g: gzip.compress(g.raw, 1), "not a checkpoint, or cut short"),
    "compressed.ckpt": (lambda g: compressed(g.raw), "compressed"),
    "zip_of_something.ckpt": (lambda g: zipped({"readme.txt": b"hello"}), "not readable as a checkpoint"),
    "numpy.ckpt": (lambda g: zipped({"arr_0.npy": b"\x93NUMPY"}), "not readable as a checkpoint"),
    "plain_pickle.ckpt": (lambda g: pickle.dumps({"state_dict": {}}), "not a checkpoint, or cut short"),
    "plain_pickle_bomb.ckpt": (lambda g: pickle.dumps(Bomb()), "not a checkpoint, or cut short"),
    "bomb.ckpt": (lambda g: saved(Bomb()), "refused, nothing of it was run"),
    "bomb_among_weights.ckpt": (
        lambda g: saved(g.content | {"state_dict": g.content["state_dict"] | {"x": Bomb()}}),
        "refused, nothing of it was run",
    ),
    "namespace_of_old_lightning.ckpt": (
        lambda g: saved(g.content | {"hyper_parameters": argparse.Namespace(width=4)}),
        "refused, nothing of it was run",
    ),
    "whole_module.ckpt": (lambda g: saved(torch.nn.Linear(2, 2)), "refused, nothing of it was run"),
    "old_format.ckpt": (
        lambda g: saved(g.content, _use_new_zipfile_serialization=False),
        "not a checkpoint, or cut short",
    ),
    "list.ckpt": (lambda g: saved([1, 2]), "not a checkpoint"),
    "tensor.ckpt": (lambda g: saved(torch.zeros(3)), "not a checkpoint"),
    "torchvision_weights.ckpt": (
        lambda g: saved(timm.create_model("resnet18", num_classes=0).state_dict()),
        "not a checkpoint of this program",
    ),
    "other_library.ckpt": (
        lambda g: saved({"model": {"encoder_q.conv1.weight": torch.zeros(1)}, "epoch": 3}),
        "not a checkpoint of this program",
    ),
    "other_lightning_module.ckpt": (
        lambda g: saved({"state_dict": {"backbone.0.weight": torch.zeros(1)}, "hyper_parameters": {"lr": 0.1}}),
        "does not say its backbone",
    ),
    "wider.ckpt": (
        lambda g: saved(g.content | {"hyper_parameters": g.content["hyper_parameters"] | {"width": 8}}),
        "do not fit",
    ),
    "unknown_setting.ckpt": (
        lambda g: saved(g.content | {"hyper_parameters": g.content["hyper_parameters"] | {"bogus": 8}}),
        "not a checkpoint of this program",
    ),
    "weightless.ckpt": (lambda g: saved(g.content | {"state_dict": {}}), "do not fit"),
    "without_one_weight.ckpt": (
        lambda g: saved(g.content | {"state_dict": dict(list(g.content["state_dict"].items())[1:])}),
        "do not fit",
    ),
    "numbers_for_weights.ckpt": (
        lambda g: saved(g.content | {"state_dict": dict.fromkeys(g.content["state_dict"], 1.0)}),
        "do not fit",
    ),
    "empty.safetensors": (lambda g: b"", "not a safetensors file"),
    "half.safetensors": (lambda g: g.safe[: len(g.safe) // 2], "not a safetensors file"),
    "header_alone.safetensors": (lambda g: g.safe[:200], "not a safetensors file"),
    "page.safetensors": (lambda g: PAGE, "not a safetensors file"),
    "huge_header.safetensors": (lambda g: struct.pack("<Q", 2**60) + b"{}", "not a safetensors file"),
    "header_of_lists.safetensors": (lambda g: safetensors(b"[" * 5000), "not a safetensors file"),
    "outside_the_file.safetensors": (
        lambda g: safetensors(b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
        "not a safetensors file",
    ),
    "pickle_bomb.safetensors": (lambda g: pickle.dumps(Bomb()), "not a safetensors file"),
    "checkpoint.safetensors": (lambda g: g.raw, "not a safetensors file"),
    "other_library.safetensors": (lambda g: save({"x": torch.zeros(1)}), "not a backbone of this program"),
    "bare.safetensors": (lambda g: save(g.weights), "not a backbone of this program"),
    "head.safetensors": (lambda g: save(g.weights, {"kind": "simsiam-head"}), "not a backbone of this program"),
    "untold.safetensors": (lambda g: save(g.weights, {"kind": "simsiam-backbone"}), "does not say its backbone"),
    "no_json.safetensors": (
        lambda g: save(g.weights, {"kind": "simsiam-backbone", "width": "{"}),
        "not a safetensors file",
    ),
}
WHOLE = {  # as far as resuming reads them; what does not fit is found when it is loaded
    *("wider.ckpt", "unknown_setting.ckpt", "weightless.ckpt", "without_one_weight.ckpt", "numbers_for_weights.ckpt"),
}
USES = [[command, "--checkpoint"] for command in ("knn", "linear", "finetune", "embed", "neighbours", "export")]
USES += [[*SMALL, "--model-path"], [*SMALL, "--epochs", "3", "--ckpt-dir"]]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_bad_checkpoint(
    name: str, good: Good, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the three readers of checkpoints raises what names the file, which stays as it was, with its folder."""
    monkeypatch.chdir(tmp_path)
    make, answer = CHECKPOINTS[name]
    (tmp_path / name).write_bytes(make(good))
    before = (tmp_path / name).read_bytes()
    with pytest.raises(ValueError) as error:
        load_backbone(name)
    assert answer in str(error.value)
    with pytest.raises(ValueError) as error:
        load_weights(SimSiam("resnet10", width=4, out_dim=32, h_dim=16), name)
    assert name in str(error.value) and (answer in str(error.value) or "another architecture" in str(error.value))
    if name not in WHOLE:
        with pytest.raises(ValueError) as error:
            read_resumable(Path(name), STATEFUL)
        assert name in str(error.value)
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == before


@pytest.mark.slow("each file once more, through the command; the readers and one file for each command are quick tests")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_bad_checkpoint_is_not_resumed_from(
    name: str, good: Good, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(CHECKPOINTS[name][0](good))
    status, out, err = program(*SMALL, "--epochs", "3", "--ckpt-dir", name)
    assert (status, out) == (2, "") and err.count("\n") == 1 and name in err, err
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["bomb.ckpt", "half.safetensors"])
@pytest.mark.parametrize("use", USES, ids=lambda use: use[0] if use[0] in COMMANDS else use[-1])
def test_a_bad_checkpoint_is_answered_in_one_line_by_whatever_takes_one(
    use: list[str], name: str, good: Good, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, answer = CHECKPOINTS[name]
    (tmp_path / name).write_bytes(make(good))
    status, out, err = program(*use, name)
    assert (status, out) == (2, "") and err.count("\n") == 1 and name in err, err
    assert answer in err or use[-1] == "--ckpt-dir"  # which takes no .safetensors
    assert os.listdir(tmp_path) == [name]


PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "row", "settings", "global_step")
VALUES = (None, "x", [], {"a": 1}, [{}])
COMBINATIONS = [  # each part and each value once in the quick suite
    (name, value) if i % len(VALUES) == j else pytest.param(name, value, marks=pytest.mark.slow("as those beside it"))
    for i, name in enumerate(PARTS)
    for j, value in enumerate(VALUES)
]


@pytest.mark.parametrize(("name", "value"), COMBINATIONS)
def test_a_checkpoint_with_a_part_that_is_something_else(
    name: str, value: object, trained: Path, program: Program, tmp_path: Path
) -> None:
    """What Lightning would restore, and fail, is answered as well, and the new run's folder is not kept."""
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    content["settings"]["epochs"] = 3
    if (name, value) == ("row", {"a": 1}):  # it is told to people alone; what a run goes on with is elsewhere
        value = {"epoch": "two"}
    torch.save(content | {name: value}, tmp_path / "a.ckpt")
    status, _, err = program(*SMALL, "--epochs", "3", "--ckpt-dir", str(tmp_path / "a.ckpt"))
    assert status == 2 and err.count("\n") == 1 and "a.ckpt" in err, err
    assert not (tmp_path / "runs" / "simsiam_patterns").exists()


# ---------------------------------------------------------------- CIFAR-10's files

NOT_PUBLISHED = "data_batch_2 is damaged (its MD5 is not the published one)"
BATCHES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda raw: b"", NOT_PUBLISHED),
    "cut short": (lambda raw: raw[:-1], NOT_PUBLISHED),
    "a flipped bit": (lambda raw: flipped(raw, 1_000_000), NOT_PUBLISHED),
    "a page": (lambda raw: PAGE, NOT_PUBLISHED),
    "a bomb": (lambda raw: pickle.dumps(Bomb()), NOT_PUBLISHED),
}
FORGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "a bomb": (lambda: pickle.dumps(Bomb()), "names posix.system, which is not plain data"),
    "a bomb among images": (lambda: pickle.dumps({"data": np.zeros(3), "labels": Bomb()}), "not plain data"),
    "an array of objects": (lambda: pickle.dumps({"data": np.array([Bomb()], dtype=object)}), "not plain data"),
    "a function by name": (lambda: b"cbuiltins\neval\n.", "not plain data"),
    "a module": (lambda: b"cos\nsystem\n(S'touch HACKED'\ntR.", "not plain data"),
    "other names": (lambda: pickle.dumps({"pixels": 1}), "not readable"),
    "a list": (lambda: pickle.dumps([1, 2]), "not readable"),
    "no pickle": (lambda: PAGE, "not readable"),
    "cut short": (lambda: pickle.dumps({"data": np.zeros(999)})[:-20], "not readable"),
}


@pytest.mark.parametrize("what", BATCHES)
def test_a_bad_batch(
    what: str, cifar10_dir: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = linked(cifar10_dir, tmp_path / "data", without=("data_batch_2",))
    make, answer = BATCHES[what]
    content = make((cifar10_dir / CIFAR_FOLDER / "data_batch_2").read_bytes())
    (root / CIFAR_FOLDER / "data_batch_2").write_bytes(content)
    status, out, err = program(*SMALL, "--dataset", "cifar10", "--data-dir", "data")
    assert (status, out) == (2, "") and err.count("\n") == 1 and answer in err
    assert (root / CIFAR_FOLDER / "data_batch_2").read_bytes() == content and os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize("what", FORGED)
def test_a_batch_with_a_forged_md5_and_even_sha256(
    what: str, cifar10_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = linked(cifar10_dir, tmp_path / "data", without=("data_batch_2",))
    make, answer = FORGED[what]
    (root / CIFAR_FOLDER / "data_batch_2").write_bytes(make())
    md5 = hashlib.md5(make()).hexdigest()  # as if somebody had found a collision
    files = [[name, md5 if name == "data_batch_2" else known] for name, known in CIFAR10.train_list]
    monkeypatch.setattr(CIFAR10, "train_list", files)
    with pytest.raises(UserError, match="data_batch_2 is forged"):
        load_dataset(DatasetSpec("cifar10", "data"))
    monkeypatch.setattr("simsiam.data.cifar.SHA256", {})
    with pytest.raises(UserError) as error:
        load_dataset(DatasetSpec("cifar10", "data"))
    assert answer in str(error.value) and os.listdir(tmp_path) == ["data"]


def archive(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=0) as tar:
        for name, member in members.items():
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
    return buffer.getvalue()


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the download failed"),
    "a page": (lambda: PAGE, "the download failed"),
    "cut short": (lambda: archive({"a": bytes(10**5)})[:5000], "the download failed"),
    "a path upwards": (
        lambda: archive({"../evil": b"evil", f"{CIFAR_FOLDER}/../../evil": b"evil"}),
        "the download failed",
    ),
    "an absolute path": (lambda: archive({"/tmp/evil_of_simsiam": b"evil"}), "the download failed"),
    "a link outwards": (
        lambda: archive({CIFAR_FOLDER: link(CIFAR_FOLDER, "/tmp"), f"{CIFAR_FOLDER}/evil_of_simsiam": b"evil"}),
        "the download failed",
    ),
    "a link for a file": (
        lambda: archive({"x": link(f"{CIFAR_FOLDER}/data_batch_1", "/etc/passwd")}),
        "the download failed",
    ),
    "bombs for batches": (
        lambda: archive({f"{CIFAR_FOLDER}/{file}": pickle.dumps(Bomb()) for file, _ in CIFAR10.train_list}),
        "the download failed",
    ),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_a_bad_archive_with_the_right_checksum(
    what: str, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched by hand into the data folder, as the message recommends."""
    monkeypatch.chdir(tmp_path)
    make, answer = ARCHIVES[what]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / CIFAR10.filename).write_bytes(make())
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(make()).hexdigest())
    flags = ["--dataset", "cifar10", "--data-dir", "data", "--data-url", "http://127.0.0.1:9/x"]
    status, out, err = program(*SMALL, *flags)
    assert (status, out) == (2, "") and err.count("\n") == 1 and answer in err, err
    assert not list(tmp_path.rglob("*evil*")) and not Path("/tmp/evil_of_simsiam").exists()
    assert not Path("HACKED").exists() and not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- the folder of a run


def damaged(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda run: (run / file).write_bytes(content)


def both_checkpoints(run: Path) -> None:
    for name in ("last.ckpt", "last.previous.ckpt"):
        (run / "checkpoints" / name).write_bytes(PAGE)


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "config.yaml with a tag that would run code": (
        damaged("config.yaml", b"settings: !!python/object/apply:os.system ['touch HACKED']\n"),
        "config.yaml is damaged: start anew with --overwrite",
    ),
    "config.yaml empty": (damaged("config.yaml", b""), "config.yaml is damaged"),
    "config.yaml cut short": (lambda run: os.truncate(run / "config.yaml", 60), "another --exp-name"),
    "config.yaml a page": (damaged("config.yaml", PAGE), "config.yaml is damaged"),
    "config.yaml not text": (damaged("config.yaml", b"\xff\xfe\x00settings:"), "config.yaml is damaged"),
    "config.yaml without end": (damaged("config.yaml", b"settings: " + b"[" * 3000), "config.yaml is damaged"),
    "config.yaml a billion laughs": (
        damaged("config.yaml", b"a: &a [1]\n" + b"".join(b"%c: &%c [*%c,*%c,*%c]\n" % (i, i, i - 1, i - 1, i - 1)
                                                             for i in range(98, 110)) + b"settings: *m\n"),
        "config.yaml is damaged",
    ),
    "both checkpoints pages": (both_checkpoints, "--overwrite starts anew"),
    "checkpoints a file": (
        lambda run: (shutil.rmtree(run / "checkpoints"), (run / "checkpoints").write_text("x")),
        "checkpoints is a file, not a folder",
    ),
}  # fmt: skip


@pytest.fixture
def unfinished(program: Program, trained: Path, tmp_path: Path) -> Path:
    """A run as a kill on its last metres leaves it."""
    run = tmp_path / "runs" / trained.name
    shutil.copytree(trained, run)
    (run / "summary.json").unlink()
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "last.previous.ckpt")
    return run


@pytest.mark.parametrize("what", FOLDERS)
def test_a_bad_run_folder(
    what: str, unfinished: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damage, answer = FOLDERS[what]
    damage(unfinished)
    before = {file: file.read_bytes() for file in unfinished.rglob("*") if file.is_file()}
    status, out, err = program(*SMALL, "--epochs", "2")
    assert (status, out) == (2, "") and err.count("\n") == 1 and answer in err, err
    assert {file: file.read_bytes() for file in unfinished.rglob("*") if file.is_file()} == before
    assert not Path("HACKED").exists()


MENDED: dict[str, Callable[[Path], object]] = {
    "metrics.jsonl cut in the middle of a line": lambda run: os.truncate(run / "metrics.jsonl", 50),
    "metrics.jsonl empty": damaged("metrics.jsonl", b""),
    "metrics.jsonl gone": lambda run: (run / "metrics.jsonl").unlink(),
    "metrics.jsonl a page": damaged("metrics.jsonl", PAGE),
    "metrics.jsonl not text": damaged("metrics.jsonl", b"\xff\xfe\x00\n\x80"),
    "metrics.jsonl with a row too many": lambda run: damaged("metrics.jsonl", (run / "metrics.jsonl").read_bytes() * 2)(
        run
    ),
    "last.ckpt cut short": lambda run: os.truncate(run / "checkpoints" / "last.ckpt", 3000),
    "last.ckpt empty": damaged("checkpoints/last.ckpt", b""),
    "last.ckpt gone": lambda run: (run / "checkpoints" / "last.ckpt").unlink(),
    "best.ckpt a page": damaged("checkpoints/best.ckpt", PAGE),
    "backbone.safetensors a page": damaged("backbone.safetensors", PAGE),
    "what a kill left behind": damaged("checkpoints/.last.ckpt.1.partial", b"half"),
}


@pytest.mark.parametrize("what", MENDED)
def test_what_the_run_mends_by_itself(
    what: str, unfinished: Path, trained: Path, program: Program, tmp_path: Path
) -> None:
    MENDED[what](unfinished)
    status, _, err = program(*SMALL, "--epochs", "2")
    assert status == 0 and (not err or (err.count("\n") == 1 and "going back to the checkpoint before it" in err)), err
    assert rows(unfinished) == rows(trained) and same_weights(unfinished, trained)
    summary = json.loads((unfinished / "summary.json").read_text())
    assert summary == json.loads((trained / "summary.json").read_text())
    load_backbone(unfinished)
    assert not list(unfinished.rglob("*.partial"))
