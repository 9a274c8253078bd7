"""No weight is chosen, lost or copied silently when a file does not fit."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from simsiam import SimSiam
from simsiam.evaluation.networks import hash_weights, remove_compile_prefix
from simsiam.evaluation.starting_weights import load_weights


def make_model(**settings: Any) -> SimSiam:
    return SimSiam("resnet18", stem="imagenet", out_dim=8, h_dim=4, **settings)


@pytest.mark.parametrize("shortcut_first", [True, False])
def test_two_names_of_one_weight_are_refused_in_either_order(
    shortcut_first: bool, tmp_path: Path
) -> None:
    state = torchvision.models.resnet18().state_dict()
    name = "layer2.0.downsample.0.weight"
    other = {"layer2.0.shortcut.0.weight": torch.zeros_like(state[name])}
    file = {**other, **state} if shortcut_first else {**state, **other}
    torch.save(file, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"lacks layer2\.0\.shortcut\.0\.weight"):
        load_weights(make_model(), tmp_path / "w.pth")


def test_a_compiled_and_a_plain_name_of_one_weight_are_both_kept() -> None:
    state = {"backbone._orig_mod.a": 1, "backbone.a": 2, "_orig_mod.b": 3}
    assert remove_compile_prefix(state) == {"backbone._orig_mod.a": 1, "backbone.a": 2, "b": 3}


def test_a_model_is_unchanged_by_weights_that_do_not_fit(tmp_path: Path) -> None:
    saved = make_model()
    torch.save(
        {
            "state_dict": saved.state_dict(),
            "hyper_parameters": dict(saved.hparams),
            "pytorch-lightning_version": "2.0.0",
        },
        tmp_path / "a.ckpt",
    )
    model = make_model()
    model.predictor = nn.Linear(8, 8)  # the hyper-parameters do not say so
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match="do not fit"):
        load_weights(model, tmp_path / "a.ckpt")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_weights_of_any_dtype_are_hashed_and_old_hashes_stay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    digest = hashlib.sha256()
    for name, weight in network.state_dict().items():
        digest.update(name.encode() + weight.numpy().tobytes())
    assert hash_weights(network) == digest.hexdigest()[:16]
    assert hash_weights(network.bfloat16()) != digest.hexdigest()[:16]
