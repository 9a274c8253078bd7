"""`report runs/*`: a folder that contains runs, as a sweep does, stands for all of them."""

import shutil
from pathlib import Path

import pytest

from simsiam.report.find_runs import read_runs
from simsiam.report.groups import group_runs
from tests.helpers import Program
from tests.report.conftest import page_text


@pytest.fixture
def tree(runs: Path, tmp_path: Path) -> Path:
    """Return a folder with a run, a sweep of seeds, an ablation, and two earlier reports."""
    folder = tmp_path / "runs"
    copies = {
        "single": "d",
        "sweep/seed_2": "a",
        "sweep/seed_10": "b",
        "ablation/baseline/seed_0": "a",
        "ablation/narrow": "d",
    }
    for path, run in copies.items():
        shutil.copytree(runs / run, folder / path)
    for report in (folder / "report", folder / "sweep" / "report"):
        report.mkdir()
        (report / "index.html").write_text('<meta name="generator" content="SimSiam report">')
    (folder / ".hidden").mkdir()
    return folder


def names(*paths: Path) -> list[str]:
    return [run.name for run in read_runs([str(path) for path in paths])]


SWEEP = ["sweep/seed_2", "sweep/seed_10"]
ABLATION = ["ablation/baseline/seed_0", "ablation/narrow"]


def test_folder_of_runs_stands_for_its_runs(tree: Path) -> None:
    assert names(tree / "sweep") == SWEEP
    assert names(tree / "ablation") == ABLATION
    assert names(*sorted(path for path in tree.iterdir() if path.name[0] != ".")) == [
        *ABLATION,
        "single",
        *SWEEP,
    ]
    assert names(tree) == [f"runs/{name}" for name in (*ABLATION, "single", *SWEEP)]


def test_a_run_with_a_page_in_its_folder_is_found(tree: Path) -> None:
    page = (tree / "report" / "index.html").read_text()
    (tree / "sweep" / "seed_2" / "index.html").write_text(page)
    (tree / "ablation" / "index.html").write_text(page)
    assert names(tree) == [f"runs/{name}" for name in (*ABLATION, "single", *SWEEP)]


def test_run_that_is_named_twice_is_read_once(tree: Path) -> None:
    assert names(tree / "sweep" / "seed_10", tree / "sweep", tree / "sweep") == [
        "seed_10",
        "sweep/seed_2",
    ]


def test_seeds_of_a_sweep_become_one_group(tree: Path) -> None:
    (group,) = group_runs(read_runs([str(tree / "sweep")]))
    assert len(group.runs) == 2 and "mean of 2 seeds" in group.label


def test_ignored_run_inside_another_run_is_printed(
    tree: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tree / "sweep" / "seed_2", tree / "single" / "seed_2")
    assert names(tree / "single") == ["single"]
    assert "inside this run are left out: seed_2" in capsys.readouterr().out
    assert names(tree / "single", tree / "single" / "seed_2") == ["single", "seed_2"]
    assert capsys.readouterr().out == ""


def test_page_of_all_runs_includes_those_of_a_sweep(tree: Path, program: Program) -> None:
    paths = [str(path) for path in sorted(tree.iterdir()) if path.name[0] != "."]
    status, _, err = program("report", *paths, "--no-pictures")
    assert (status, err) == (0, "")
    text = page_text(tree / "report" / "index.html")
    for path in ("sweep/seed_2", "sweep/seed_10", "ablation/narrow"):
        assert str(tree / path) in text
