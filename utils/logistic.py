"""Multinomial logistic regression on features that fit into memory: L-BFGS over all of them at once."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

ITERATIONS = 200  # at most; a probe needs 20 to 100
TOLERANCE = 1e-5  # largest gradient of the mean loss at which it has converged


def fit_logistic(
    features: Tensor, labels: Tensor, num_classes: int, weight_decay: float, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Weights W and biases b that minimise mean cross-entropy + weight_decay / 2 |W|^2, the biases not decayed.

    scikit-learn's `LogisticRegression(C=1 / (N weight_decay))` has the same minimum.

    Args:
        features: (N, F) float32, standardised or the like: L-BFGS wants columns of about one scale.
        labels: (N,) int64, in 0 .. num_classes - 1.
        start: W and b to begin from, such as those of a neighbouring weight decay; zeros otherwise.

    Returns:
        W (num_classes, F) and b (num_classes,).
    """
    if start is None:
        start = features.new_zeros(num_classes, features.shape[1]), features.new_zeros(num_classes)
    weight, bias = (tensor.detach().clone().requires_grad_() for tensor in start)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=ITERATIONS,
        tolerance_grad=TOLERANCE,
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
    return weight.detach(), bias.detach()
