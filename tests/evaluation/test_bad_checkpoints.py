"""Damaged, foreign and hostile checkpoints: one line on stderr, status 2, none of their code run, nothing changed.

The tables list what was tried, with the answer; `pytest -v` shows each as a test of its own. Wrong flags are in
test_context.py and tests/config/test_cli.py.
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
from simsiam.commands.resume import STATEFUL
from simsiam.config.commands import COMMANDS
from simsiam.evaluation.checkpoint import load_weights
from tests.helpers import PAGE, SMALL, Bomb, Program, flipped, is_announcement
from utils.checkpoint_io import read_resumable
from utils.weights import BACKBONE, read_weights, write_weights


class Good(NamedTuple):
    """A whole run's files, for others to be made of."""

    raw: bytes  # of its last.ckpt
    content: dict[str, Any]  # likewise, read
    safe: bytes  # of its backbone.safetensors
    weights: dict[str, torch.Tensor]  # likewise, read


@pytest.fixture(scope="module")
def good(trained: Path) -> Good:
    last, safe = trained / "checkpoints" / "last.ckpt", trained / "backbone.safetensors"
    return Good(
        last.read_bytes(), torch.load(last, weights_only=True), safe.read_bytes(), load_file(safe)
    )


def saved(content: object, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def compressed(raw: bytes) -> bytes:
    """The same archive as a bomb would be: a small file that unpacks to a large one."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return zipped(
            {name: archive.read(name) for name in archive.namelist()}, zipfile.ZIP_DEFLATED
        )


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


Made = Callable[[Good], bytes]
CHECKPOINTS: dict[str, tuple[Made, str]] = {
    "empty.ckpt": (lambda g: b"", "empty"),
    "one_byte.ckpt": (lambda g: b"P", "not a checkpoint, or cut short"),
    "half.ckpt": (lambda g: g.raw[: len(g.raw) // 2], "not a checkpoint, or cut short"),
    "without_its_end.ckpt": (lambda g: g.raw[:-1000], "not a checkpoint, or cut short"),
    "zeros.ckpt": (lambda g: bytes(len(g.raw)), "not a checkpoint, or cut short"),
    "bit_in_the_weights.ckpt": (
        lambda g: flipped(g.raw, len(g.raw) // 2),
        "damaged (the checksum of",
    ),
    "bit_at_the_start.ckpt": (lambda g: flipped(g.raw, 2), "damaged (the checksum of"),
    "bit_in_the_directory.ckpt": (lambda g: flipped(g.raw, len(g.raw) - 200), "ckpt"),
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
        lambda g: saved(g.content | {"state_dict": g.content["state_dict"] | {"x": Bomb()}}),
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
        "does not say its backbone",
    ),
    "wider.ckpt": (
        lambda g: saved(
            g.content | {"hyper_parameters": g.content["hyper_parameters"] | {"width": 8}}
        ),
        "do not fit",
    ),
    "unknown_setting.ckpt": (
        lambda g: saved(
            g.content | {"hyper_parameters": g.content["hyper_parameters"] | {"bogus": 8}}
        ),
        "not a checkpoint of this program",
    ),
    "huge.ckpt": (
        lambda g: saved(
            g.content | {"hyper_parameters": g.content["hyper_parameters"] | {"out_dim": 2**40}}
        ),
        "a size of 1099511627776",
    ),
    "weightless.ckpt": (lambda g: saved(g.content | {"state_dict": {}}), "do not fit"),
    "without_one_weight.ckpt": (
        lambda g: saved(
            g.content | {"state_dict": dict(list(g.content["state_dict"].items())[1:])}
        ),
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
    "untold.safetensors": (
        lambda g: save(g.weights, {"kind": "simsiam-backbone"}),
        "does not say its backbone",
    ),
    "no_json.safetensors": (
        lambda g: save(g.weights, {"kind": "simsiam-backbone", "width": "{"}),
        "not a safetensors file",
    ),
}
WHOLE = {  # as far as resuming reads them; what does not fit is found when it is loaded
    *(
        "wider.ckpt",
        "huge.ckpt",
        "unknown_setting.ckpt",
        "weightless.ckpt",
        "without_one_weight.ckpt",
        "numbers_for_weights.ckpt",
    ),
}
EVALUATIONS = ("knn", "linear", "finetune", "embed", "neighbours", "export")
USES = [[command, "--checkpoint"] for command in EVALUATIONS]
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
    assert name in str(error.value) and answer in str(error.value)
    if name not in WHOLE:
        with pytest.raises(ValueError) as error:
            read_resumable(Path(name), STATEFUL)
        assert name in str(error.value)
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == before


@pytest.mark.slow(
    "each file once more, through the command; the readers and one file for each command are quick tests"
)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_bad_checkpoint_is_not_resumed_from(
    name: str, good: Good, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(CHECKPOINTS[name][0](good))
    status, out, err = program(*SMALL, "--epochs", "3", "--ckpt-dir", name)
    assert status == 2 and is_announcement(out) and err.count("\n") == 1 and name in err, err
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["bomb.ckpt", "half.safetensors"])
@pytest.mark.parametrize("use", USES, ids=lambda use: use[0] if use[0] in COMMANDS else use[-1])
def test_a_bad_checkpoint_is_answered_in_one_line_by_whatever_takes_one(
    use: list[str],
    name: str,
    good: Good,
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make, answer = CHECKPOINTS[name]
    (tmp_path / name).write_bytes(make(good))
    status, out, err = program(*use, name)
    assert status == 2 and is_announcement(out) and err.count("\n") == 1 and name in err, err
    if (use[-1], name) == ("--ckpt-dir", "half.safetensors"):
        answer = "weights alone, which no run can resume from"
    assert answer in err
    assert os.listdir(tmp_path) == [name]


PARTS = (
    "state_dict",
    "optimizer_states",
    "lr_schedulers",
    "loops",
    "callbacks",
    "row",
    "settings",
    "global_step",
)
VALUES = (None, "x", [], {"a": 1}, [{}])
COMBINATIONS = [  # each part and each value once in the quick suite
    (name, value)
    if i % len(VALUES) == j
    else pytest.param(name, value, marks=pytest.mark.slow("as those beside it"))
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
    if (name, value) == (
        "row",
        {"a": 1},
    ):  # it is told to people alone; what a run goes on with is elsewhere
        value = {"epoch": "two"}
    torch.save(content | {name: value}, tmp_path / "a.ckpt")
    status, _, err = program(*SMALL, "--epochs", "3", "--ckpt-dir", str(tmp_path / "a.ckpt"))
    assert status == 2 and err.count("\n") == 1 and "a.ckpt" in err, err
    assert not (tmp_path / "runs" / "simsiam_patterns").exists()


# ---------------------------------------------------------------- whole files with untrue facts

HOSTILE: list[tuple[str, Any]] = [
    ("backbone", "resnet99"), ("backbone", ["resnet10"]), ("width", 0), ("width", -1), ("width", 3_000_000),
    ("width", "4"), ("width", None), ("mean", [0.5, 0.5]), ("mean", ["a", "b", "c"]), ("mean", None),
    ("std", [0.0, 0.0, 0.0]), ("std", [1, 1, float("nan")]), ("image_size", 0), ("classes", [1, 2]),
    ("settings", "x"), ("settings", None), ("settings", []), ("settings", {"dataset": ["a"]}),
    ("settings", {"dataset": "patterns", "data_dir": 5}), ("settings", {"dataset": "patterns", "train_images": "abc"}),
    ("settings", {"dataset": "patterns", "train_images": -5}), ("settings", {"dataset": "mnist"}),
    ("row", None), ("row", [1]), ("row", {"epoch": "two"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), HOSTILE)
def test_a_file_that_lies_about_itself_is_answered_in_one_line(
    name: str, value: Any, trained: Path, program: Program, tmp_path: Path
) -> None:
    about, state = read_weights(trained / "backbone.safetensors", BACKBONE)
    write_weights(tmp_path / "a.safetensors", BACKBONE, state, about | {name: value})
    whole = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    if name in whole["hyper_parameters"]:
        whole["hyper_parameters"][name] = value
    else:
        whole[name] = value
    torch.save(whole, tmp_path / "a.ckpt")
    for file in ("a.safetensors", "a.ckpt"):
        status, out, err = program("knn", "--checkpoint", str(tmp_path / file))
        assert (status, out) == (2, "") and err.count("\n") == 1, (file, err)
        assert name in err or "mnist" in err
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "a.safetensors"]


def test_weights_that_are_not_finite_are_refused(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    about, state = read_weights(trained / "backbone.safetensors", BACKBONE)
    state["conv1.weight"][0, 0, 0, 0] = float("nan")
    write_weights(tmp_path / "a.safetensors", BACKBONE, state, about)
    for command in EVALUATIONS:
        status, out, err = program(command, "--checkpoint", str(tmp_path / "a.safetensors"))
        assert (status, out) == (2, "") and "not finite" in err and err.count("\n") == 1
    assert os.listdir(tmp_path) == ["a.safetensors"]
