"""Multinomial logistic regression on features that fit into memory: L-BFGS over all of them at once."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

ITERATIONS = 1000  # at most; probes of 50,000 x 512 features took 20 to 300
TOLERANCE = 3e-4  # largest gradient of the mean loss at which it has converged: a third of it changes no accuracy


def make_head(features: int, classes: int) -> nn.Linear:
    """A linear classifier whose weights and biases are zero."""
    head = nn.Linear(features, classes)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head


def fit_logistic(
    head: nn.Linear,
    features: Tensor,
    labels: Tensor,
    weight_decay: float,
    tolerance: float = TOLERANCE,
) -> bool:
    """Minimise mean cross-entropy + weight_decay / 2 |W|^2 in place, biases not decayed; whether it has converged.

    scikit-learn's `LogisticRegression(C=1 / (N weight_decay))` has the same minimum. Features (N, F) are to be
    standardised: L-BFGS wants columns of about one scale.
    """
    solver = torch.optim.LBFGS(
        head.parameters(),
        max_iter=ITERATIONS,
        max_eval=2 * ITERATIONS,
        tolerance_grad=tolerance,
        tolerance_change=0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = cross_entropy(head(features), labels) + weight_decay / 2 * head.weight.square().sum()
        loss.backward()
        return loss

    solver.step(objective)  # pyright: ignore[reportArgumentType]  (torch calls a tensor's float() itself)
    objective()
    return all(
        p.grad is not None and p.grad.abs().max().item() <= tolerance for p in head.parameters()
    )


def standardise_features(x: Tensor) -> tuple[Tensor, Tensor]:
    """Give each column of (N, F) mean 0 and deviation 1, in place; return the means and deviations (F,) it had."""
    center, spread = x.mean(dim=0), x.std(dim=0)
    spread = torch.where(spread > 0, spread, 1.0)
    x.sub_(center).div_(spread)
    return center, spread


@torch.no_grad()
def adapt_head(head: nn.Linear, center: Tensor, spread: Tensor) -> None:
    """Have a head for standardised features give the same logits for raw ones, in place."""
    head.weight.div_(spread)
    head.bias.sub_(head.weight @ center)
