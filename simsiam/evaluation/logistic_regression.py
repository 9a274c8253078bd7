"""Multinomial logistic regression on features that fit into memory: L-BFGS over all of them at once."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

ITERATIONS = 1000  # at most; probes of 50,000 x 512 features took 20 to 300
TOLERANCE = 3e-4  # largest gradient of the mean loss at which it has converged: a third of it changes no accuracy


class Fit(NamedTuple):
    """Weights (C, F), biases (C,), and whether the tolerance was reached."""

    weight: Tensor
    bias: Tensor
    converged: bool


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    weight_decay: float,
    start: Fit | None = None,
    tolerance: float = TOLERANCE,
) -> Fit:
    """Weights W and biases b that minimise mean cross-entropy + weight_decay / 2 |W|^2, the biases not decayed.

    scikit-learn's `LogisticRegression(C=1 / (N weight_decay))` has the same minimum.

    Args:
        features: (N, F) float32, standardised or the like: L-BFGS wants columns of about one scale.
        labels: (N,) int64, in 0 .. num_classes - 1.
        start: where to begin, such as at the fit of a neighbouring weight decay; at zeros otherwise.
    """
    if start is None:
        start = Fit(features.new_zeros(num_classes, features.shape[1]), features.new_zeros(num_classes), False)
    weight, bias = (tensor.detach().clone().requires_grad_() for tensor in start[:2])
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=ITERATIONS,
        max_eval=2 * ITERATIONS,
        tolerance_grad=tolerance,
        tolerance_change=0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        logits = torch.addmm(bias, features, weight.T)
        loss = cross_entropy(logits, labels) + weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(objective)  # pyright: ignore[reportArgumentType]  (torch calls a tensor's float() itself)
    objective()
    steepest = max(tensor.grad.abs().max().item() for tensor in (weight, bias) if tensor.grad is not None)
    return Fit(weight.detach(), bias.detach(), steepest <= tolerance)
