"""Use a network in eval mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, and each of its modules back into its own mode at the end.

    `network.train()` alone would also put those modules into train mode that were in eval mode
    before, such as frozen batch normalisation.
    """
    was_training = network.training
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        # Some networks do more in their `train` than to set the modes.
        network.train(was_training)
        for module, mode in modes:
            module.training = mode
