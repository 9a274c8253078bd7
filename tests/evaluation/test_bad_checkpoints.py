"""Damaged, foreign and hostile checkpoints: status 2, one line on stderr, nothing run or changed.

CHECKPOINTS lists the files; `pytest -v` shows each as its own test. Files with invalid metadata are
in test_bad_metadata.py. Wrong flags are in test_wrong_flags.py and tests/config/test_cli.py.
"""

import argparse
import gzip
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from safetensors.torch import load_file, save

from simsiam import SimSiam, load_backbone
from simsiam.commands.resume import REQUIRED_STATES
from simsiam.config.commands import COMMANDS
from simsiam.evaluation.starting_weights import load_weights
from tests.helpers import SMALL, Program, prints_only_header
from tests.images import PAGE, Bomb, flip_bit
from utils.checkpoint_io import read_resumable


class Good(NamedTuple):
    """The files of a finished run, from which bad files are made."""

    raw: bytes  # last.ckpt
    content: dict[str, Any]  # what last.ckpt contains
    safe: bytes  # backbone.safetensors
    weights: dict[str, torch.Tensor]  # what backbone.safetensors contains


@pytest.fixture(scope="module")
def good(trained: Path) -> Good:
    last = trained / "checkpoints" / "last.ckpt"
    backbone = trained / "backbone.safetensors"
    return Good(
        raw=last.read_bytes(),
        content=torch.load(last, weights_only=True),
        safe=backbone.read_bytes(),
        weights=load_file(backbone),
    )


def saved(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def with_hparam(good: Good, name: str, value: object) -> bytes:
    hparams = good.content["hyper_parameters"] | {name: value}
    return saved(good.content | {"hyper_parameters": hparams})


def with_state(good: Good, state: dict[str, object]) -> bytes:
    return saved(good.content | {"state_dict": state})


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def compressed(raw: bytes) -> bytes:
    """The same archive compressed, as in a zip bomb: a small file that unpacks to a large one."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    return zipped(files, zipfile.ZIP_DEFLATED)


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


# Name of a file -> a function that makes its content, and a part of the message.
CHECKPOINTS: dict[str, tuple[Callable[[Good], bytes], str]] = {
    "empty.ckpt": (lambda g: b"", "empty"),
    "one_byte.ckpt": (lambda g: b"P", "not a checkpoint, or cut short"),
    "half.ckpt": (lambda g: g.raw[: len(g.raw) // 2], "not a checkpoint, or cut short"),
    "without_its_end.ckpt": (lambda g: g.raw[:-1000], "not a checkpoint, or cut short"),
    "zeros.ckpt": (lambda g: bytes(len(g.raw)), "not a checkpoint, or cut short"),
    "bit_in_the_weights.ckpt": (
        lambda g: flip_bit(g.raw, len(g.raw) // 2),
        "damaged (the checksum of",
    ),
    "bit_at_the_start.ckpt": (lambda g: flip_bit(g.raw, 2), "damaged (the checksum of"),
    "bit_in_the_directory.ckpt": (lambda g: flip_bit(g.raw, len(g.raw) - 200), "ckpt"),
    "doubled.ckpt": (lambda g: g.raw + g.raw[: len(g.raw) // 2], "not a checkpoint, or cut short"),
    "page.ckpt": (lambda g: PAGE, "not a checkpoint, or cut short"),
    "picture.ckpt": (lambda g: b"\x89PNG\r\n\x1a\n" + bytes(500), "not a checkpoint, or cut short"),
    "gzipped.ckpt": (lambda g: gzip.compress(g.raw, 1), "not a checkpoint, or cut short"),
    "compressed.ckpt": (lambda g: compressed(g.raw), "compressed"),
    "zip_of_something.ckpt": (
        lambda g: zipped({"readme.txt": b"hello"}),
        "not readable as a checkpoint",
    ),
    "numpy.ckpt": (lambda g: zipped({"arr_0.npy": b"\x93NUMPY"}), "not readable as a checkpoint"),
    "plain_pickle.ckpt": (
        lambda g: pickle.dumps({"state_dict": {}}),
        "not a checkpoint, or cut short",
    ),
    "plain_pickle_bomb.ckpt": (lambda g: pickle.dumps(Bomb()), "not a checkpoint, or cut short"),
    "bomb.ckpt": (lambda g: saved(Bomb()), "none of its code was run"),
    "bomb_among_weights.ckpt": (
        lambda g: with_state(g, g.content["state_dict"] | {"x": Bomb()}),
        "none of its code was run",
    ),
    "namespace_of_old_lightning.ckpt": (
        lambda g: saved(g.content | {"hyper_parameters": argparse.Namespace(width=4)}),
        "none of its code was run",
    ),
    "whole_module.ckpt": (lambda g: saved(torch.nn.Linear(2, 2)), "none of its code was run"),
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
        lambda g: saved(
            {"state_dict": {"backbone.0.weight": torch.zeros(1)}, "hyper_parameters": {"lr": 0.1}}
        ),
        "it has no valid backbone",
    ),
    "wider.ckpt": (
        lambda g: with_hparam(g, "width", 8),
        "do not fit",
    ),
    "unknown_setting.ckpt": (
        lambda g: with_hparam(g, "bogus", 8),
        "not a checkpoint of this program",
    ),
    "huge.ckpt": (
        lambda g: with_hparam(g, "out_dim", 2**40),
        "a size of 1099511627776",
    ),
    "weightless.ckpt": (lambda g: with_state(g, {}), "do not fit"),
    "without_one_weight.ckpt": (
        lambda g: with_state(g, dict(list(g.content["state_dict"].items())[1:])),
        "do not fit",
    ),
    "numbers_for_weights.ckpt": (
        lambda g: with_state(g, dict.fromkeys(g.content["state_dict"], 1.0)),
        "do not fit",
    ),
    "empty.safetensors": (lambda g: b"", "not a safetensors file"),
    "half.safetensors": (lambda g: g.safe[: len(g.safe) // 2], "not a safetensors file"),
    "header_alone.safetensors": (lambda g: g.safe[:200], "not a safetensors file"),
    "page.safetensors": (lambda g: PAGE, "not a safetensors file"),
    "huge_header.safetensors": (
        lambda g: struct.pack("<Q", 2**60) + b"{}",
        "not a safetensors file",
    ),
    "header_of_lists.safetensors": (lambda g: safetensors(b"[" * 5000), "not a safetensors file"),
    "outside_the_file.safetensors": (
        lambda g: safetensors(b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
        "not a safetensors file",
    ),
    "pickle_bomb.safetensors": (lambda g: pickle.dumps(Bomb()), "not a safetensors file"),
    "checkpoint.safetensors": (lambda g: g.raw, "not a safetensors file"),
    "other_library.safetensors": (
        lambda g: save({"x": torch.zeros(1)}),
        "not a backbone of this program",
    ),
    "bare.safetensors": (lambda g: save(g.weights), "not a backbone of this program"),
    "head.safetensors": (
        lambda g: save(g.weights, {"kind": "simsiam-head"}),
        "not a backbone of this program",
    ),
    "without_metadata.safetensors": (
        lambda g: save(g.weights, {"kind": "simsiam-backbone"}),
        "it has no valid backbone",
    ),
    "no_json.safetensors": (
        lambda g: save(g.weights, {"kind": "simsiam-backbone", "width": "{"}),
        "not a safetensors file",
    ),
}
# --model-path reads files of other programs too, so it says something else about these files.
# None: it takes the file.
FOREIGN: dict[str, str | None] = {
    "old_format.ckpt": None,
    "list.ckpt": "it has no weights by name",
    "tensor.ckpt": "it has no weights by name",
    "torchvision_weights.ckpt": "it holds a resnet18 of width 64 with the imagenet stem",
    "other_library.ckpt": "do not fit a resnet10",
    "other_lightning_module.ckpt": "has no weights of this run's backbone",
    "other_library.safetensors": "has no weights of this run's backbone",
    "bare.safetensors": None,
}
# `read_resumable` accepts these files. Their faults are found when their weights are loaded.
RESUMABLE = {
    "wider.ckpt",
    "huge.ckpt",
    "unknown_setting.ckpt",
    "weightless.ckpt",
    "without_one_weight.ckpt",
    "numbers_for_weights.ckpt",
}
EVALUATIONS = ("knn", "linear", "finetune", "embed", "neighbours", "export")
USES = [[command, "--checkpoint"] for command in EVALUATIONS]
USES += [[*SMALL, "--model-path"], [*SMALL, "--epochs", "3", "--ckpt-dir"]]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_each_reader_of_checkpoints_refuses_a_bad_file(
    name: str, good: Good, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the file. The file and its folder stay as they were."""
    monkeypatch.chdir(tmp_path)
    make, message = CHECKPOINTS[name]
    (tmp_path / name).write_bytes(make(good))
    before = (tmp_path / name).read_bytes()
    with pytest.raises(ValueError) as error:
        load_backbone(name)
    assert message in str(error.value)
    model = SimSiam("resnet10", width=4, out_dim=32, h_dim=16)
    message = FOREIGN.get(name, message)
    if message is None:
        load_weights(model, name)
    else:
        with pytest.raises(ValueError) as error:
            load_weights(model, name)
        assert name in str(error.value) and message in str(error.value)
    if name not in RESUMABLE:
        with pytest.raises(ValueError) as error:
            read_resumable(Path(name), REQUIRED_STATES)
        assert name in str(error.value)
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == before


@pytest.mark.slow("all files again, by the command; the readers and some files are quick tests")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_run_does_not_resume_from_a_bad_file(
    name: str, good: Good, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, _ = CHECKPOINTS[name]
    (tmp_path / name).write_bytes(make(good))
    status, out, err = program(*SMALL, "--epochs", "3", "--ckpt-dir", name)
    assert status == 2 and prints_only_header(out) and err.count("\n") == 1 and name in err, err
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["bomb.ckpt", "half.safetensors"])
@pytest.mark.parametrize("use", USES, ids=lambda use: use[0] if use[0] in COMMANDS else use[-1])
def test_each_command_refuses_a_bad_file_in_one_line(
    use: list[str],
    name: str,
    good: Good,
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = CHECKPOINTS[name]
    (tmp_path / name).write_bytes(make(good))
    status, out, err = program(*use, name)
    assert status == 2 and prints_only_header(out) and err.count("\n") == 1 and name in err, err
    if (use[-1], name) == ("--ckpt-dir", "half.safetensors"):
        message = "weights alone, which no run can resume from"
    assert message in err
    assert os.listdir(tmp_path) == [name]
