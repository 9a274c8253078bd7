"""kNN classification: ours against lightly's `knn_predict`, scikit-learn and faiss, in time, memory and result.

`python tests/benchmarks/knn.py`. Unit features, k = 200, T = .1, as the monitor has them: 10,000 queries, a bank of
50,000, 512 features. Each peer is asked as its own documentation asks it; faiss searches the neighbours, whose votes
are then counted by our function. Those that are not installed are left out. Memory is the process's highest, over what
it was, each in a process of its own.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from timing import DEVICE, has, in_turn, table
from torch import Tensor
from torch.nn.functional import normalize

from utils.knn import knn_predict, vote

CLASSES, K, T = 10, 200, 0.1


def problem(queries: int, bank: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features of ten overlapping classes: (Q, F), (N, F), labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, dim, generator=generator)
    labels = torch.randint(CLASSES, (bank + queries,), generator=generator)
    features = normalize(
        centres[labels] + 2 * torch.randn(bank + queries, dim, generator=generator), dim=1
    )
    return features[bank:].to(DEVICE), features[:bank].to(DEVICE), labels[:bank].to(DEVICE)


def ours(q: Tensor, bank: Tensor, labels: Tensor) -> Tensor:
    return knn_predict(q, bank, labels, CLASSES, K, T)


def lightlys(q: Tensor, bank: Tensor, labels: Tensor) -> Tensor:
    from lightly.utils.benchmarking import knn_predict as theirs

    return torch.cat(
        [theirs(part, bank.T, labels, CLASSES, K, T)[:, 0] for part in q.split(512)]
    )  # its own batches


def sklearns(q: Tensor, bank: Tensor, labels: Tensor) -> Tensor:
    from sklearn.neighbors import KNeighborsClassifier

    def weights(distance: object) -> object:  # euclidean, of unit vectors: d^2 = 2 - 2 cos
        cosine = 1 - torch.as_tensor(distance) ** 2 / 2
        return ((cosine - cosine[:, :1]) / T).exp().numpy()

    classifier = KNeighborsClassifier(K, weights=weights, algorithm="brute").fit(
        bank.cpu().numpy(), labels.cpu().numpy()
    )
    return torch.from_numpy(classifier.predict(q.cpu().numpy()))


def faisss(q: Tensor, bank: Tensor, labels: Tensor) -> Tensor:
    import faiss

    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank.cpu().numpy())
    similarity, nearest = index.search(q.cpu().numpy(), K)
    return vote(torch.from_numpy(similarity), labels.cpu()[torch.from_numpy(nearest)], CLASSES, T)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ours": ours,
    "lightly": lightlys,
    "scikit-learn, brute": sklearns,
    "faiss, flat": faisss,
}
PEERS = {
    "lightly": "lightly",
    "scikit-learn, brute": "sklearn",
    "faiss, flat": "faiss",
}  # their packages


def resident(name: str) -> int:
    """KiB of this process in memory: now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def memory(name: str, sizes: list[int]) -> int:
    """MiB of the host that one call takes at most, on top of the features, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, "--sizes", *map(str, sizes)]
    return int(
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd()).stdout
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=int, nargs=3, default=[10_000, 50_000, 512], metavar=("Q", "N", "F")
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    q, bank, labels = problem(*args.sizes)
    if args.memory_of:
        WAYS[args.memory_of](
            q[:10], bank[:1000], labels[:1000]
        )  # imports and pools of threads are not counted
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
        before = resident("VmRSS")
        WAYS[args.memory_of](q, bank, labels)
        print((resident("VmHWM") - before) // 1024)
        return
    ways = {name: way for name, way in WAYS.items() if name not in PEERS or has(PEERS[name])}
    answers = {name: way(q, bank, labels).cpu() for name, way in ways.items()}
    taken = in_turn(
        {name: lambda way=way: way(q, bank, labels) for name, way in ways.items()}, args.rounds
    )
    rows = [
        (
            name,
            f"{taken[name]:.2f}",
            f"{taken[name] / taken['ours']:.2f}",
            f"{memory(name, args.sizes):,}",
            f"{(answers[name] != answers['ours']).sum():,}",
        )
        for name in ways
    ]
    size = "{:,} queries, a bank of {:,}, {} features".format(*args.sizes)
    head = ("by", "seconds", "x ours", "MiB on top", "other answers")
    table(f"kNN: {size}, medians of {args.rounds} rounds in turn", head, rows)


if __name__ == "__main__":
    main()
