"""Multinomial logistic regression on features in memory, by L-BFGS on all of them at once."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

MAX_ITERATIONS = 1000  # fits on 50,000 x 512 features took 20 to 300
# Converged when no gradient of the mean loss exceeds this. A third of it changes no accuracy.
GRADIENT_TOLERANCE = 3e-4


def make_head(features: int, classes: int, std: float = 0.0, seed: int = 0) -> nn.Linear:
    """Return a linear classifier with biases of zero.

    Args:
        std: standard deviation of the weights, which are zero by default.
        seed: decides the weights.
    """
    head = nn.Linear(features, classes)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    if std > 0:
        nn.init.normal_(head.weight, std=std, generator=torch.Generator().manual_seed(seed))
    return head


def fit_logistic(
    head: nn.Linear,
    features: Tensor,
    labels: Tensor,
    weight_decay: float,
    tolerance: float = GRADIENT_TOLERANCE,
) -> bool:
    """Minimise mean cross-entropy + weight_decay / 2 |W|^2 in place; biases are not decayed.

    scikit-learn's `LogisticRegression(C=1 / (N weight_decay))` has the same minimum.

    Args:
        head: (B, F) -> (B, C).
        features: (N, F), standardised, because L-BFGS needs columns of about the same scale.
        labels: (N,) int64.
        weight_decay: see above.
        tolerance: largest gradient at which the fit has converged.

    Returns:
        Whether the fit has converged.
    """
    solver = torch.optim.LBFGS(
        head.parameters(),
        max_iter=MAX_ITERATIONS,
        max_eval=2 * MAX_ITERATIONS,
        tolerance_grad=tolerance,
        tolerance_change=0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def compute_loss() -> Tensor:
        solver.zero_grad()
        penalty = weight_decay / 2 * head.weight.square().sum()
        loss = cross_entropy(head(features), labels) + penalty
        loss.backward()
        return loss

    # The annotation of `step` wants a float, but torch itself converts the tensor.
    solver.step(compute_loss)  # pyright: ignore[reportArgumentType]

    # The solver may have left gradients of a trial point, so compute those of the solution.
    compute_loss()
    for parameter in head.parameters():
        assert parameter.grad is not None
        # Not `largest > tolerance`, which is False for NaN.
        if not parameter.grad.abs().max().item() <= tolerance:
            return False
    return True


def standardise_in_place(x: Tensor) -> tuple[Tensor, Tensor]:
    """Give each column of the features (N, F) mean 0 and standard deviation 1, in place.

    Returns:
        The means and standard deviations (F,) that the columns had. The deviation of a constant
        column is returned as 1.
    """
    center = x.mean(dim=0)
    spread = x.std(dim=0)
    spread = torch.where(spread > 0, spread, 1.0)
    x.sub_(center).div_(spread)
    return center, spread


@torch.no_grad()
def fold_standardisation(head: nn.Linear, center: Tensor, spread: Tensor) -> None:
    """Change a head for standardised features into an equal one for raw features, in place.

    Args:
        head: takes standardised features before, and raw features afterwards.
        center, spread: (F,) each, as `standardise_in_place` returned them.
    """
    head.weight.div_(spread)
    head.bias.sub_(head.weight @ center)
