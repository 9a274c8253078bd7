"""utils/knn.py against lightly's knn_predict, scikit-learn and hand-made values."""

import numpy as np
import pytest
import torch
from lightly.utils.benchmarking import knn_predict as lightly_knn_predict
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import normalize

from tests.helpers import measure_alone
from utils import knn
from utils.knn import choose_k, knn_predict, nearest


@pytest.fixture
def clusters() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries (500, 32), bank (3000, 32) and labels (3000,) of ten overlapping clusters."""
    torch.manual_seed(0)
    centers, labels = torch.randn(10, 32), torch.randint(0, 10, (3000,))
    bank = normalize(centers[labels] + 2 * torch.randn(3000, 32), dim=1)
    queries = normalize(centers[torch.randint(0, 10, (500,))] + 2 * torch.randn(500, 32), dim=1)
    return queries, bank, labels


@pytest.mark.parametrize("k", [1, 20, 200])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 0.2])
def test_equal_to_lightly(clusters: tuple[torch.Tensor, ...], k: int, temperature: float) -> None:
    queries, bank, labels = clusters
    theirs = lightly_knn_predict(queries, bank.T, labels, 10, knn_k=k, knn_t=temperature)[:, 0]
    assert torch.equal(knn_predict(queries, bank, labels, 10, k, temperature), theirs)


@pytest.mark.parametrize("k", [1, 20, 200])
def test_equal_to_scikit_learn(clusters: tuple[torch.Tensor, ...], k: int) -> None:
    queries, bank, labels = clusters
    vote = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1)
    )
    theirs = vote.fit(bank.numpy(), labels.numpy()).predict(queries.numpy())
    assert np.array_equal(knn_predict(queries, bank, labels, 10, k, 0.1).numpy(), theirs)


def test_the_votes_are_weighted_by_similarity() -> None:
    bank = normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]]), dim=1)
    query, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0, 1, 1])
    # exp(1/T) votes for class 0, and 2 exp(.6/T) for class 1. They are equal at T = .4/ln 2 = .577.
    assert knn_predict(query, bank, labels, 2, k=3, temperature=0.57).item() == 0
    assert knn_predict(query, bank, labels, 2, k=3, temperature=0.59).item() == 1


@pytest.mark.parametrize("temperature", [1e-4, 1e4])
def test_no_temperature_over_or_underflows(
    clusters: tuple[torch.Tensor, ...], temperature: float
) -> None:
    queries, bank, labels = clusters
    predicted = knn_predict(queries, bank, labels, 10, k=1, temperature=1.0)
    if temperature < 1:  # The nearest neighbour alone decides.
        assert torch.equal(
            knn_predict(queries, bank, labels, 10, k=50, temperature=temperature), predicted
        )
    else:  # All neighbours have the same weight: the majority decides.
        nearest = labels[(queries @ bank.T).topk(51).indices]
        counts = torch.nn.functional.one_hot(nearest, 10).sum(1)
        voted = counts.gather(
            1, knn_predict(queries, bank, labels, 10, k=51, temperature=1e6)[:, None]
        )[:, 0]
        assert torch.equal(voted, counts.amax(1))


def test_the_chunk_size_changes_nothing(
    clusters: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, bank, labels = clusters
    in_one_chunk = knn_predict(queries, bank, labels, 10)
    monkeypatch.setattr(knn, "CHUNK_ELEMENTS", {"cpu": 7 * len(bank)})
    assert torch.equal(knn_predict(queries, bank, labels, 10), in_one_chunk)


@pytest.mark.parametrize("k", [1, 20, 399])
def test_an_image_of_the_bank_does_not_vote_for_itself(
    clusters: tuple[torch.Tensor, ...], k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, bank, labels = clusters
    bank = bank[:400]
    bank[1] = bank[0]  # A copy of an image is another image, and votes.
    labels = labels[:400]
    monkeypatch.setattr(knn, "CHUNK_ELEMENTS", {"cpu": 7 * len(bank)})
    predicted = knn_predict(bank, bank, labels, 10, k, own=torch.arange(400))
    for i in (0, 1, 6, 7, 8, 399):  # on both sides of the border between two chunks
        others = torch.arange(400) != i
        expected = knn_predict(bank[i : i + 1], bank[others], labels[others], 10, k)
        assert predicted[i] == expected[0]
    assert knn_predict(bank, bank, labels, 10, 1, own=torch.arange(400))[0] == labels[1]


def test_all_images_of_the_bank_but_the_own_one_can_vote() -> None:
    bank = torch.eye(3)
    with pytest.raises(ValueError, match="from 1 to the 2 images"):
        knn_predict(bank, bank, torch.arange(3), 3, k=3, own=torch.arange(3))


def test_an_empty_part_of_a_bank_has_no_neighbours() -> None:
    similarity, index = nearest(torch.eye(5), torch.empty(0, 5), 0)
    assert similarity.shape == index.shape == (5, 0)


@pytest.mark.parametrize(("k", "temperature"), [(0, 0.1), (3001, 0.1), (20, 0.0), (20, -1.0)])
def test_impossible_settings_are_refused(
    clusters: tuple[torch.Tensor, ...], k: int, temperature: float
) -> None:
    with pytest.raises(ValueError, match=r"kNN|neighbours"):
        knn_predict(*clusters, 10, k, temperature)


@pytest.mark.parametrize(
    ("images_by_class", "k"),
    [
        ([5000] * 10, 200),  # CIFAR-10
        ([500] * 100, 200),  # CIFAR-100
        ([94] * 10, 94),
        ([3, 94, 100, 5000], 94),  # the lower one of the two in the middle
        ([1, 94, 100], 94),  # a rare class does not decide
        ([0, 0, 0, 30, 30], 30),  # nor does one that does not occur
        ([1], 1),
    ],
)
def test_k_is_at_most_the_images_of_a_typical_class(images_by_class: list[int], k: int) -> None:
    labels = torch.arange(len(images_by_class)).repeat_interleave(torch.tensor(images_by_class))
    assert choose_k(labels, 200) == k


def test_no_image_of_another_class_has_to_vote() -> None:
    labels = torch.arange(10).repeat_interleave(94)
    features = torch.eye(10)[labels]  # each class in a direction of its own
    _, neighbours = nearest(features, features, choose_k(labels, 200))
    assert bool((labels[neighbours] == labels[:, None]).all())
    _, neighbours = nearest(features, features, 200)
    assert not bool((labels[neighbours] == labels[:, None]).any(dim=0).all())


VOTE_OF_MANY_CLASSES = """
import resource, torch
from utils.knn import vote
similarity, labels = torch.rand(10_000, 2), torch.arange(20_000).view(10_000, 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert torch.equal(vote(similarity, labels, 20_000, 0.1) % 2, similarity.argmax(dim=1))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_votes_for_many_classes_take_little_memory() -> None:
    """All votes together would take 800 MB."""
    (kibibytes,) = measure_alone(VOTE_OF_MANY_CLASSES)
    assert kibibytes < 300_000
