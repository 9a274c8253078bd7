"""LARS: the optimizer of SimSiam's linear classification."""

import copy

import pytest
import torch
from timm.optim.lars import Lars
from torch import nn
from torch.nn.functional import cross_entropy

from utils.lars import LARS


def apex_larc_step(optimizer: torch.optim.SGD) -> None:
    """Step as apex's LARC(optimizer, trust_coefficient=0.001, clip=False), in its own words."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            param_norm = torch.norm(p.data)
            grad_norm = torch.norm(p.grad.data)
            if param_norm != 0 and grad_norm != 0:
                p.grad.data *= 0.001 * param_norm / (grad_norm + 1e-8)
    optimizer.step()


@pytest.mark.parametrize("oracle", ["apex", "timm"])
def test_lars_is_the_larc_of_main_lincls(oracle: str) -> None:
    torch.manual_seed(0)
    ours = nn.Linear(16, 5).double()
    nn.init.zeros_(ours.bias)  # as in main_lincls.py: its first gradient is not scaled
    theirs = copy.deepcopy(ours)
    optimizer = LARS(ours.parameters(), 1.6, momentum=0.9)
    if oracle == "apex":
        other = torch.optim.SGD(theirs.parameters(), 1.6, momentum=0.9)
    else:
        other = Lars(theirs.parameters(), 1.6, momentum=0.9, always_adapt=True)
    for _ in range(10):
        x = torch.randn(32, 16).double()
        y = torch.randint(5, (32,))
        for head, of_head in ((ours, optimizer), (theirs, other)):
            of_head.zero_grad()
            cross_entropy(head(x), y).backward()
        optimizer.step()
        if isinstance(other, torch.optim.SGD):
            apex_larc_step(other)
        else:
            other.step()
    for name, expected in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], expected, rtol=1e-12, atol=1e-14)


def test_a_closure_is_refused() -> None:
    optimizer = LARS([torch.zeros(1, requires_grad=True)], 0.1)
    with pytest.raises(ValueError, match="takes no closure"):
        optimizer.step(lambda: 0.0)
