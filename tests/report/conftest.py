"""Runs and reports that the tests share and do not change, and functions that read a page."""

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import html5lib
import pytest

import main
from tests.helpers import SMALL

HOSTILE = "<script>alert(1)<\\script> $x$ \u4e2d \x1b[31m &amp; \"'"  # the name of a run


@pytest.fixture(scope="session")
def runs(make_once: Callable[..., Path]) -> Path:
    """Train the runs `a`, `b` and `c` with seeds 0, 1 and 2, and `d` with another width."""

    def fill(folder: Path) -> None:
        common = [*SMALL, "--epochs", "3", "--save-dir", str(folder)]
        assert main.main([*common, "--exp-name", "a"]) == 0
        assert main.main([*common, "--exp-name", "b", "--seed", "1"]) == 0
        assert main.main([*common, "--exp-name", "c", "--seed", "2"]) == 0
        assert main.main([*common, "--exp-name", "d", "--width", "8"]) == 0

    return make_once("reported", fill)


def make_page(folder: Path, *args: str) -> None:
    """Write a report into the folder `report` inside `folder`."""
    assert main.main(["report", *args, "--output", str(folder / "report")]) == 0


@pytest.fixture(scope="session")
def page_of_one(runs: Path, make_once: Callable[..., Path]) -> Path:
    """Return the page about `a`."""
    folder = make_once("page_of_one", lambda folder: make_page(folder, str(runs / "a")))
    return folder / "report" / "index.html"


@pytest.fixture(scope="session")
def page_of_four(runs: Path, make_once: Callable[..., Path]) -> Path:
    """Return the page about all four runs, without the pictures that need a checkpoint."""
    paths = [str(runs / name) for name in "abcd"]
    folder = make_once("page_of_four", lambda folder: make_page(folder, *paths, "--no-pictures"))
    return folder / "report" / "index.html"


@pytest.fixture(scope="session")
def page_of_wrecks(runs: Path, make_once: Callable[..., Path]) -> Path:
    """Return the page about four broken copies of `a`.

    One was killed, one has damaged files, one has no checkpoint, and one has a hostile name.
    """

    def fill(folder: Path) -> None:
        killed = shutil.copytree(runs / "a", folder / "killed")
        damaged = shutil.copytree(runs / "a", folder / "damaged")
        bare = shutil.copytree(runs / "a", folder / "bare")
        hostile = shutil.copytree(runs / "a", folder / HOSTILE)

        (killed / "summary.json").unlink()
        (killed / "backbone.safetensors").unlink()
        metrics = killed / "metrics.jsonl"
        metrics.write_text(metrics.read_text()[:-20])  # the kill came during the last line

        write_summary(damaged, "knn", "{")
        write_summary(damaged, "linear", "[1]")
        write_summary(damaged, "odd", '{"command": "linear", "test_accuracy": "x"}')
        for file in (damaged / "backbone.safetensors", *(damaged / "checkpoints").iterdir()):
            file.write_bytes(b"half")
        (damaged / "config.yaml").write_bytes(b"\x00\xff: [")
        (damaged / "views.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        with open(damaged / "metrics.jsonl", "a") as file:
            file.write('{"epoch": 4, "train_loss": "<b>", "z_std": null}\n[3]\n')

        for run in (bare, hostile):
            shutil.rmtree(run / "checkpoints")
            (run / "backbone.safetensors").unlink()
        per_class = {"cat": 75, "<b>": 50}
        summary = {"command": "knn", "per_class": per_class, "confusion": [[3, 1], [2, 2]]}
        write_summary(bare, "knn", json.dumps(summary))
        table = [{"features": HOSTILE, "k": "<b>", "temperature": [], "accuracy": 50.0}]
        write_summary(hostile, "knn", json.dumps({"command": "knn", "table": table}))
        make_page(folder, str(killed), str(damaged), str(bare), str(hostile))

    return make_once("page_of_wrecks", fill) / "report" / "index.html"


def write_summary(run: Path, name: str, content: str) -> None:
    (run / "results" / name).mkdir(parents=True)
    (run / "results" / name / "summary.json").write_text(content)


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """Return a copy of `a` that a test may change."""
    return shutil.copytree(runs / "a", tmp_path / "runs" / "a")


def rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl, with their times."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def parse_page(index: Path) -> Element:
    """Parse a page as a browser does; raise an error if it is not valid HTML."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(
        index.read_text("ascii")
    )


def page_text(index: Path) -> str:
    """Return the text of a page, with single spaces."""
    return re.sub(r"\s+", " ", " ".join(parse_page(index).itertext()))


def cells(index: Path, name: str) -> list[str]:
    """Return the cells of the table row with this name."""
    for row in parse_page(index).iter("tr"):
        texts = ["".join(cell.itertext()) for cell in row]
        if texts[0] == name:
            return texts[1:]
    raise AssertionError(name)


def charts(index: Path, theme: str = "light") -> dict[str, Element]:
    """Return the charts of a page as SVG, by their alternative text."""
    svg_by_alt: dict[str, Element] = {}
    for picture in parse_page(index).iter("picture"):
        source, image = picture
        uri = source.get("srcset") if theme == "dark" else image.get("src")
        kind, content = (uri or "").split(",")
        assert kind == "data:image/svg+xml;base64"
        svg = ElementTree.fromstring(base64.b64decode(content, validate=True))
        svg_by_alt[image.get("alt") or ""] = svg
    return svg_by_alt
