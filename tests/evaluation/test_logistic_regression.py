"""simsiam/evaluation/logistic_regression.py against scikit-learn's LogisticRegression, which minimises the same."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from simsiam.evaluation import logistic_regression
from simsiam.evaluation.logistic_regression import fit_logistic


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Features (2000, 20) and labels (2000,) of five overlapping classes."""
    torch.manual_seed(0)
    centers, labels = torch.randn(5, 20), torch.randint(0, 5, (2000,))
    return centers[labels] + 2 * torch.randn(2000, 20), labels


@pytest.mark.parametrize("weight_decay", [1e-1, 1e-3, 1e-5])
def test_equal_to_scikit_learn(problem: tuple[torch.Tensor, torch.Tensor], weight_decay: float) -> None:
    """In float64 to 1e-5; in float32 as far as its sums go, by what is predicted."""
    x, labels = problem
    theirs = LogisticRegression(C=1 / (len(x) * weight_decay), tol=1e-10, max_iter=1000)
    theirs.fit(x.double().numpy(), labels.numpy())
    coefficients, intercepts = torch.tensor(theirs.coef_), torch.tensor(theirs.intercept_)
    weight, bias, converged = fit_logistic(x.double(), labels, 5, weight_decay, tolerance=1e-8)
    assert converged
    torch.testing.assert_close(weight, coefficients, atol=1e-5, rtol=0)
    torch.testing.assert_close(bias - bias.mean(), intercepts - intercepts.mean(), atol=1e-5, rtol=0)  # not decayed
    weight, bias, converged = fit_logistic(x, labels, 5, weight_decay)
    assert converged and weight.dtype == torch.float32
    ours = torch.addmm(bias, x, weight.T).softmax(dim=1)
    expected = torch.tensor(theirs.predict_proba(x.double().numpy())).float()
    torch.testing.assert_close(ours, expected, atol=0.01, rtol=0)


def test_a_start_elsewhere_ends_in_the_same_place(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, labels = problem
    cold = fit_logistic(x, labels, 5, 1e-3, tolerance=1e-5)
    given = fit_logistic(x, labels, 5, 1e-1)
    kept = [tensor.clone() for tensor in given[:2]]
    warm = fit_logistic(x, labels, 5, 1e-3, given, tolerance=1e-5)
    probabilities = [torch.addmm(bias, x, weight.T).softmax(dim=1) for weight, bias, _ in (cold, warm)]
    torch.testing.assert_close(*probabilities, atol=1e-3, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(given[:2], kept, strict=True))


def test_it_learns_what_is_separable_and_decay_shrinks_it() -> None:
    x, labels = torch.eye(3).repeat(50, 1), torch.arange(3).repeat(50)
    norms = []
    for weight_decay in (1e-4, 1e-2, 1.0):
        weight, bias, _ = fit_logistic(x, labels, 3, weight_decay)
        assert torch.equal(torch.addmm(bias, x, weight.T).argmax(dim=1), labels)
        norms.append(weight.norm().item())
    assert norms == sorted(norms, reverse=True)


def test_it_says_when_it_was_stopped_before_it_had_converged(
    problem: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logistic_regression, "ITERATIONS", 3)
    assert not fit_logistic(*problem, 5, 1e-5).converged
