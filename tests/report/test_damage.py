"""Reports about damaged runs, the folder that a report is written to, and refused arguments."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from simsiam.report.records import read_run
from tests.helpers import Program
from tests.report.conftest import HOSTILE, charts, page_text, parse_page
from tests.report.test_page import CURVES
from utils.filesystem import lock_folder


def test_page_says_how_far_a_killed_run_came(page_of_wrecks: Path) -> None:
    text = page_text(page_of_wrecks)
    assert "killed (stopped, 2 of 3 epochs)" in text
    section = text[text.index("A killed", text.index("What the features know")) :]
    assert section.index("Nearest neighbours") < section.index("B damaged")


def test_page_names_damaged_files_and_leaves_them_out(page_of_wrecks: Path) -> None:
    text = page_text(page_of_wrecks)
    for part in (
        "config.yaml is damaged",
        "results/knn/summary.json is damaged",
        "results/linear/summary.json is",
    ):
        assert f"damaged: {part}" in text
    assert re.search(r"Neighbours and map cannot be shown: \S+\.ckpt is not a checkpoint", text)
    figures = {file.stem for file in (page_of_wrecks.parent / "figures").iterdir()}
    assert "A_views" in figures and "B_views" not in figures


def test_page_of_a_run_without_checkpoint_says_so_and_shows_its_views(
    page_of_wrecks: Path,
) -> None:
    assert page_text(page_of_wrecks).count(": no checkpoint in this folder.") == 2
    figures = {file.stem for file in (page_of_wrecks.parent / "figures").iterdir()}
    assert {name for name in figures if name[0] in "CD"} == {"C_views", "D_views"}


def test_hostile_names_stay_text_on_the_page(page_of_wrecks: Path) -> None:
    tree = parse_page(page_of_wrecks)
    printed_name = HOSTILE.replace("\x1b", "\ufffd")
    assert not list(tree.iter("script"))
    text = "".join(tree.itertext())
    assert printed_name in text
    assert f"kNN, {printed_name} features, k <b>, T []" in text
    for theme in ("light", "dark"):
        drawn = charts(page_of_wrecks, theme)  # as XML, which a control character would break
        assert any(printed_name in "".join(chart.itertext()) for chart in drawn.values())


@pytest.mark.slow("a further page")
def test_page_of_a_run_without_its_images_has_no_neighbours(
    cifar10_run: Path, program: Program, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    flags = ["--data-dir", str(nowhere), "--output", str(tmp_path / "out")]
    assert program("report", str(cifar10_run), *flags)[0] == 0
    assert f"cifar10 is not in {nowhere}" in page_text(tmp_path / "out" / "index.html")
    assert not nowhere.exists()


@pytest.mark.slow("a further page")
def test_page_says_that_a_run_is_training(run: Path, program: Program) -> None:
    (run / "summary.json").unlink()
    with lock_folder(run, "taken"):
        assert program("report", str(run), "--no-pictures")[0] == 0
    assert "(running, 3 of 3 epochs)" in page_text(run / "report" / "index.html")


@pytest.mark.slow("three pages")
def test_report_replaces_only_files_of_an_earlier_report(
    runs: Path, run: Path, program: Program
) -> None:
    out = run.parent / "report"  # the report of several runs is in the folder that contains them
    other = shutil.copytree(runs / "d", run.with_name("d"))
    command = ["report", str(run), str(other)]
    assert program(*command)[0] == 0
    assert (out / "figures" / "B_map.png").exists()
    command.append(str(out))  # as in `report runs/*`
    (out / "notes.txt").write_text("mine")
    (out / "figures" / "mine.png").write_text("mine")
    assert program(*command, "--no-pictures")[0] == 0
    names = {file.stem for file in (out / "figures").iterdir()}
    assert names == {*CURVES, "A_views", "B_views", "mine"}
    assert (out / "notes.txt").read_text() == "mine"
    (out / "index.html").write_text("<p>mine")
    status, _, err = program(*command[:-1])
    assert status == 2
    assert "not a report" in err
    assert (out / "index.html").read_text() == "<p>mine"


def test_wrong_paths_give_one_line_of_error(run: Path, program: Program, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    young = shutil.copytree(run, tmp_path / "young")
    (young / "metrics.jsonl").unlink()
    before = sorted(tmp_path.rglob("*"))
    for flags, answer in (
        ([], "RUN"),
        (["/no/such"], "no such folder"),
        ([str(run), "/no/such"], "no such folder"),
        ([str(tmp_path / "file")], "is a file, not the folder of a run"),
        ([str(tmp_path / "empty")], "not the folder of a run"),
        ([str(young)], "no epoch"),
        ([str(run), "--output", str(tmp_path / "file")], "is a file"),
        ([str(run), "--output", "/proc/report"], "cannot be written"),
        ([str(run), "--bogus"], "bogus"),
    ):
        status, out, err = program("report", *flags)
        assert (status, out) == (2, "") and err.count("\n") == 1 and answer in err, (flags, err)
    assert sorted(tmp_path.rglob("*")) == before


def test_results_file_may_contain_anything(run: Path) -> None:
    (run / "results" / "knn").mkdir(parents=True)
    for content in (
        {"command": "knn", "per_class": 3, "confusion": [[1]], "table": 7},
        {
            "command": "knn",
            "per_class": {"a": 1},
            "confusion": [[1e400]],
            "table": [3, {"accuracy": True}],
        },
        {"command": "knn", "per_class": {"a": 1}, "confusion": [[-1]]},
        {"command": "knn", "per_class": {"a": 1, "b": 1}, "confusion": [[1]]},
        {"command": "linear", "test_accuracy": 1e300, "settings": []},
        {"command": [], "labels": {}},
    ):
        (run / "results" / "knn" / "summary.json").write_text(json.dumps(content))
        assert read_run(run).accuracies == {}, content
    rows = [3, {"accuracy": "high"}, {"features": "backbone", "k": 1, "accuracy": 50}]
    (run / "results" / "knn" / "summary.json").write_text(json.dumps({"table": rows}))
    assert read_run(run).accuracies == {"kNN, backbone features, k 1": [50]}


def test_only_the_invalid_values_of_a_file_are_left_out(run: Path) -> None:
    rows = [
        {"epoch": 1, "train_loss": "low", "z_std": 1.0},
        ["row"],
        {"epoch": "2"},
        {"epoch": 2, "z_std": 0.9},
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (run / "config.yaml").write_bytes(b"settings:\n  data_dir: d\xe9ta\n  epochs: 2\nversions: 3\n")
    damaged = read_run(run)
    assert damaged.rows[1:] == [{"epoch": 1, "z_std": 1.0}, {"epoch": 2, "z_std": 0.9}]
    assert damaged.settings == {} and damaged.notes == ["config.yaml is damaged or missing"]
    (run / "config.yaml").write_bytes(b"settings:\n  data_dir: d\xe9ta\n  epochs: 2\n")
    assert read_run(run).settings == {"data_dir": "d\ufffdta", "epochs": 2}


def test_picture_of_views_may_have_any_width(run: Path, program: Program) -> None:
    Image.new("RGB", (17_000, 100)).save(run / "views.png")
    assert program("report", str(run), "--no-pictures")[0] == 0


def test_help_names_the_arguments(program: Program) -> None:
    status, out, _ = program("report", "--help")
    assert status == 0
    assert "RUN [RUN ...]" in out
    assert "--no-pictures" in out
    assert "(default: None)" not in out
    assert re.search(r"\breport\b", program("--help")[1])
