"""`load_backbone(path, backbone=module)`: weights for networks that only the user can build."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from simsiam import SimSiam, load_backbone
from tests.trainers import fit, make_data
from utils.errors import UserError


def shufflenet() -> nn.Module:
    network = torchvision.models.shufflenet_v2_x0_5()
    network.fc = nn.Identity()
    return network


def without_last_child() -> nn.Module:
    """Return a network whose output is (B, 512, 1, 1)."""
    return nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])


class OwnNormalization(nn.Module):
    """A network that has attributes called `mean` and `image_size` for itself."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 7.0))
        self.image_size = "any"
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x - self.mean)


def train(backbone: nn.Module, file: Path) -> SimSiam:
    module = SimSiam(backbone, out_dim=32, h_dim=16)
    fit(model=module, data=make_data(10, 20), max_steps=1).save_checkpoint(file)
    return module.eval()


@pytest.mark.parametrize("make", [shufflenet, without_last_child])
def test_a_module_takes_the_weights_of_its_checkpoint(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    trained = train(make(), tmp_path / "a.ckpt")
    module = make()
    backbone = load_backbone(tmp_path / "a.ckpt", backbone=module)
    assert backbone is module and not backbone.training
    assert backbone.mean == pytest.approx(trained.hparams["mean"])
    assert backbone.std == pytest.approx(trained.hparams["std"])
    assert backbone.image_size == 32
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(backbone(images), trained(images))
        assert backbone(images).dim() == 2


def test_without_the_module_the_message_says_how_to_load_it(tmp_path: Path) -> None:
    train(shufflenet(), tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"custom ShuffleNetV2.*load_backbone\(path, backbone=mod"):
        load_backbone(tmp_path / "a.ckpt")


def test_another_module_is_refused(tmp_path: Path) -> None:
    train(shufflenet(), tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="weights do not fit"):
        load_backbone(tmp_path / "a.ckpt", backbone=without_last_child())


def test_attributes_of_the_network_keep_their_meaning(tmp_path: Path) -> None:
    trained = train(OwnNormalization(), tmp_path / "a.ckpt")
    backbone = load_backbone(tmp_path / "a.ckpt", backbone=OwnNormalization())
    assert isinstance(backbone.mean, Tensor) and backbone.image_size == "any"
    assert backbone.std == pytest.approx(trained.hparams["std"])
    assert backbone.statistics[0] == pytest.approx(trained.hparams["mean"])


def test_a_second_file_replaces_the_metadata_of_the_first(tmp_path: Path) -> None:
    train(shufflenet(), tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    content["hyper_parameters"].update(mean=None, std=None, image_size=48)
    torch.save(content, tmp_path / "b.ckpt")
    backbone = load_backbone(tmp_path / "a.ckpt", backbone=shufflenet())
    load_backbone(tmp_path / "b.ckpt", backbone=backbone)
    assert backbone.image_size == 48
    with pytest.raises(AttributeError):
        _ = backbone.mean
