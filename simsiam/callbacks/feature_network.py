"""The network with which a monitor extracts features, in a form that is fast on its device."""

import pytorch_lightning as pl
from torch import nn

from models.resnet import ResNet, fold_batch_norm
from simsiam.evaluation.networks import evaluated_backbone


class FeatureNetwork:
    """Gives the backbone of a module as it is evaluated.

    On a GPU, the BN layers of a `ResNet` are folded into its convolutions. The same folded network
    takes the current weights each time, so that it is compiled only once.

    Args:
        compile: whether to compile the folded network.
    """

    def __init__(self, compile: bool) -> None:
        self.compile = compile
        self._folded: ResNet | None = None

    def prepare(self, pl_module: pl.LightningModule) -> nn.Module:
        """Return a network (B, 3, S, S) -> (B, F) with the current weights of the module."""
        network = evaluated_backbone(pl_module)
        if pl_module.device.type == "cuda" and isinstance(network, ResNet):
            return self.fold(network)
        return network

    def fold(self, backbone: ResNet) -> ResNet:
        """Return the backbone with its BN layers folded into its convolutions."""
        folded = fold_batch_norm(backbone)
        if self._folded is not None:
            self._folded.load_state_dict(folded.state_dict())
            return self._folded
        self._folded = folded
        if self.compile:
            self._folded.compile()
        return self._folded
