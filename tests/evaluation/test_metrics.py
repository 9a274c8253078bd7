"""Accuracy in total and of each class. RankMe is in tests/callbacks/test_knn.py."""

import torch

from simsiam.evaluation.metrics import accuracy, confusion, per_class


def test_accuracies_of_four_predictions() -> None:
    truth = torch.tensor([0, 0, 0, 1])
    predicted = torch.tensor([0, 0, 1, 1])
    counts = confusion(predicted, truth, classes=3)
    assert counts.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert accuracy(counts) == 75
    assert per_class(counts, ("a", "b", "c")) == {"a": 200 / 3, "b": 100, "c": None}
