"""Make the BN layers of a library's network normalise each view by itself, over all processes."""

from torch import Tensor, nn

from models.batch_norm import BatchNorm1d, BatchNorm2d


class BatchNormAct2d(BatchNorm2d):
    """timm's BN that is followed by an activation, `act`, and sometimes by dropout, `drop`."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


def convert_batch_norm(network: nn.Module) -> None:
    """Replace the BN layers of torch and timm by ours, in place.

    The numbers of a forward pass of one view in one process stay the same, and so do the names in
    the state dict. Layers of other kinds stay as they are; `separates_views` is then False.
    """
    for layer in network.modules():
        converted = _converted_class(layer)
        if converted is not None:
            # The classes differ in methods alone. The layer keeps its parameters, buffers, settings
            # and hooks.
            layer.__class__ = converted


def _converted_class(layer: nn.Module) -> type[nn.Module] | None:
    """Return our class for a layer; None if there is none."""
    cls = type(layer)
    is_act = cls.__name__ == "BatchNormAct2d" and cls.__module__.startswith("timm.")
    if cls not in (nn.BatchNorm1d, nn.BatchNorm2d) and not is_act:
        return None
    # Our layers do not support cumulative averages, or statistics that are not tracked.
    if layer.momentum is None or not layer.track_running_stats:
        return None
    if is_act:
        return BatchNormAct2d
    return BatchNorm1d if cls is nn.BatchNorm1d else BatchNorm2d
