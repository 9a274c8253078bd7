"""Training by a recipe equals an independent implementation of the paper's Algorithm 1."""

import copy
import math
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from simsiam.commands.pretrain import build_model
from simsiam.config.commands import Pretrain
from simsiam.data.datamodule import ViewsDataModule
from tests.test_module import QUIET
from utils.cli import parse

IMAGES = 8
SIDE = 72  # pixels; above 64, which gives the stem for ImageNet
EPOCHS = 3  # of one step each, so that a rate by epoch and a rate by step are the same


class OfficialSimSiam(nn.Module):
    """The networks as section 3 of the paper and the authors' builder.py describe them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torchvision.models.resnet50(num_classes=2048, zero_init_residual=True)
        self.encoder.fc = cast(
            Any,
            nn.Sequential(
                nn.Linear(2048, 2048, bias=False),
                nn.BatchNorm1d(2048),
                nn.ReLU(),
                nn.Linear(2048, 2048, bias=False),
                nn.BatchNorm1d(2048),
                nn.ReLU(),
                nn.Linear(2048, 2048, bias=False),
                nn.BatchNorm1d(2048, affine=False),
            ),
        )
        self.predictor = nn.Sequential(
            nn.Linear(2048, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 2048)
        )

    def loss(self, x1: Tensor, x2: Tensor) -> Tensor:
        z1, z2 = self.encoder(x1), self.encoder(x2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        cosine = nn.CosineSimilarity(dim=1)
        return -(cosine(p1, z2.detach()).mean() + cosine(p2, z1.detach()).mean()) / 2


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give our weights the names of OfficialSimSiam."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.replace("backbone.", "encoder.").replace("projector.", "encoder.fc.")
        renamed[name] = tensor
    return renamed


def train_official(model: OfficialSimSiam, views: list[list[Tensor]]) -> None:
    """Train as main_simsiam.py does with --fix-pred-lr and its defaults."""
    init_lr = 0.05 * IMAGES / 256
    groups = [{"params": model.encoder.parameters()}, {"params": model.predictor.parameters()}]
    optimizer = torch.optim.SGD(groups, init_lr, momentum=0.9, weight_decay=1e-4)
    for epoch, (x1, x2) in enumerate(views):
        encoder_group, _ = optimizer.param_groups
        encoder_group["lr"] = init_lr * 0.5 * (1 + math.cos(math.pi * epoch / EPOCHS))
        optimizer.zero_grad()
        model.loss(x1, x2).backward()
        optimizer.step()


@pytest.mark.slow("a resnet50 of full width in float64")
def test_the_imagenet_recipe_takes_the_steps_of_algorithm_1() -> None:
    flags = f"--recipe imagenet --epochs {EPOCHS} --batch-size {IMAGES}"
    config = parse(Pretrain, flags.split(), "main.py")
    data = ViewsDataModule("patterns", batch_size=IMAGES)
    data.size = SIDE
    model = build_model(config, data).double()
    untrained = copy.deepcopy(model.state_dict())

    torch.manual_seed(0)
    views = [list(torch.randn(2, IMAGES, 3, SIDE, SIDE).double()) for _ in range(EPOCHS)]
    official = OfficialSimSiam().double()
    official.load_state_dict(rename(untrained), strict=True)
    train_official(official, views)

    steps = iter(views)

    class Epochs(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader([next(steps)], batch_size=None)  # pyright: ignore[reportArgumentType]

    trainer = pl.Trainer(
        max_epochs=EPOCHS, precision="64-true", reload_dataloaders_every_n_epochs=1, **QUIET
    )
    trainer.fit(model, datamodule=Epochs())

    assert trainer.global_step == EPOCHS
    ours = rename(model.state_dict())
    for name, expected in official.state_dict().items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-10, atol=1e-12, msg=name)
    changes = [(ours[name] - tensor).abs().max() for name, tensor in rename(untrained).items()]
    assert max(changes) > 1e-3  # the comparison is of trained weights
