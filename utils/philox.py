"""Counter-based random numbers: Philox4x32-10 of Salmon et al. 2011.

The paper is "Parallel random numbers: as easy as 1, 2, 3". A number is a pure function of a key and
a counter. So there is no generator state to save or to share among workers, and the same counters
give the same bits on a CPU and on a GPU.

Here the key is the seed, and the counter is (sample index, epoch, stream, block). Each view of an
image has its own stream.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

MASK_32 = 0xFFFFFFFF  # the lowest 32 bits of a word
# Constants of Philox4x32: multipliers of the rounds, and what is added to the key after each round.
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
# Views use the first streams, and heavy views those from HEAVY_STREAMS on. `permutation`, which
# shuffles an epoch, uses the last stream.
HEAVY_STREAMS = 2**31
ORDER_STREAM = MASK_32

PIECE = 2**22  # numbers of an order that are sorted together by `permutation_in_pieces`
MAX_BUCKETS = 256  # their numbers take one byte
# Numbers whose keys are computed together, on a CPU and on a GPU. On a CPU, the intermediate
# results stay in its cache. On a GPU, each operation has a cost of its own.
CPU_KEY_CHUNK = 2**16
GPU_KEY_CHUNK = 2**24


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute ten rounds of Philox4x32.

    Args:
        counter: Four int64 tensors of 32-bit words, whose shapes broadcast.
        seed: The 64-bit key.

    Returns:
        Four int64 tensors of uniformly distributed 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0 = seed & MASK_32
    k1 = (seed >> 32) & MASK_32
    for _ in range(10):
        high0, low0 = _multiply(c0, MULTIPLIERS[0])
        high1, low1 = _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + KEY_INCREMENTS[0]) & MASK_32
        k1 = (k1 + KEY_INCREMENTS[1]) & MASK_32
    return c0, c1, c2, c3


def _multiply(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """Return the high and the low 32 bits of the product of two 32-bit numbers.

    The product is computed in two halves, because it would overflow a signed int64.
    """
    lower = (word & 0xFFFF) * constant  # < 2**48
    upper = (word >> 16) * constant + (lower >> 16)  # < 2**49
    high = upper >> 16
    low = ((upper & 0xFFFF) << 16) | (lower & 0xFFFF)
    return high, low


def uniform(
    index: Tensor, epoch: int | Tensor, stream: int | Tensor, count: int, *, seed: int
) -> Tensor:
    """Return random numbers for each sample.

    Args:
        index: Index of each sample, (B,) int64.
        epoch: Number of the epoch.
        stream: Number of the stream, for all samples or (B, 1) for each.
        count: How many numbers to return for each sample.
        seed: Seed of the run.

    Returns:
        (B, count) float32 in [0, 1), multiples of 2**-24.
    """
    num_blocks = (count + 3) // 4  # Each counter yields four words.
    block = torch.arange(num_blocks, device=index.device)
    zero = torch.zeros_like(block)
    words = philox((index[:, None] & MASK_32, zero + epoch, zero + stream, block), seed)
    flat_words = torch.stack(words, dim=2).flatten(1)[:, :count]  # (B, count)
    # A float32 represents integers below 2**24 exactly, so 24 of the 32 bits are used.
    return (flat_words >> 8).float() * 2**-24


def permutation(n: int, epoch: int, *, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the numbers 0 to n - 1 in a random order, (n,) int64.

    Args:
        n: How many numbers.
        epoch: Each epoch has another order.
        seed: Seed of the run.
        device: Device of the result. The order does not depend on it.
    """
    keys = torch.empty(n, dtype=torch.int64, device=device)
    for start, chunk in _split_range(n, device):
        keys[start : start + len(chunk)] = _sort_keys(chunk, epoch, seed)
    return torch.argsort(keys, stable=True)


def permutation_in_pieces(
    n: int,
    epoch: int,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    skip: int = 0,
    piece: int = PIECE,
) -> Iterator[Tensor]:
    """Yield the numbers of `permutation` in the same order, a piece at a time.

    This takes 2 bytes for each number, and about 40 for each number of a piece. `permutation` takes
    about 40 for each number.

    Args:
        n, epoch, seed, device: As for `permutation`.
        skip: How many numbers to leave out at the beginning.
        piece: About how many numbers a piece has.
    """
    num_buckets = min(MAX_BUCKETS, -(-n // piece))
    if num_buckets <= 1:
        yield permutation(n, epoch, seed=seed, device=device)[skip:]
        return
    # A bucket has the numbers whose keys are in an interval. So the sorted buckets, one after
    # another, are the sorted numbers.
    bucket = torch.empty(n, dtype=torch.uint8, device=device)
    for start, chunk in _split_range(n, device):
        high_bits = _sort_keys(chunk, epoch, seed) >> 32  # 31 bits
        bucket[start : start + len(chunk)] = (high_bits * num_buckets) >> 31

    position = 0  # of the first number of a bucket in the order of all numbers
    for i in range(num_buckets):
        members = (bucket == i).nonzero().flatten()
        if position + len(members) > skip:
            keys = torch.cat([_sort_keys(part, epoch, seed) for part in _split(members)])
            order = torch.argsort(keys, stable=True)
            yield members[order][max(0, skip - position) :]
        position += len(members)


def _sort_keys(index: Tensor, epoch: int, seed: int) -> Tensor:
    """Return the numbers (n,) by which an epoch is sorted: 63 random bits for each index (n,).

    A signed int64 has no more bits.
    """
    zero = torch.zeros(1, dtype=torch.int64, device=index.device)
    high, low, _, _ = philox((index, zero + epoch, zero + ORDER_STREAM, zero), seed)
    return ((high >> 1) << 32) | low


def _split_range(n: int, device: torch.device | str) -> Iterator[tuple[int, Tensor]]:
    """Yield the numbers 0 to n - 1 in chunks, each with its first number.

    The intermediate results of `philox` take about 100 bytes for each number of a chunk.
    """
    chunk = _key_chunk(torch.device(device))
    for start in range(0, n, chunk):
        yield start, torch.arange(start, min(start + chunk, n), device=device)


def _split(index: Tensor) -> tuple[Tensor, ...]:
    return index.split(_key_chunk(index.device))


def _key_chunk(device: torch.device) -> int:
    return GPU_KEY_CHUNK if device.type == "cuda" else CPU_KEY_CHUNK
