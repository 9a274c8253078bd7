"""--model-path takes the backbone of a file that another program has saved.

The oracle is the other program's own network: the same images have the same features.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import VisionTransformer

from simsiam import SimSiam
from simsiam.evaluation.starting_weights import StartingWeights, load_weights
from tests import foreign
from tests.foreign import ForeignFile
from tests.helpers import ROOT


class Case(NamedTuple):
    make: Callable[[], ForeignFile]
    stem: str
    lines: tuple[str, ...]  # what the program prints, without the path and the line on the heads


STATE_DICT = "a state dict, as of torchvision or timm"
LIGHTNING = "as lightly or solo-learn saves it"
FILES: dict[str, Case] = {
    "resnet18.pth": Case(
        foreign.torchvision_file, "imagenet", (STATE_DICT, "left out fc.weight, fc.bias")
    ),
    "checkpoint_0099.pth.tar": Case(
        foreign.simsiam_file,
        "imagenet",
        (
            "as facebookresearch/simsiam saves it",
            "left out encoder.fc.* (17 weights), predictor.* (8 weights)",
        ),
    ),
    "moco_v1.pth.tar": Case(
        lambda: foreign.moco_file(mlp=False),
        "imagenet",
        (
            "as MoCo saves it",
            "left out encoder_q.fc.weight, encoder_q.fc.bias, queue, queue_ptr, "
            "encoder_k.* (122 weights)",
        ),
    ),
    "moco_v2.pth.tar": Case(
        lambda: foreign.moco_file(mlp=True),
        "imagenet",
        (
            "as MoCo saves it",
            "left out encoder_q.fc.0.weight, encoder_q.fc.0.bias, encoder_q.fc.2.weight, "
            "encoder_q.fc.2.bias, queue, queue_ptr, encoder_k.* (124 weights)",
        ),
    ),
    "moco_v3.pth.tar": Case(
        foreign.moco_v3_file,
        "imagenet",
        (
            "as MoCo v3 saves it",
            "left out base_encoder.fc.* (10 weights), momentum_encoder.* (130 weights), "
            "predictor.* (7 weights)",
        ),
    ),
    "lightly.ckpt": Case(
        foreign.lightly_file,
        "imagenet",
        (LIGHTNING, "left out projection_head.* (16 weights), prediction_head.* (8 weights)"),
    ),
    "lightly_cifar.ckpt": Case(
        foreign.lightly_cifar_file,
        "cifar",
        (LIGHTNING, "left out projection_head.* (16 weights), prediction_head.* (8 weights)"),
    ),
    "solo.ckpt": Case(
        foreign.solo_learn_file,
        "imagenet",
        (
            LIGHTNING,
            "left out classifier.weight, classifier.bias, projector.* (17 weights), "
            "predictor.* (8 weights)",
        ),
    ),
}
HEADS = "projector and predictor start from random weights"


def make_model(stem: str = "imagenet", backbone: str = "resnet18", width: int = 64) -> SimSiam:
    return SimSiam(backbone, width=width, out_dim=32, h_dim=16, stem=stem)


def same_features(model: SimSiam, file: ForeignFile) -> None:
    """Compare the features. Ours are computed in channels_last, and sum in another order."""
    torch.testing.assert_close(foreign.compute(model), file.features, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", FILES)
def test_the_features_are_those_of_the_other_program(name: str, tmp_path: Path) -> None:
    case = FILES[name]
    file = case.make()
    torch.save(file.content, tmp_path / name)
    model = make_model(case.stem)
    heads = [model.projector.state_dict(), model.predictor.state_dict()]
    heads = [{key: weight.clone() for key, weight in head.items()} for head in heads]

    weights = load_weights(model, tmp_path / name)

    source, *more_lines = case.lines
    first_line = f"the backbone of {tmp_path / name} ({source})"
    assert weights == StartingWeights((first_line, *more_lines, HEADS), is_foreign=True)
    same_features(model, file)
    for head, before in zip((model.projector, model.predictor), heads, strict=True):
        assert all(torch.equal(before[key], weight) for key, weight in head.state_dict().items())


@pytest.mark.parametrize("name", sorted(set(FILES) - {"lightly_cifar.ckpt"}))
def test_the_documentation_has_the_printed_lines(name: str) -> None:
    source, left_out = FILES[name].lines
    table = (ROOT / "docs" / "others.md").read_text()
    assert f"`the backbone of {name} ({source})`, `{left_out}` |" in table


def test_timm_and_its_safetensors(tmp_path: Path) -> None:
    network = timm.create_model("resnet18")
    foreign.randomize(network)
    save_file(network.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    network.set_submodule("fc", nn.Identity())
    features = foreign.compute(network)
    model = make_model()
    weights = load_weights(model, tmp_path / "model.safetensors")
    same_features(model, ForeignFile(None, features))
    assert weights.lines[1] == "left out fc.bias, fc.weight"  # in the order of the file


def test_a_bottleneck_network(tmp_path: Path) -> None:
    network = foreign.randomize(torchvision.models.resnet50())
    torch.save({"model": network.state_dict()}, tmp_path / "r.pth")
    model = make_model(backbone="resnet50")
    load_weights(model, tmp_path / "r.pth")
    same_features(model, ForeignFile(None, foreign.without_classifier(network)))


def test_files_of_old_torch_have_another_format_and_no_counts_of_batches(tmp_path: Path) -> None:
    file = foreign.torchvision_file()
    state: dict[str, Any] = {}
    for name, weight in file.content.items():
        if not name.endswith("num_batches_tracked"):
            state[name] = nn.Parameter(weight)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = make_model()
    weights = load_weights(model, tmp_path / "old.pth")
    same_features(model, file)
    assert "the file has no num_batches_tracked: they start from 0" in weights.lines


def test_numbers_of_16_bits_become_32(tmp_path: Path) -> None:
    file = foreign.torchvision_file()
    state = {name: weight.half() for name, weight in file.content.items()}
    for name in state:
        if name.endswith("num_batches_tracked"):
            state[name] = file.content[name]
    torch.save(state, tmp_path / "half.pth")
    model = make_model()
    load_weights(model, tmp_path / "half.pth")
    loaded = model.backbone.state_dict()["conv1.weight"]
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, state["conv1.weight"].float())


def test_the_padding_of_solo_learns_cifar_stem_is_said(tmp_path: Path) -> None:
    content = foreign.solo_learn_file().content
    content["state_dict"]["backbone.conv1.weight"] = torch.rand(64, 3, 3, 3)
    torch.save(content, tmp_path / "solo.ckpt")
    weights = load_weights(make_model("cifar"), tmp_path / "solo.ckpt")
    assert any("solo-learn pads its 3x3 stem by 2 pixels" in line for line in weights.lines)


def test_weights_of_compiled_and_wrapped_networks(tmp_path: Path) -> None:
    file = foreign.torchvision_file()
    state = {f"module._orig_mod.{name}": weight for name, weight in file.content.items()}
    torch.save(state, tmp_path / "a.pth")
    model = make_model()
    load_weights(model, tmp_path / "a.pth")
    same_features(model, file)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_network_that_is_no_resnet(prefix: str, tmp_path: Path) -> None:
    """The names of a vision transformer begin with `encoder.`, as those of a whole encoder do."""
    make = partial(
        VisionTransformer,
        **{"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 2},
        **{"hidden_dim": 16, "mlp_dim": 32},
    )
    network = make()
    state = {f"{prefix}{name}": weight for name, weight in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "vit.pth")
    backbone = make()
    backbone.set_submodule("heads", nn.Identity())
    model = SimSiam(backbone, out_dim=32, h_dim=16, image_size=32)
    weights = load_weights(model, tmp_path / "vit.pth")
    assert weights.lines[1] == f"left out {prefix}heads.head.weight, {prefix}heads.head.bias"
    network.set_submodule("heads", nn.Identity())
    same_features(model, ForeignFile(None, foreign.compute(network)))


# ---------------------------------------------------------------- weights that do not fit

resnet18 = torchvision.models.resnet18
OTHERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "the stem": (
        resnet18,
        {"stem": "cifar"},
        "it holds a resnet18 of width 64 with the imagenet stem, and this run has a resnet18 of "
        "width 64 with the cifar stem. Pass --stem imagenet",
    ),
    "the width": (
        lambda: SimSiam(width=16, out_dim=8, h_dim=4, stem="imagenet").backbone,
        {},
        "Pass --width 16",
    ),
    "the depth": (torchvision.models.resnet34, {}, "Pass --backbone resnet34"),
    "fewer blocks": (resnet18, {"backbone": "resnet34"}, "Pass --backbone resnet18"),
    "all three": (
        torchvision.models.resnet50,
        {"stem": "cifar", "width": 8},
        "Pass --backbone resnet50 --width 64 --stem imagenet",
    ),
    "too deep": (
        torchvision.models.resnet101,
        {"backbone": "resnet50"},
        "its weights do not fit a resnet50 of width 64 with the imagenet stem: the run's network "
        "lacks layer3.6.conv1.weight, layer3.6.bn1.weight, layer3.6.bn1.bias and ",
    ),
    "wide blocks": (
        torchvision.models.wide_resnet50_2,
        {"backbone": "resnet50"},
        "layer1.0.conv1.weight is (128, 64, 1, 1) in the file and (64, 64, 1, 1) in the run, and "
        "so on for ",
    ),
    "grey images": (
        lambda: timm.create_model("resnet18", in_chans=1),
        {},
        "conv1.weight is (64, 1, 7, 7) in the file and (64, 3, 7, 7) in the run",
    ),
    "another stem": (
        lambda: timm.create_model("resnet18d"),
        {},
        "the run's network lacks conv1.0.weight, conv1.1.weight, ",
    ),
    "no resnet": (
        torchvision.models.squeezenet1_1,
        {},
        "has no weights of this run's backbone, neither under their own names nor under "
        "'encoder_q.', 'base_encoder.', 'encoder.', 'backbone.'. Its first names are features.0",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_does_not_fit_is_explained_in_one_line(case: str, tmp_path: Path) -> None:
    make, settings, message = OTHERS[case]
    torch.save(make().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError) as error:
        load_weights(make_model(**settings), tmp_path / "w.pth")
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'w.pth'}") and message in text and "\n" not in text, text


@pytest.mark.parametrize("case", ["the stem", "the width", "the depth", "all three"])
def test_the_flags_that_the_message_names_are_right(case: str, tmp_path: Path) -> None:
    make, settings, _ = OTHERS[case]
    torch.save(make().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError) as error:
        load_weights(make_model(**settings), tmp_path / "w.pth")
    words = str(error.value).split("Pass ")[1].split()
    arguments = {"backbone": "resnet18", "width": 64, "stem": "imagenet"} | settings
    for flag, value in zip(words[::2], words[1::2], strict=True):
        name = flag.removeprefix("--")
        arguments[name] = type(arguments[name])(value)
    load_weights(make_model(**arguments), tmp_path / "w.pth")
