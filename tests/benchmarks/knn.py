"""Compare kNN classification in time, memory and result: ours, lightly, scikit-learn and faiss.

Run `python tests/benchmarks/knn.py`. Features, k = 200 and T = 0.1 are as in the kNN monitor: unit
vectors of 512 features, 10,000 queries and a bank of 50,000. Each package is called as its own
documentation shows. faiss only finds the neighbours, and our function counts their votes. A package
that is not installed is left out. Memory is the highest memory of a process above what it had
before the call; each candidate is measured in a process of its own.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from timing import DEVICE, in_turn, is_installed, table
from torch import Tensor
from torch.nn.functional import normalize

from utils.knn import knn_predict, vote

CLASSES = 10
K = 200
T = 0.1


def make_features(queries: int, bank: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features of ten overlapping classes.

    Returns:
        Queries (Q, F), bank (N, F) and labels of the bank (N,).
    """
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, dim, generator=generator)
    labels = torch.randint(CLASSES, (bank + queries,), generator=generator)
    noise = torch.randn(bank + queries, dim, generator=generator)
    features = normalize(centres[labels] + 2 * noise, dim=1)
    return features[bank:].to(DEVICE), features[:bank].to(DEVICE), labels[:bank].to(DEVICE)


def ours(q: Tensor, bank: Tensor, labels: Tensor) -> Tensor:
    return knn_predict(q, bank, labels, CLASSES, K, T)


def lightlys(q: Tensor, bank: Tensor, labels: Tensor) -> Tensor:
    from lightly.utils.benchmarking import knn_predict as theirs

    batches = q.split(512)  # the batch size in lightly's benchmarks
    predicted = [theirs(batch, bank.T, labels, CLASSES, K, T)[:, 0] for batch in batches]
    return torch.cat(predicted)


def sklearns(q: Tensor, bank: Tensor, labels: Tensor) -> Tensor:
    from sklearn.neighbors import KNeighborsClassifier

    def weights(distance: object) -> object:
        # The Euclidean distance d of unit vectors gives their cosine: d^2 = 2 - 2 cos.
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


CANDIDATES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ours": ours,
    "lightly": lightlys,
    "scikit-learn, brute": sklearns,
    "faiss, flat": faisss,
}
PACKAGES = {
    "lightly": "lightly",
    "scikit-learn, brute": "sklearn",
    "faiss, flat": "faiss",
}


def read_memory(name: str) -> int:
    """Return a memory figure of this process in KiB: VmRSS (now) or VmHWM (the highest so far)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0])


def measure_memory(name: str, sizes: list[int]) -> int:
    """Return the MiB of memory that one call of a candidate needs in addition to the features."""
    command = [sys.executable, __file__, "--memory-of", name, "--sizes", *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd())
    return int(done.stdout)


def print_memory(name: str, q: Tensor, bank: Tensor, labels: Tensor) -> None:
    """Measure the memory of one call in this process, and print it in MiB."""
    predict = CANDIDATES[name]
    # A small call first, so that imports and pools of threads are not counted.
    predict(q[:10], bank[:1000], labels[:1000])
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = read_memory("VmRSS")
    predict(q, bank, labels)
    print((read_memory("VmHWM") - before) // 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=int, nargs=3, default=[10_000, 50_000, 512], metavar=("Q", "N", "F")
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", choices=CANDIDATES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    q, bank, labels = make_features(*args.sizes)
    if args.memory_of:
        print_memory(args.memory_of, q, bank, labels)
        return

    works: dict[str, Callable[[], object]] = {}
    answers: dict[str, Tensor] = {}
    for name, predict in CANDIDATES.items():
        if name in PACKAGES and not is_installed(PACKAGES[name]):
            continue
        answers[name] = predict(q, bank, labels).cpu()
        works[name] = partial(predict, q, bank, labels)
    times = in_turn(works, args.rounds)

    rows = []
    for name, time in times.items():
        ratio = time / times["ours"]
        memory = measure_memory(name, args.sizes)
        differing = int((answers[name] != answers["ours"]).sum())
        rows.append((name, f"{time:.2f}", f"{ratio:.2f}", f"{memory:,}", f"{differing:,}"))
    size = "{:,} queries, a bank of {:,}, {} features".format(*args.sizes)
    head = ("by", "seconds", "x ours", "MiB on top", "other answers")
    table(f"kNN: {size}, medians of {args.rounds} rounds in turn", head, rows)


if __name__ == "__main__":
    main()
