"""Backbones of torchvision and timm by name: what is built, and which names are refused."""

import copy
import importlib.util
import random
import sys
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from models.batch_norm import BatchNorm2d, expect_views, separates_views
from models.convert_batch_norm import convert_batch_norm
from models.features import prepare_custom_backbone
from models.libraries import (
    AUXILIARY_CLASSIFIERS,
    TensorsWithoutMemory,
    build_library_backbone,
    build_without_memory,
    count_library_features,
    list_names,
)
from simsiam import SimSiam

ALL_OF_TORCHVISION = torchvision.models.list_models(module=torchvision.models)
QUICK = ("alexnet", "convnext_tiny", "densenet121", "googlenet", "inception_v3", "maxvit_t")
QUICK += ("regnet_y_400mf", "resnet18", "squeezenet1_1", "swin_v2_t", "vgg11", "vit_b_16")


def mark_slow(names: list[str]) -> list[Any]:
    slow = pytest.mark.slow("like the networks of the quick suite")
    return [name if name in QUICK else pytest.param(name, marks=slow) for name in names]


# ---------------------------------------------------------------- what is built


@pytest.mark.parametrize("name", mark_slow(ALL_OF_TORCHVISION))
def test_each_classifier_of_torchvision_gives_features(name: str) -> None:
    """Only the last layer is missing, and with it the classifiers that help to train others."""
    features = count_library_features(f"torchvision/{name}", 224)
    ours = build_without_memory(f"torchvision/{name}", 224).state_dict()
    arguments: dict[str, Any] = {}
    if name in AUXILIARY_CLASSIFIERS:
        arguments["init_weights"] = True  # otherwise torchvision warns
    with TensorsWithoutMemory():
        theirs = torchvision.models.get_model(name, weights=None, **arguments).state_dict()
    missing = [key for key in theirs if key not in ours and not key.lower().startswith("aux")]
    layers = {key.rpartition(".")[0] for key in missing}
    assert len(layers) == 1 and missing[0].endswith(".weight")
    assert theirs[missing[0]].shape[:2] == (1000, features)
    assert all(ours[key].shape == theirs[key].shape for key in ours)


def test_features_are_the_input_of_the_classifier() -> None:
    torch.manual_seed(0)
    ours = build_library_backbone("torchvision/mobilenet_v3_small", 64).eval()
    theirs = torchvision.models.mobilenet_v3_small().eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    inputs: list[torch.Tensor] = []
    theirs.classifier[3].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    images = torch.randn(2, 3, 64, 64)
    theirs(images)
    assert torch.equal(ours(images), inputs[0])


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("torchvision/convnext_tiny", 32),
        ("torchvision/efficientnet_b0", 32),
        ("torchvision/googlenet", 32),
        ("torchvision/vgg11", 32),
        ("timm/ghostnet_050", 32),
        ("timm/vit_tiny_patch16_224", 32),
    ],
)
def test_training_draws_no_random_numbers(name: str, size: int) -> None:
    """No layer of dropout or stochastic depth is left, so that a resumed run is exact."""
    network = build_library_backbone(name, size).train()
    images = torch.randn(4, 3, size, size)
    state = torch.get_rng_state()
    first = network(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(network(images), first)


def test_a_transformer_is_built_for_the_size_of_the_images() -> None:
    for name in ("torchvision/vit_b_32", "timm/vit_tiny_patch16_224"):
        network = build_library_backbone(name, 64).eval()
        assert network(torch.zeros(1, 3, 64, 64)).dim() == 2


def test_checking_a_network_does_not_change_its_random_weights() -> None:
    name = "timm/mobilenetv3_small_050"
    torch.manual_seed(0)
    random.seed(0)
    expected = timm.create_model("mobilenetv3_small_050", num_classes=0).state_dict()
    torch.manual_seed(0)
    random.seed(0)
    count_library_features.cache_clear()
    count_library_features(name, 32)
    weights = build_library_backbone(name, 32).state_dict()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_a_network_without_memory_has_none() -> None:
    """The attention of this network at this size has more numbers than any memory."""
    name = "torchvision/vit_h_14"
    assert count_library_features(name, 14 * 1024) == 1280
    network = build_without_memory(name, 14 * 1024)
    assert all(parameter.is_meta for parameter in network.parameters())


# ---------------------------------------------------------------- names that are refused

HOSTILE = [
    "torchvision/",
    "torchvision/../resnet18",
    "torchvision/resnet18\n",
    "torchvision/ResNet18",
    "torchvision/resnet19",
    "torchvision/raft_large",
    "torchvision/fasterrcnn_resnet50_fpn",
    "torchvision/get_model",
    "timm/hf-hub:timm/resnet18.a1_in1k",
    "timm/hf_hub:timm/resnet18",
    "timm/local-dir:/tmp",
    "timm//tmp",
    "timm/timm/resnet18",
    "timm/resnet18.no_such_tag",
    "timm/no_such_network",
    "os/system",
    "torch/hub",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_is_not_registered_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("a library was asked to build a network")

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr(torchvision.models, "get_model", fail)
    with pytest.raises(ValueError, match=r"no network|backbone"):
        build_library_backbone(name, 32)
    with pytest.raises(ValueError, match=r"no network|backbone must be"):
        SimSiam(name, image_size=32)


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(ValueError, match=r"Did you mean torchvision/resnet18\?"):
        SimSiam("torchvision/resnet_18")


def test_a_tag_of_timm_names_the_same_network() -> None:
    assert "resnet18.a1_in1k" in list_names("timm")
    tagged = build_without_memory("timm/resnet18.a1_in1k", 32).state_dict()
    assert tagged.keys() == build_without_memory("timm/resnet18", 32).state_dict().keys()


def test_without_timm_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "timm" else find_spec(name)
    )
    command = f"{sys.executable} -m pip install timm"
    with pytest.raises(ValueError, match=command):
        build_library_backbone("timm/resnet18", 32)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("torchvision/inception_v3", 32, "cannot take images of 32 x 32"),
        ("torchvision/alexnet", 32, "cannot take images of 32 x 32"),
        ("torchvision/vit_b_16", 40, "cannot take images of 40 x 40"),
        ("timm/vit_tiny_patch16_224", 40, "no multiple of its patches' 16 pixels"),
        ("torchvision/vit_b_16", None, "Pass image_size"),
        ("timm/vit_tiny_patch16_224", None, "Pass image_size"),
        ("timm/qwen3_vit_88m_enc", 224, "does not give features"),
    ],
)
def test_images_of_a_size_that_does_not_fit_are_refused(
    name: str, size: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SimSiam(name, image_size=size)


@pytest.mark.parametrize(
    "setting",
    [{"width": 32}, {"stem": "imagenet"}, {"zero_init_residual": False}, {"conv_init": "torch"}],
)
def test_settings_of_our_resnets_are_refused_for_other_networks(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=rf"{name} .* is for the ResNets of this program alone"):
        SimSiam("torchvision/resnet18", **setting)


# ---------------------------------------------------------------- batch normalisation


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/mobilenetv3_small_050"])
def test_converted_batch_norm_computes_the_same(name: str) -> None:
    theirs = build_library_backbone(name, 32).train()
    ours = copy.deepcopy(theirs)
    convert_batch_norm(ours)
    assert separates_views(ours) and not separates_views(theirs)
    images = torch.randn(8, 3, 32, 32)
    assert torch.equal(ours(images), theirs(images))
    ours_state, theirs_state = ours.state_dict(), theirs.state_dict()
    assert list(ours_state) == list(theirs_state)
    assert all(torch.equal(ours_state[key], theirs_state[key]) for key in theirs_state)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/mobilenetv3_small_050"])
def test_views_in_one_pass_are_normalised_one_by_one(name: str) -> None:
    network = build_library_backbone(name, 32).double().train()
    convert_batch_norm(network)
    twin = copy.deepcopy(network)
    views = torch.randn(2, 8, 3, 32, 32, dtype=torch.float64)
    with expect_views(network, 2):
        together = network(views.flatten(0, 1))
    torch.testing.assert_close(together, torch.cat([twin(view) for view in views]))
    torch.testing.assert_close(network.state_dict(), twin.state_dict())


def test_cumulative_averages_are_not_converted() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3))
    convert_batch_norm(network)
    assert type(network[0]) is nn.BatchNorm2d and type(network[1]) is BatchNorm2d
    assert not separates_views(network)


# ---------------------------------------------------------------- modules of the user


def test_an_output_of_one_pixel_is_flattened() -> None:
    children = list(torchvision.models.resnet18().children())
    module = SimSiam(nn.Sequential(*children[:-1]))
    images = torch.randn(2, 3, 32, 32)
    assert module(images).shape == module.backbone(images).shape == (2, 512)
    assert prepare_custom_backbone(module.backbone, 32) == 512  # once more changes nothing
    assert module(images).shape == (2, 512)


@pytest.mark.parametrize(
    ("network", "expression"),
    [
        (torchvision.models.resnet18, "backbone.fc = torch.nn.Identity()"),
        (torchvision.models.mobilenet_v3_small, "backbone.classifier[3] = torch.nn.Identity()"),
        (lambda: timm.create_model("resnet18"), "backbone.fc = torch.nn.Identity()"),
    ],
    ids=["resnet18", "mobilenet_v3_small", "timm's resnet18"],
)
def test_a_network_with_its_classifier_is_refused(network: Any, expression: str) -> None:
    backbone = network()
    with pytest.raises(ValueError, match="still has its classifier") as error:
        SimSiam(backbone, image_size=64)
    assert expression in str(error.value)
    exec(expression, {"torch": torch, "backbone": backbone})  # what the message says to do
    assert SimSiam(backbone, image_size=64).projector[0].in_features in (512, 1024)


def test_a_transformer_of_the_user_needs_the_size_of_the_images() -> None:
    backbone = torchvision.models.vit_b_32(image_size=64)
    backbone.heads = nn.Identity()
    with pytest.raises(ValueError, match=r"32 x 32 pixels .* Pass image_size, the side of your"):
        SimSiam(backbone)
    assert SimSiam(backbone, image_size=64).projector[0].in_features == 768
