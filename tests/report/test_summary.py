"""The tables of a page say of what each figure is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from simsiam.report.groups import group_runs, shorten_names
from simsiam.report.records import describe_departures, read_run
from simsiam.report.summary import describe_knn, summarize_groups


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"dataset": "cifar100"}, ["cifar100"]),
        ({"held_out_images": 40}, ["held-out images"]),
        ({"leave_one_out": False, "query_source": "test images"}, []),
        (
            {"leave_one_out": True, "query_source": "train images"},
            ["leave-one-out among train images"],
        ),
        ({"leave_one_out": True}, ["leave-one-out among test images"]),
        ({"epoch": 2}, ["epoch 2"]),
        ({"settings": {"test_images": 50}}, ["50 test images"]),
        ({"settings": {"test_images": 100, "data_dir": None}}, []),
        ({"settings": {"train_images": 60}}, []),
        ({"settings": {"train_images": 60}, "command": "knn"}, ["60 train images"]),
        ({"settings": {"image_size": 16}}, ["16 pixels"]),
    ],
)
def test_a_result_of_other_images_or_epochs_says_so(
    changes: dict[str, Any], expected: list[str], runs: Path
) -> None:
    run = read_run(runs / "a")
    content = {"dataset": "patterns", "epoch": 3, "settings": {}} | changes
    assert describe_departures(content, run) == expected


def test_two_results_of_a_run_do_not_replace_each_other(run: Path) -> None:
    for name, epoch in (("linear", 3), ("linear_early", 2)):
        folder = run / "results" / name
        folder.mkdir(parents=True)
        content = {"command": "linear", "epoch": epoch, "test_accuracy": 50.0, "train_images": 200}
        (folder / "summary.json").write_text(json.dumps(content))
    accuracies = read_run(run).accuracies
    assert set(accuracies) == {"linear, 200 labels", "linear early, 200 labels, epoch 2"}


def test_a_mean_of_fewer_runs_than_the_group_has_says_so(runs: Path, tmp_path: Path) -> None:
    copies = [shutil.copytree(runs / name, tmp_path / name) for name in "abc"]
    lines = (copies[2] / "metrics.jsonl").read_text().splitlines()
    (copies[2] / "metrics.jsonl").write_text(lines[0] + "\n")  # it has trained one epoch so far
    first, second, third = (read_run(copy) for copy in copies)
    first.accuracies = {"linear": [90.0]}
    (group,) = group_runs([first, second, third])
    assert group.accuracy("linear") == "90.00 (1 of 3)"
    (cell,) = summarize_groups([group])["loss"]
    (whole,) = group_runs([first, second])
    assert cell == summarize_groups([whole])["loss"][0] + " (2 of 3)"


def test_knn_of_held_out_images_is_called_so(runs: Path) -> None:
    run, other = read_run(runs / "a"), read_run(runs / "d")
    assert "top-1 on the test images (" in describe_knn([run, other])
    run.settings["held_out_images"] = 100
    assert "top-1 on held-out train images (" in describe_knn([run])
    assert "held-out train images or the test images, depending on" in describe_knn([run, other])


def test_label_of_many_seeds_names_the_first_and_the_last() -> None:
    names = [f"seed_{seed}" for seed in range(20)]
    assert shorten_names(names) == ["seed_0", "seed_1", "seed_2", "...", "seed_19"]
    assert shorten_names(names[:5]) == names[:5]
