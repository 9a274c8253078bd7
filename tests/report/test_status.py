"""What a page says of how far a run has come and whether it has failed."""

import json
from pathlib import Path

import pytest

from simsiam.report.records import read_run
from simsiam.report.status import describe_status


def write_run(folder: Path, ranks: list[float], z_std: float = 0.99, resolved: str = "") -> None:
    """Write the files of a run with an epoch for each rank."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"settings: {{epochs: 3}}\nresolved: {{{resolved}}}\n")
    with open(folder / "metrics.jsonl", "w") as file:
        for i, rank in enumerate(ranks):
            row = {"epoch": i + 1, "train_loss": -0.5, "z_std": z_std, "rankme": rank}
            file.write(json.dumps(row) + "\n")


SIZES = "in_dim: 128, train_images: 8000"


@pytest.mark.parametrize(
    ("ranks", "z_std", "resolved", "failure"),
    [
        ([40.0, 41.0, 42.0], 0.99, SIZES, ""),
        ([40.0, 4.0, 3.1], 0.99, SIZES, ", effective rank only 3.1 of 128"),
        ([4.0, 3.0, 20.0], 0.99, SIZES, ""),
        ([40.0, 4.0, 3.1], 0.2, SIZES, ", collapsed"),
        ([10.0, 7.0, 7.0], 0.99, "in_dim: 32, train_images: 8000", ""),
        ([40.0, 4.0, 3.1], 0.99, "", ""),  # nothing is known of the network
        ([40.0, 4.0, 3.1], 0.99, "in_dim: many, train_images: 1e99", ""),
    ],
)
def test_status_names_a_lost_rank(
    ranks: list[float], z_std: float, resolved: str, failure: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", ranks, z_std, resolved)
    run = read_run(tmp_path / "run")
    assert describe_status(run) == "stopped, 3 of 3 epochs" + failure
    assert run.notes == []
