"""Counter-based random numbers: Philox4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

A number is a pure function of a key and a counter: there is no generator state to save or to share among workers, and
the same counters give the same bits on a CPU and on a GPU.
"""

import torch
from torch import Tensor

_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_ORDER_STREAM = _MASK  # the last stream; views use the first ones


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32 on int64 tensors of 32-bit words that broadcast, with a 64-bit key: uniform words."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        high0, low0 = _multiply(c0, _MULTIPLIER[0])
        high1, low1 = _multiply(c2, _MULTIPLIER[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """The high and the low 32 bits of a 32 x 32-bit product, computed in halves so that no int64 overflows."""
    lower = (word & 0xFFFF) * constant  # < 2**48
    upper = (word >> 16) * constant + (lower >> 16)  # < 2**49
    return upper >> 16, ((upper & 0xFFFF) << 16) | (lower & 0xFFFF)


def uniform(
    index: Tensor, epoch: int | Tensor, stream: int | Tensor, count: int, *, seed: int
) -> Tensor:
    """(B, count) float32 in [0, 1), multiples of 2**-24; of sample indices (B,) and a stream, or (B, 1) streams."""
    block = torch.arange((count + 3) // 4, device=index.device)  # each counter yields four words
    zero = torch.zeros_like(block)
    words = philox((index[:, None] & _MASK, zero + epoch, zero + stream, block), seed)
    return (torch.stack(words, dim=2).flatten(1)[:, :count] >> 8).float() * 2**-24


def permutation(n: int, epoch: int, *, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """(n,) int64: 0 .. n - 1 in the order of epoch `epoch`, by sorting 63 random bits for each index."""
    index = torch.arange(n, device=device)
    zero = torch.zeros_like(index)
    high, low, _, _ = philox((index, zero + epoch, zero + _ORDER_STREAM, zero), seed)
    return torch.argsort((high >> 1 << 32) | low, stable=True)
