"""Counter-based random numbers: Philox4x32-10 of Salmon et al. 2011.

The paper is "Parallel random numbers: as easy as 1, 2, 3". A number is a pure function of a key and
a counter. So there is no generator state to save or to share among workers, and the same counters
give the same bits on a CPU and on a GPU.

Here the key is the seed, and the counter is (sample index, epoch, stream, block). Each view of an
image has its own stream.
"""

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
    index = torch.arange(n, device=device)
    zero = torch.zeros_like(index)
    high, low, _, _ = philox((index, zero + epoch, zero + ORDER_STREAM, zero), seed)
    # 63 random bits for each index; a signed int64 has no more.
    sort_keys = ((high >> 1) << 32) | low
    return torch.argsort(sort_keys, stable=True)
