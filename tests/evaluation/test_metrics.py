"""Accuracy in total and of each class. RankMe is in tests/callbacks/test_knn.py."""

import torch
from sklearn.metrics import top_k_accuracy_score

from simsiam.evaluation.metrics import accuracy, confusion, per_class, top_accuracy


def test_accuracies_of_four_predictions() -> None:
    truth = torch.tensor([0, 0, 0, 1])
    predicted = torch.tensor([0, 0, 1, 1])
    counts = confusion(predicted, truth, classes=3)
    assert counts.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert accuracy(predicted, truth) == 75
    assert per_class(predicted, truth, ("a", "b", "c")) == {"a": 200 / 3, "b": 100, "c": None}


def test_top_accuracy_counts_images_whose_class_is_among_the_best() -> None:
    torch.manual_seed(0)
    logits = torch.randn(50, 8)
    labels = torch.randint(8, (50,))
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=range(8))
        assert abs(top_accuracy(logits, labels, k) - 100 * expected) < 1e-4
