"""Networks. They know nothing of the method that trains them."""

from models.resnet import resnet10, resnet18, resnet34, resnet50

__all__ = ["resnet10", "resnet18", "resnet34", "resnet50"]
