"""`report runs/*`: a folder that holds runs, of seeds or of an ablation, stands for them."""

import shutil
from pathlib import Path

import pytest

from simsiam.report.find_runs import read_runs
from simsiam.report.groups import group_runs
from tests.helpers import Program
from tests.report.conftest import words


@pytest.fixture
def tree(runs: Path, tmp_path: Path) -> Path:
    """A folder of runs, among them a sweep of seeds, an ablation, and a report."""
    folder = tmp_path / "runs"
    places = {"single": "d", "sweep/seed_2": "a", "sweep/seed_10": "b"}
    places |= {"ablation/baseline/seed_0": "a", "ablation/narrow": "d"}
    for place, run in places.items():
        shutil.copytree(runs / run, folder / place)
    for report in (folder / "report", folder / "sweep" / "report"):
        report.mkdir()
        (report / "index.html").write_text('<meta name="generator" content="SimSiam report">')
    (folder / ".hidden").mkdir()
    return folder


def names(*paths: Path) -> list[str]:
    return [run.name for run in read_runs([str(path) for path in paths])]


SWEEP = ["sweep/seed_2", "sweep/seed_10"]
ABLATION = ["ablation/baseline/seed_0", "ablation/narrow"]


def test_a_folder_of_runs_stands_for_its_runs(tree: Path) -> None:
    assert names(tree / "sweep") == SWEEP
    assert names(tree / "ablation") == ABLATION
    assert names(*sorted(path for path in tree.iterdir() if path.name[0] != ".")) == [
        *ABLATION,
        "single",
        *SWEEP,
    ]
    assert names(tree) == [f"runs/{name}" for name in (*ABLATION, "single", *SWEEP)]


def test_a_run_that_is_named_twice_is_taken_once(tree: Path) -> None:
    assert names(tree / "sweep" / "seed_10", tree / "sweep", tree / "sweep") == [
        "seed_10",
        "sweep/seed_2",
    ]


def test_the_seeds_of_a_sweep_become_one_group(tree: Path) -> None:
    (group,) = group_runs(read_runs([str(tree / "sweep")]))
    assert len(group.runs) == 2 and "mean of 2 seeds" in group.label


def test_a_run_inside_the_folder_of_a_run_is_mentioned(
    tree: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tree / "sweep" / "seed_2", tree / "single" / "seed_2")
    assert names(tree / "single") == ["single"]
    assert "inside this run are left out: seed_2" in capsys.readouterr().out
    assert names(tree / "single", tree / "single" / "seed_2") == ["single", "seed_2"]
    assert capsys.readouterr().out == ""


def test_the_page_of_all_runs_has_those_of_a_sweep(tree: Path, program: Program) -> None:
    given = [str(path) for path in sorted(tree.iterdir()) if path.name[0] != "."]
    status, _, err = program("report", *given, "--no-pictures")
    assert (status, err) == (0, "")
    text = words(tree / "report" / "index.html")
    for place in ("sweep/seed_2", "sweep/seed_10", "ablation/narrow"):
        assert str(tree / place) in text
