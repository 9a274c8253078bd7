"""Weights of networks in safetensors files."""

from pathlib import Path

import timm
import torch

from utils.weights import BACKBONE, read_weights, write_weights


def test_layer_with_two_names_is_saved_under_both(tmp_path: Path) -> None:
    network = timm.create_model("coat_lite_tiny", img_size=32, num_classes=0)
    state = network.state_dict()
    addresses = {tensor.data_ptr() for tensor in state.values()}
    assert len(addresses) < len(state)
    write_weights(tmp_path / "backbone.safetensors", BACKBONE, state, {})
    _, saved = read_weights(tmp_path / "backbone.safetensors", BACKBONE)
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[name], state[name]) for name in state)
