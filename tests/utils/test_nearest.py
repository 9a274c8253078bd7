"""`nearest` of utils/knn.py against a plain sort.

Features are small integers here. All sums of products are then exact, so similarities must be equal
to the bit, whichever library multiplies. Many of them are equal to each other.
"""

import pytest
import torch
from torch import Tensor

from utils import knn
from utils.knn import BLOCK, multiply_by_onednn, nearest, topk_by_blocks

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


def integers(rows: int, features: int, seed: int = 0) -> Tensor:
    """Return integers from -3 to 3 as float32, (rows, features)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (rows, features), generator=generator).float()


def check_neighbours(found: tuple[Tensor, Tensor], similarity: Tensor, k: int) -> None:
    """Check that k different neighbours were found, with the k largest similarities (Q, N)."""
    values, indices = found
    assert torch.equal(values, similarity.sort(dim=1, descending=True).values[:, :k])
    assert torch.equal(values, similarity.gather(1, indices))
    assert all(len(row.unique()) == k for row in indices)


@pytest.mark.parametrize(
    ("queries", "bank", "features", "k"),
    [
        (1, 1, 1, 1),
        (7, 129, 3, 1),  # the smallest bank that has blocks, with one entry in the last block
        (70, 2049, 33, 16),  # two tiles, the second of one entry
        (70, 2047, 33, 15),  # less than a tile
        (63, 6401, 17, 50),  # too few queries for oneDNN
        (130, 6400, 40, 50),  # the smallest bank that has blocks for this k
        (130, 6399, 40, 50),  # the largest bank that has none
        (200, 12_345, 65, 96),
        (65, 3000, 20, 2999),
        (65, 3000, 20, 3000),
    ],
)
@pytest.mark.parametrize("chunk_size", [1, 37, 1000])
def test_neighbours_are_those_of_a_plain_sort(
    queries: int, bank: int, features: int, k: int, chunk_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "CHUNK_ELEMENTS", {"cpu": chunk_size * bank})
    q = integers(queries, features, seed=1)
    x = integers(bank, features)
    check_neighbours(nearest(q, x, k), q @ x.T, k)


@pytest.mark.parametrize("descending", [False, True])
def test_the_order_of_the_bank_does_not_matter(descending: bool) -> None:
    q = integers(1, 30, seed=1).repeat(70, 1)
    x = integers(9000, 30)
    order = (x @ q[0]).argsort(descending=descending)  # so all neighbours are in one or two blocks
    check_neighbours(nearest(q, x[order], 60), q @ x[order].T, 60)


@pytest.mark.parametrize("bank", [100, 3001, 12_800])
def test_equal_entries_are_different_neighbours(bank: int) -> None:
    q = integers(80, 8, seed=1)
    x = integers(1, 8).repeat(bank, 1)
    check_neighbours(nearest(q, x, 60), q @ x.T, 60)


@pytest.mark.parametrize(("bank", "k"), [(90, 89), (3001, 20), (3001, 3000)])
def test_an_own_entry_is_not_a_neighbour(
    bank: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "CHUNK_ELEMENTS", {"cpu": 37 * bank})
    x = integers(bank, 12)
    own = torch.arange(bank - 90, bank)
    q = x[own]
    similarity = q @ x.T
    similarity[torch.arange(90), own] = -torch.inf
    values, indices = nearest(q, x, k, own)
    assert not bool((indices == own[:, None]).any())
    check_neighbours((values, indices), similarity, k)


@pytest.mark.parametrize("outside", [-1, -3001, 3001, 5000])
def test_an_own_index_outside_of_the_bank_excludes_nothing(outside: int) -> None:
    q = integers(70, 12, seed=1).abs() + 1
    x = integers(3001, 12)
    x[[0, -1]] = 9  # The first and the last entry, which -3001 and -1 might mean, are the nearest.
    own = torch.full((70,), outside)
    check_neighbours(nearest(q, x, 20, own), q @ x.T, 20)


@pytest.mark.parametrize("processes", [2, 3])
def test_neighbours_in_parts_of_the_bank_include_those_in_the_bank(processes: int) -> None:
    x = integers(9001, 12)
    own = torch.arange(4000, 4100)  # in one part, or in two
    similarity = x[own] @ x.T
    similarity[torch.arange(100), own] = -torch.inf
    values: list[Tensor] = []
    indices: list[Tensor] = []
    start = 0
    for part in x.chunk(processes):
        part_values, part_indices = nearest(x[own], part, 20, own - start)
        values.append(part_values)
        indices.append(part_indices + start)
        start += len(part)
    merged, columns = torch.cat(values, dim=1).topk(20, dim=1)
    check_neighbours((merged, torch.cat(indices, dim=1).gather(1, columns)), similarity, 20)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_give_float32_similarities(dtype: torch.dtype) -> None:
    q = integers(70, 8, seed=1)  # similarities of 8 features are exact in bfloat16, too
    x = integers(3000, 8)
    values, indices = nearest(q.to(dtype), x.to(dtype), 10)
    assert values.dtype == torch.float32
    check_neighbours((values, indices), q @ x.T, 10)


def test_queries_may_be_none() -> None:
    values, indices = nearest(integers(0, 8), integers(3000, 8), 10)
    assert values.shape == indices.shape == (0, 10)


@pytest.mark.parametrize("blocks", [5, 6, 40])
def test_topk_by_blocks_equals_topk(blocks: int) -> None:
    generator = torch.Generator().manual_seed(0)
    product = torch.rand(9, blocks * BLOCK, generator=generator)
    product[0] = 0.5  # all values of this row are equal
    product[1, ::BLOCK] = 2  # one large value in each block
    product[2, : 2 * BLOCK] += 1  # all large values in two blocks
    product[3, -BLOCK + 1 :] = -torch.inf  # as in a buffer that is wider than the bank
    check_neighbours(topk_by_blocks(product, 5), product, 5)


def test_topk_by_blocks_never_selects_padding() -> None:
    product = torch.full((3, 4 * BLOCK), -torch.inf)
    product[:, : 2 * BLOCK + 1] = -5.0
    values, indices = topk_by_blocks(product, 3)
    assert bool((values == -5).all())
    assert bool((indices <= 2 * BLOCK).all())


@needs_onednn
@pytest.mark.parametrize("bank", [1, 2048, 5000])
def test_onednn_multiplies_as_mm(bank: int) -> None:
    q = integers(50, 21, seed=1)
    x = integers(bank, 21)
    buffer = torch.full((50, bank + 3), 7.0)
    multiply_by_onednn(q, x, out=buffer[:, :bank])
    assert torch.equal(buffer[:, :bank], q @ x.T)
    assert bool((buffer[:, bank:] == 7).all())


@needs_onednn
def test_onednn_takes_tensors_that_are_not_contiguous() -> None:
    q = integers(21, 50, seed=1).T
    x = integers(21, 6000).T[::2]
    out = torch.empty(50, 3000)
    multiply_by_onednn(q, x, out=out)
    assert torch.equal(out, q @ x.T)


@needs_onednn
def test_onednn_multiplies_in_float32_under_autocast() -> None:
    q = torch.rand(50, 64, generator=torch.Generator().manual_seed(0))
    out = torch.empty(50, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        multiply_by_onednn(q, q, out=out)
    assert torch.allclose(out.double(), q.double() @ q.double().T, rtol=1e-6, atol=0)
