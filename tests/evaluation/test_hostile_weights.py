"""Files for --model-path that are damaged, ambiguous or made to do harm are refused in one line."""

import argparse
import io
import os
import shlex
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from models import resnet10
from simsiam import SimSiam
from simsiam.evaluation.starting_weights import load_weights
from tests.helpers import SMALL, Program, prints_only_header
from tests.images import Bomb

State = dict[Any, Any]


def saved(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def old_format(content: object) -> bytes:
    return saved(content, _use_new_zipfile_serialization=False)


def change_weight(state: State, weight: object) -> bytes:
    return saved(state | {"conv1.weight": weight})


def with_one_number(state: State, value: float) -> bytes:
    weight = state["conv1.weight"].double()
    weight[0, 0, 0, 0] = value
    return change_weight(state, weight)


def prefixed(state: State, *prefixes: str) -> State:
    return {f"{prefix}{name}": weight for prefix in prefixes for name, weight in state.items()}


def zip_bomb(state: State) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(state))) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr("archive/data/zeros", bytes(10**7))
    return buffer.getvalue()


def huge_storage_in_old_format(state: State) -> bytes:
    """A storage that claims to have 2^40 numbers."""
    content = old_format({"conv1.weight": torch.zeros(108)})
    size = b"Kl"  # 108, as pickle writes it
    assert size in content
    return content.replace(size, b"\x8a\x06" + (2**40).to_bytes(6, "little"))


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(1, 1)


REFUSED: dict[str, tuple[Callable[[State], bytes], str]] = {
    "code.pth": (lambda s: saved(Bomb()), "none of its code was run"),
    "code_in_old_format.pth": (lambda s: old_format(Bomb()), "none of its code was run"),
    "code_beside_weights.pth": (
        lambda s: saved({"state_dict": s, "optimizer": Bomb()}),
        "none of its code was run. If you trust it, save its weights alone: python -c 'import ",
    ),
    "namespace.pth.tar": (
        lambda s: saved({"state_dict": s, "args": argparse.Namespace(lr=1)}),
        "holds Python objects other than tensors and plain values",
    ),
    "module.pth": (lambda s: saved(Layers()), "none of its code was run"),
    "module_in_old_format.pth": (lambda s: old_format(Layers()), "none of its code was run"),
    "zip_bomb.pth": (zip_bomb, "is compressed"),
    "cut_short.pth": (lambda s: saved(s)[:-100], "not a checkpoint, or cut short"),
    "old_cut_short.pth": (lambda s: old_format(s)[:-100], "not readable as a checkpoint"),
    "old_start_alone.pth": (lambda s: old_format(s)[:15], "not readable as a checkpoint"),
    "old_huge.pth": (huge_storage_in_old_format, "not readable as a checkpoint"),
    "list.pth": (lambda s: saved([s]), "it has no weights by name"),
    "empty.pth": (lambda s: saved({}), "it has no weights by name"),
    "empty_state.pth": (lambda s: saved({"state_dict": {}}), "holds no weights"),
    "number.pth": (lambda s: change_weight(s, 1.0), "conv1.weight is a float, not a tensor"),
    "no_text.pth": (
        lambda s: saved(s | {5: torch.zeros(1)}),
        "the name of a weight must be text, got 5",
    ),
    "bytes.pth": (lambda s: saved({b"conv1.weight": torch.zeros(1)}), "must be text, got b'conv1"),
    "escapes.pth": (
        lambda s: saved(s | {"a\x1b[2J\n\u202e": torch.zeros(1)}),
        r"the run's network lacks a\x1b[2J\n\u202e",
    ),
    "long_name.pth": (lambda s: saved(s | {"a" * 10**6: torch.zeros(1)}), "lacks " + 80 * "a"),
    "nan.pth": (lambda s: with_one_number(s, float("nan")), "conv1.weight has numbers that are n"),
    "infinite.pth": (lambda s: with_one_number(s, float("inf")), "that are not finite"),
    "infinite_in_float32.pth": (lambda s: with_one_number(s, 1e300), "that are not finite"),
    "huge.pth": (
        lambda s: change_weight(s, torch.zeros(1).expand(2**40)),
        "conv1.weight is (1099511627776,) in the file and (4, 3, 3, 3) in the run",
    ),
    "wide.pth": (
        lambda s: change_weight(s, torch.zeros(1).expand(2**40, 3, 3, 3)),
        "conv1.weight is (1099511627776, 3, 3, 3) in the file",
    ),
    "integers.pth": (
        lambda s: change_weight(s, torch.zeros(4, 3, 3, 3, dtype=torch.int32)),
        "conv1.weight has torch.int32 numbers",
    ),
    "complex.pth": (
        lambda s: change_weight(s, torch.zeros(4, 3, 3, 3, dtype=torch.complex64)),
        "conv1.weight has torch.complex64 numbers",
    ),
    "float8.pth": (
        lambda s: change_weight(s, torch.zeros(4, 3, 3, 3).to(torch.float8_e4m3fn)),
        "conv1.weight has torch.float8_e4m3fn numbers",
    ),
    "sparse.pth": (
        lambda s: change_weight(s, torch.zeros(4, 3, 3, 3).to_sparse()),
        "torch.sparse_coo",
    ),
    "meta.pth": (
        lambda s: change_weight(s, torch.zeros(4, 3, 3, 3, device="meta")),
        "on meta",
    ),
    "quantized.pth": (
        lambda s: change_weight(
            s, torch.quantize_per_tensor(torch.zeros(4, 3, 3, 3), 1.0, 0, torch.qint8)
        ),
        "torch.qint8",
    ),
    "counts_of_floats.pth": (
        lambda s: saved(s | {"bn1.num_batches_tracked": torch.tensor(0.5)}),
        "bn1.num_batches_tracked has torch.float32 numbers",
    ),
    "without_a_weight.pth": (
        lambda s: saved({name: weight for name, weight in s.items() if name != "bn1.bias"}),
        "the file lacks bn1.bias",
    ),
    "with_another_weight.pth": (
        lambda s: saved(s | {"conv2.weight": torch.zeros(1)}),
        "the run's network lacks conv2.weight",
    ),
    "unknown_in_the_backbone.pth": (
        lambda s: saved(prefixed(s | {"adapter.weight": torch.zeros(1)}, "backbone.")),
        "the run's network lacks adapter.weight",
    ),
    "same_weight_twice.pth": (
        lambda s: saved(s | {"layer2.0.shortcut.0.weight": s["layer2.0.downsample.0.weight"] + 1}),
        "the run's network lacks layer2.0.shortcut.0.weight",
    ),
    "two_state_dicts.pth": (
        lambda s: saved({"state_dict": s, "state_dict_ema": s}),
        "several networks, under state_dict and state_dict_ema",
    ),
    "two_backbones.ckpt": (
        lambda s: saved({"state_dict": prefixed(s, "backbone.", "encoder.")}),
        "2 networks that fit this run's backbone, under 'encoder.' and 'backbone.'",
    ),
    "two_networks.ckpt": (
        lambda s: saved({"state_dict": prefixed(s, "backbone.", "student.")}),
        "holds several networks, under 'backbone.' and 'student.'",
    ),
    "bare_and_prefixed.pth": (lambda s: saved(s | prefixed(s, "backbone.")), "2 networks"),
    "unknown_layout.ckpt": (
        lambda s: saved({"state_dict": prefixed(s, "teacher_backbone.", "student_backbone.")}),
        "neither under their own names nor under 'encoder_q.', ",
    ),
    "names.safetensors": (lambda s: save({"x": torch.zeros(1)}), "Its first names are x"),
    "empty.safetensors": (lambda s: save({}), "it has no weights by name"),
    "outside.safetensors": (
        lambda s: (
            struct.pack("<Q", 58) + b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}   '
        ),
        "not a safetensors file",
    ),
}


def small_model() -> SimSiam:
    return SimSiam("resnet10", width=4, out_dim=32, h_dim=16)


def small_state() -> dict[str, Tensor]:
    return dict(resnet10(width=4).state_dict())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # to make a file
@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_is_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the file. The model and the file's folder stay as they were."""
    monkeypatch.chdir(tmp_path)
    make, message = REFUSED[name]
    Path(name).write_bytes(make(small_state()))
    model = small_model()
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_weights(model, name)
    text = str(error.value)
    assert name in text and message in text, text
    assert text.isprintable() and len(text) < 600
    assert os.listdir(tmp_path) == [name]
    assert all(torch.equal(before[key], weight) for key, weight in model.state_dict().items())


def test_the_unchanged_file_is_taken(tmp_path: Path) -> None:
    """So it is the fault, and nothing else, for which the files above are refused."""
    for make in (saved, old_format):
        (tmp_path / "a.pth").write_bytes(make(small_state()))
        load_weights(small_model(), tmp_path / "a.pth")


def test_the_command_in_the_message_saves_the_weights_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = small_state()
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=1)}, "it's.pth.tar")
    with pytest.raises(ValueError) as error:
        load_weights(small_model(), "it's.pth.tar")
    command = shlex.split(str(error.value).split("alone: ")[1])
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=100)
    model = small_model()
    load_weights(model, "weights.pth")
    loaded = model.backbone.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in loaded.items())


@pytest.mark.parametrize("name", ["code.pth", "two_backbones.ckpt", "nan.pth"])
def test_the_program_refuses_it_with_status_2(
    name: str, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = REFUSED[name]
    Path(name).write_bytes(make(small_state()))
    status, out, err = program(*SMALL, "--epochs", "1", "--model-path", name)
    assert status == 2 and prints_only_header(out) and err.count("\n") == 1 and message in err, err
    assert os.listdir(tmp_path) == [name]
