"""simsiam/loss.py: hand-made values, lightly's loss, and where gradients go."""

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from torch import Tensor
from torch.nn.functional import cosine_similarity

from simsiam.loss import D, siamese_loss, z_std


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def test_D_of_hand_made_vectors() -> None:
    p = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    z = torch.tensor([[3.0, 4.0], [0.0, 5.0], [0.0, -1.0]])
    torch.testing.assert_close(D(p, z), torch.tensor(-(1.0 + 0.0 - 1.0) / 3))
    torch.testing.assert_close(D(p[:1], torch.tensor([[4.0, 3.0]])), torch.tensor(-0.96))


def test_D_is_lightlys() -> None:
    p, z = torch.randn(32, 16), torch.randn(32, 16)
    torch.testing.assert_close(D(p, z), NegativeCosineSimilarity()(p, z))


def test_the_cosine_keeps_float64() -> None:
    p, z = torch.randn(2, 8, 5, dtype=torch.float64)
    expected = -cosine_similarity(p, z, dim=1).mean()
    assert D(p, z).dtype == torch.float64 and abs(D(p, z) - expected) < 1e-15
    assert D(p.bfloat16(), z.bfloat16()).dtype == torch.float32


def test_gradient_stops_at_z() -> None:
    p, z = leaf(8, 4), leaf(8, 4)
    D(p, z).backward()
    assert z.grad is None and p.grad is not None and p.grad.abs().sum() > 0


def test_without_stop_grad_the_gradient_reaches_z() -> None:
    p, z = leaf(8, 4), leaf(8, 4)
    D(p, z, stop_grad=False).backward()
    assert z.grad is not None and z.grad.abs().sum() > 0


def test_two_views_give_algorithm_1() -> None:
    p1, p2, z1, z2 = (torch.randn(8, 4) for _ in range(4))
    torch.testing.assert_close(siamese_loss([p1, p2], [z1, z2]), D(p1, z2) / 2 + D(p2, z1) / 2)
    torch.testing.assert_close(siamese_loss([p1, p2], [z1, z2], symmetric=False), D(p1, z2))


def test_more_views_predict_the_mean_of_the_others() -> None:
    p, z = torch.randn(3, 8, 4), torch.randn(3, 8, 4)
    expected = (
        D(p[0], (z[1] + z[2]) / 2) + D(p[1], (z[0] + z[2]) / 2) + D(p[2], (z[0] + z[1]) / 2)
    ) / 3
    torch.testing.assert_close(siamese_loss(list(p), list(z)), expected)


@pytest.mark.parametrize("views", [2, 4])
def test_only_predictions_get_gradients(views: int) -> None:
    p, z = [leaf(8, 4) for _ in range(views)], [leaf(8, 4) for _ in range(views)]
    siamese_loss(p, z).backward()
    assert all(z_i.grad is None for z_i in z)
    assert all(p_i.grad is not None and p_i.grad.abs().sum() > 0 for p_i in p)


def test_z_std_is_one_for_a_gaussian_and_zero_for_a_constant() -> None:
    torch.manual_seed(0)
    assert z_std(torch.randn(4096, 256)).item() == pytest.approx(1, abs=0.01)
    assert z_std(torch.ones(64, 16)).item() == pytest.approx(0, abs=1e-6)
    assert z_std(torch.ones(64, 16) + 1e-3 * torch.randn(64, 16)).item() < 0.01
