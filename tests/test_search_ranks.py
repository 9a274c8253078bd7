"""The benchmark of what a search relies on, on runs that were not trained."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.benchmarks.search_ranks import compare, spearman


def test_rank_correlation_is_that_of_scipy() -> None:
    generator = np.random.default_rng(0)
    a = generator.integers(0, 5, 30).tolist()  # with ties
    b = (np.array(a) + generator.normal(size=30)).tolist()
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)


def write_run(folder: Path, length: int, number: int, accuracy: float, rankme: float) -> None:
    run = folder / f"epochs_{length:03}_{number:03}"
    run.mkdir()
    rows = []
    for epoch in range(1, length + 1):
        row = {"epoch": epoch, "train_loss": -0.8, "z_std": 0.9, "rankme": rankme}
        rows.append(json.dumps(row | {"kNN_accuracy": accuracy * epoch / length}))
    (run / "metrics.jsonl").write_text("\n".join(rows))
    (run / "summary.json").write_text("{}")


def test_table_compares_lengths_and_scores(tmp_path: Path) -> None:
    for number in range(6):
        write_run(tmp_path, 4, number, accuracy=20 + number, rankme=50 - number)
        write_run(tmp_path, 8, number, accuracy=40 + number, rankme=50 + number)
    lines = compare(tmp_path, [4, 8])
    (short,) = [line for line in lines if line.startswith("| kNN of runs of 4 epochs")]
    assert "| 1.00 |" in short and short.endswith("| 6 |")
    (reversed_ranks,) = [line for line in lines if "RankMe alone, kNN, both after 4" in line]
    assert "| -1.00 |" in reversed_ranks
    (ranks,) = [line for line in lines if "RankMe with floors, kNN, both after 8" in line]
    assert "| 1.00 |" in ranks
