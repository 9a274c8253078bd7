"""Reports of runs that are not whole, where a report goes, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest

from simsiam.report.records import read_run
from tests.helpers import Program
from tests.report.conftest import HOSTILE, charts, read, words
from tests.report.test_page import CURVES
from utils.filesystem import lock_folder


def test_of_a_killed_run_it_says_how_far_it_came(page_of_wrecks: Path) -> None:
    text = words(page_of_wrecks)
    assert "killed (stopped, 2 of 3 epochs)" in text
    section = text[text.index("A killed", text.index("What the features know")) :]
    assert section.index("Nearest neighbours") < section.index("B damaged")


def test_damaged_files_are_left_out_and_named(page_of_wrecks: Path) -> None:
    text = words(page_of_wrecks)
    for part in ("config.yaml is damaged", "results/knn/summary.json is damaged", "results/linear/summary.json is"):
        assert f"damaged: {part}" in text
    assert re.search(r"Without neighbours and map: \S+\.ckpt: ", text)
    figures = {file.stem for file in (page_of_wrecks.parent / "figures").iterdir()}
    assert "A_views" in figures and "B_views" not in figures


def test_without_a_checkpoint_the_page_says_so_and_shows_what_the_run_left(page_of_wrecks: Path) -> None:
    assert words(page_of_wrecks).count(": no checkpoint in this folder.") == 2
    figures = {file.stem for file in (page_of_wrecks.parent / "figures").iterdir()}
    assert {name for name in figures if name[0] in "CD"} == {"C_views", "D_views"}


def test_hostile_names_stay_text(page_of_wrecks: Path) -> None:
    tree, shown = read(page_of_wrecks), HOSTILE.replace("\x1b", "\ufffd")
    assert not list(tree.iter("script"))
    assert shown in "".join(tree.itertext()) and f"kNN, {shown} features, k <b>, T []" in "".join(tree.itertext())
    for theme in ("light", "dark"):
        drawn = charts(page_of_wrecks, theme)  # as XML, which a control character would break
        assert any(shown in "".join(chart.itertext()) for chart in drawn.values())


@pytest.mark.slow("a further page")
def test_without_its_images_a_run_has_no_neighbours(cifar10_run: Path, program: Program, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    flags = ["--data-dir", str(nowhere), "--output", str(tmp_path / "out")]
    assert program("report", str(cifar10_run), *flags)[0] == 0
    assert f"cifar10 is not in {nowhere}" in words(tmp_path / "out" / "index.html") and not nowhere.exists()


@pytest.mark.slow("a further page")
def test_a_run_that_trains_is_said_to(run: Path, program: Program) -> None:
    (run / "summary.json").unlink()
    with lock_folder(run, "taken"):
        assert program("report", str(run), "--no-pictures")[0] == 0
    assert "(running, 3 of 3 epochs)" in words(run / "report" / "index.html")


@pytest.mark.slow("three pages")
def test_it_replaces_what_it_wrote_and_nothing_else(runs: Path, run: Path, program: Program) -> None:
    out = run.parent / "report"  # of several: in the folder that holds them
    other = shutil.copytree(runs / "d", run.with_name("d"))
    given = ["report", str(run), str(other)]
    assert program(*given)[0] == 0 and (out / "figures" / "B_map.png").exists()
    given.append(str(out))  # as in `report runs/*`
    (out / "notes.txt").write_text("mine")
    (out / "figures" / "mine.png").write_text("mine")
    assert program(*given, "--no-pictures")[0] == 0
    kept = {file.stem for file in (out / "figures").iterdir()}
    assert kept == {*CURVES, "A_views", "B_views", "mine"} and (out / "notes.txt").read_text() == "mine"
    (out / "index.html").write_text("<p>mine")
    status, _, err = program(*given[:-1])
    assert status == 2 and "not a report" in err and (out / "index.html").read_text() == "<p>mine"


def test_wrong_paths_are_answered_in_one_line(run: Path, program: Program, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    young = shutil.copytree(run, tmp_path / "young")
    (young / "metrics.jsonl").unlink()
    before = sorted(tmp_path.rglob("*"))
    for flags, answer in (
        ([], "RUN"),
        (["/no/such"], "no such folder"),
        ([str(run), "/no/such"], "no such folder"),
        ([str(tmp_path / "file")], "no such folder"),
        ([str(tmp_path / "empty")], "not the folder of a run"),
        ([str(young)], "no epoch"),
        ([str(run), "--output", str(tmp_path / "file")], "is a file"),
        ([str(run), "--output", "/proc/report"], "cannot be written"),
        ([str(run), "--bogus"], "bogus"),
    ):
        status, out, err = program("report", *flags)
        assert (status, out) == (2, "") and err.count("\n") == 1 and answer in err, (flags, err)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_results_file_may_hold_anything(run: Path) -> None:
    (run / "results" / "knn").mkdir(parents=True)
    for content in (
        {"command": "knn", "per_class": 3, "confusion": [[1]], "table": 7},
        {"command": "knn", "per_class": {"a": 1}, "confusion": [[1e400]], "table": [3, {"accuracy": True}]},
        {"command": "knn", "per_class": {"a": 1}, "confusion": [[-1]]},
        {"command": "knn", "per_class": {"a": 1, "b": 1}, "confusion": [[1]]},
        {"command": "linear", "test_accuracy": 1e300, "settings": []},
        {"command": [], "labels": {}},
    ):
        (run / "results" / "knn" / "summary.json").write_text(json.dumps(content))
        assert read_run(run).accuracies == {}, content


def test_its_help_teaches(program: Program) -> None:
    status, out, _ = program("report", "--help")
    assert status == 0 and "RUN [RUN ...]" in out and "--no-pictures" in out and "(default: None)" not in out
    assert re.search(r"\breport\b", program("--help")[1])
