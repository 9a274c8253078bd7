"""Logistic regression has the minimum of scikit-learn's LogisticRegression."""

import copy

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from simsiam.evaluation import logistic_regression
from simsiam.evaluation.logistic_regression import (
    fit_logistic,
    fold_standardisation,
    make_head,
    standardise_in_place,
)


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Features (2000, 20) and labels (2000,) of five overlapping classes."""
    torch.manual_seed(0)
    centers, labels = torch.randn(5, 20), torch.randint(0, 5, (2000,))
    return centers[labels] + 2 * torch.randn(2000, 20), labels


@pytest.mark.parametrize("weight_decay", [1e-1, 1e-3, 1e-5])
def test_equal_to_scikit_learn(
    problem: tuple[torch.Tensor, torch.Tensor], weight_decay: float
) -> None:
    """In float64 to 1e-5; in float32 as far as its sums go, by what is predicted."""
    x, labels = problem
    theirs = LogisticRegression(C=1 / (len(x) * weight_decay), tol=1e-10, max_iter=1000)
    theirs.fit(x.double().numpy(), labels.numpy())
    coefficients, intercepts = torch.tensor(theirs.coef_), torch.tensor(theirs.intercept_)
    head = make_head(20, 5).double()
    assert fit_logistic(head, x.double(), labels, weight_decay, tolerance=1e-8)
    torch.testing.assert_close(head.weight.data, coefficients, atol=1e-5, rtol=0)
    bias = head.bias.data  # not decayed
    torch.testing.assert_close(
        bias - bias.mean(), intercepts - intercepts.mean(), atol=1e-5, rtol=0
    )
    head = make_head(20, 5)
    assert fit_logistic(head, x, labels, weight_decay)
    expected = torch.tensor(theirs.predict_proba(x.double().numpy())).float()
    torch.testing.assert_close(head(x).softmax(dim=1).data, expected, atol=0.01, rtol=0)


def test_a_start_elsewhere_ends_in_the_same_place(
    problem: tuple[torch.Tensor, torch.Tensor],
) -> None:
    cold, warm = make_head(20, 5), make_head(20, 5)
    fit_logistic(cold, *problem, 1e-3, tolerance=1e-5)
    for weight_decay in (1e-1, 1e-3):
        fit_logistic(warm, *problem, weight_decay, tolerance=1e-5)
    torch.testing.assert_close(
        *(head(problem[0]).softmax(dim=1) for head in (cold, warm)), atol=1e-3, rtol=0
    )


def test_it_learns_what_is_separable_and_decay_shrinks_it() -> None:
    x, labels = torch.eye(3).repeat(50, 1), torch.arange(3).repeat(50)
    norms = []
    for weight_decay in (1e-4, 1e-2, 1.0):
        head = make_head(3, 3)
        fit_logistic(head, x, labels, weight_decay)
        assert torch.equal(head(x).argmax(dim=1), labels)
        norms.append(head.weight.norm().item())
    assert norms == sorted(norms, reverse=True)


def test_it_says_when_it_was_stopped_before_it_had_converged(
    problem: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logistic_regression, "MAX_ITERATIONS", 3)
    assert not fit_logistic(make_head(20, 5), *problem, 1e-5)


def test_a_head_for_standardised_features_is_made_one_for_raw_features() -> None:
    torch.manual_seed(0)
    raw = 3 * torch.randn(50, 4) + 7
    raw[:, 3] = 2.0  # a feature that says nothing
    standardised, head = raw.clone(), torch.nn.Linear(4, 3)
    scale = standardise_in_place(standardised)
    torch.testing.assert_close(standardised.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        standardised.std(dim=0), torch.tensor([1.0, 1, 1, 0]), atol=1e-5, rtol=0
    )
    adapted = copy.deepcopy(head)
    fold_standardisation(adapted, *scale)
    torch.testing.assert_close(adapted(raw), head(standardised), atol=1e-5, rtol=1e-5)
