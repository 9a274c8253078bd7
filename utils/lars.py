"""LARS, the optimizer for linear classifiers with very large batches (arXiv 1708.03888)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

EPS = 1e-8


class LARS(SGD):
    """SGD on gradients that are as long as a fraction of their parameter.

    It equals apex's `LARC(SGD(...), trust_coefficient=0.001, clip=False)`, which SimSiam's
    main_lincls.py uses. The LARS of lightning-bolts does not: without weight decay, which that
    program does not use, it scales nothing.

    Args:
        params: as of SGD.
        lr: learning rate.
        momentum: momentum of the scaled gradients.
        trust_coefficient: length of a scaled gradient, as a fraction of the parameter's length.
    """

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.0, trust_coefficient: float = 0.001
    ) -> None:
        super().__init__(params, lr, momentum)
        self.trust_coefficient = trust_coefficient

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Scale the gradients in place, and make a step of SGD."""
        if closure is not None:
            raise ValueError("LARS takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._scale(parameter.grad, parameter)
        return super().step()

    @torch.no_grad()
    def _scale(self, gradient: Tensor, parameter: Tensor) -> None:
        length = parameter.norm()
        gradient_length = gradient.norm()
        factor = self.trust_coefficient * length / (gradient_length + EPS)
        # The gradient of a parameter that is zero, such as a new bias, keeps its length. Tensors
        # instead of `if` do not wait for the device.
        is_scaled = (length > 0) & (gradient_length > 0)
        gradient.mul_(torch.where(is_scaled, factor, 1.0))
