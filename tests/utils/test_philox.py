"""utils/philox.py against known answers of Random123, and properties of the numbers."""

import pytest
import torch

from utils.philox import permutation, philox, uniform

# Counter, key and output of philox4x32 with 10 rounds, from kat_vectors of Random123.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_output_is_that_of_random123(counter: str, key: str, output: str) -> None:
    c0, c1, c2, c3 = (torch.tensor([int(word, 16)]) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    assert [
        f"{word.item():08x}" for word in philox((c0, c1, c2, c3), k0 | k1 << 32)
    ] == output.split()


def test_a_number_does_not_depend_on_its_batch() -> None:
    all_numbers = uniform(torch.arange(1000), 3, 1, 30, seed=5)
    some = torch.tensor([999, 17, 0])
    assert torch.equal(uniform(some, 3, 1, 30, seed=5), all_numbers[some])
    assert torch.equal(uniform(some, 3, 1, 12, seed=5), all_numbers[some][:, :12])


def test_each_coordinate_changes_the_numbers() -> None:
    index = torch.arange(100)
    draws = [
        uniform(index, e, v, 8, seed=s)
        for e, v, s in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2**40)]
    ]
    for i, a in enumerate(draws):
        for b in draws[i + 1 :]:
            assert not torch.isclose(a, b, atol=1e-4).float().mean() > 0.01


def test_the_numbers_are_uniform_and_uncorrelated() -> None:
    u = uniform(torch.arange(100_000), 0, 0, 4, seed=0).double()
    assert u.min() >= 0 and u.max() < 1
    counts = torch.histc(u.flatten(), 100, 0, 1)
    chi2 = ((counts - 4000) ** 2 / 4000).sum().item()
    assert 55 < chi2 < 160  # 99 degrees of freedom: mean 99, deviation 14
    assert (torch.corrcoef(u.T) - torch.eye(4)).abs().max() < 0.015


def test_each_epoch_has_another_permutation() -> None:
    first, again, second = (permutation(5000, e, seed=1) for e in (0, 0, 1))
    assert torch.equal(first.sort().values, torch.arange(5000))
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert (first == second).sum() < 12  # expected: 1
    assert (first == torch.arange(5000)).sum() < 12
