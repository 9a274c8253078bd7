"""Networks. They know nothing of the method that trains them."""

from models.heads import prediction_mlp, projection_mlp
from models.resnet import BACKBONES, ResNet, resnet10, resnet18, resnet34, resnet50

__all__ = [
    "BACKBONES",
    "ResNet",
    "prediction_mlp",
    "projection_mlp",
    "resnet10",
    "resnet18",
    "resnet34",
    "resnet50",
]
