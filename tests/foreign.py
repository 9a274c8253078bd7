"""Networks of other programs, and the checkpoints that those programs save.

Each network is built as the program builds it. Its own `forward` is the oracle for the features.
"""

import copy
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
import torchvision
from lightly.models import ResNetGenerator
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import ResNet


class ForeignFile(NamedTuple):
    """What a program saves, and the features that its backbone gives for `images`."""

    content: Any
    features: Tensor


def randomize(network: nn.Module, seed: int = 1) -> nn.Module:
    """Give the BN layers other values than 0 and 1, as after training, so that they matter."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            state = module.state_dict()
            state["num_batches_tracked"].fill_(100)
            for name in ("weight", "running_var"):
                state[name].copy_(0.5 + torch.rand(state[name].shape, generator=generator))
            for name in ("bias", "running_mean"):
                state[name].copy_(0.1 * torch.randn(state[name].shape, generator=generator))
    return network


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=generator)


def saved_by_ddp(network: nn.Module) -> dict[str, Any]:
    """Return the content of a `.pth.tar` of facebookresearch/simsiam and of MoCo."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {
        "epoch": 100,
        "arch": "resnet18",
        "state_dict": OrderedDict((f"module.{k}", v) for k, v in network.state_dict().items()),
        "optimizer": optimizer.state_dict(),
    }


def saved_by_lightning(state: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "epoch": 99,
        "global_step": 1000,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1},
    }


@torch.no_grad()
def compute(network: nn.Module) -> Tensor:
    """Return the output of a network for `images`, in float64."""
    return copy.deepcopy(network).double().eval()(images()).flatten(start_dim=1)


def without_classifier(network: nn.Module) -> Tensor:
    """Return the features of torchvision's ResNet with a classifier or projector as its `fc`."""
    network = copy.deepcopy(network)
    network.fc = nn.Identity()
    return compute(network)


def torchvision_file() -> ForeignFile:
    network = randomize(torchvision.models.resnet18())
    return ForeignFile(network.state_dict(), without_classifier(network))


def simsiam_file() -> ForeignFile:
    """facebookresearch/simsiam: the projector is the `fc` of the encoder."""
    network = nn.Module()
    encoder = torchvision.models.resnet18(num_classes=128, zero_init_residual=True)
    randomize(encoder)
    projector: list[nn.Module] = []
    for _ in range(2):
        projector += [nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(inplace=True)]
    projector += [encoder.fc, nn.BatchNorm1d(128, affine=False)]
    encoder.set_submodule("fc", nn.Sequential(*projector))
    network.encoder = encoder
    network.predictor = nn.Sequential(
        nn.Linear(128, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 128)
    )
    return ForeignFile(saved_by_ddp(network), without_classifier(encoder))


def moco_file(mlp: bool) -> ForeignFile:
    """facebookresearch/moco: v1 has a linear layer as `fc`, and v2 two of them."""
    network = nn.Module()
    encoders: list[ResNet] = []
    for seed, name in enumerate(("encoder_q", "encoder_k")):
        encoder = torchvision.models.resnet18(num_classes=128)
        randomize(encoder, seed)
        if mlp:
            network_before_fc = [nn.Linear(512, 512), nn.ReLU()]
            encoder.set_submodule("fc", nn.Sequential(*network_before_fc, encoder.fc))
        network.add_module(name, encoder)
        encoders.append(encoder)
    network.register_buffer("queue", torch.randn(128, 64))
    network.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
    return ForeignFile(saved_by_ddp(network), without_classifier(encoders[0]))


def moco_v3_file() -> ForeignFile:
    network = nn.Module()
    encoders: list[ResNet] = []
    for seed, name in enumerate(("base_encoder", "momentum_encoder")):
        encoder = torchvision.models.resnet18()
        randomize(encoder, seed)
        projector = [nn.Linear(512, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(inplace=True)]
        projector += [nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32, affine=False)]
        encoder.set_submodule("fc", nn.Sequential(*projector))
        network.add_module(name, encoder)
        encoders.append(encoder)
    network.predictor = nn.Sequential(
        nn.Linear(32, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32, bias=False)
    )
    return ForeignFile(saved_by_ddp(network), without_classifier(encoders[0]))


class LightlySimSiam(nn.Module):
    """The model of lightly's tutorials."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimSiamProjectionHead(512, 512, 128)
        self.prediction_head = SimSiamPredictionHead(128, 64, 128)


def lightly_file() -> ForeignFile:
    """lightly's tutorials: nn.Sequential of torchvision's ResNet without its classifier."""
    resnet = randomize(torchvision.models.resnet18())
    network = LightlySimSiam(nn.Sequential(*list(resnet.children())[:-1]))
    return ForeignFile(saved_by_lightning(network.state_dict()), compute(network.backbone))


def lightly_cifar_file() -> ForeignFile:
    """lightly's own ResNet, which has a 3x3 stem and calls `downsample` `shortcut`."""
    resnet = randomize(ResNetGenerator("resnet-18"))
    layers = list(resnet.children())[:-1]
    network = LightlySimSiam(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)))
    conv1, bn1, *stages = layers
    # The forward of lightly's ResNet has a ReLU after the first BN.
    features = compute(nn.Sequential(conv1, bn1, nn.ReLU(), *stages, nn.AdaptiveAvgPool2d(1)))
    return ForeignFile(saved_by_lightning(network.state_dict()), features)


def solo_learn_file() -> ForeignFile:
    """solo-learn's SimSiam: `backbone`, `classifier`, `projector`, `predictor`."""
    network = nn.Module()
    network.backbone = randomize(torchvision.models.resnet18(zero_init_residual=True))
    network.backbone.fc = nn.Identity()
    network.classifier = nn.Linear(512, 10)
    projector: list[nn.Module] = []
    for dim in (512, 128):
        projector += [nn.Linear(dim, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU()]
    projector += [nn.Linear(128, 128), nn.BatchNorm1d(128, affine=False)]
    network.projector = nn.Sequential(*projector)
    network.predictor = nn.Sequential(
        nn.Linear(128, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 128)
    )
    features = without_classifier(network.backbone)
    return ForeignFile(saved_by_lightning(network.state_dict()), features)
