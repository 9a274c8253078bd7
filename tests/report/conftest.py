"""Runs and reports of them that tests only read, and a report as a browser reads it."""

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
def runs(made: Callable[..., Path]) -> Path:
    """Runs `a`, `b`, `c` of seeds 0, 1, 2, and `d` of another width."""

    def fill(folder: Path) -> None:
        small = [*SMALL, "--epochs", "3", "--save-dir", str(folder), "--exp-name"]
        for name, *flags in (
            ["a"],
            ["b", "--seed", "1"],
            ["c", "--seed", "2"],
            ["d", "--width", "8"],
        ):
            assert main.main([*small, name, *flags]) == 0

    return made("reported", fill)


def make_page(folder: Path, *args: str) -> None:
    """A report in a folder's `report`, and what was printed."""
    assert main.main(["report", *args, "--output", str(folder / "report")]) == 0


@pytest.fixture(scope="session")
def page_of_one(runs: Path, made: Callable[..., Path]) -> Path:
    """The report of `a`."""
    return (
        made("page_of_one", lambda folder: make_page(folder, str(runs / "a")))
        / "report"
        / "index.html"
    )


@pytest.fixture(scope="session")
def page_of_four(runs: Path, made: Callable[..., Path]) -> Path:
    """The report of all of them, without what needs a checkpoint."""
    given = [str(runs / name) for name in "abcd"]
    return (
        made("page_of_four", lambda folder: make_page(folder, *given, "--no-pictures"))
        / "report"
        / "index.html"
    )


@pytest.fixture(scope="session")
def page_of_wrecks(runs: Path, made: Callable[..., Path]) -> Path:
    """The report of copies of `a`: killed, with damaged files, without a checkpoint, and with a hostile name."""

    def fill(folder: Path) -> None:
        names = ("killed", "damaged", "bare", HOSTILE)
        killed, damaged, bare, hostile = (
            shutil.copytree(runs / "a", folder / name) for name in names
        )
        (killed / "summary.json").unlink()
        (killed / "backbone.safetensors").unlink()
        metrics = killed / "metrics.jsonl"
        metrics.write_text(metrics.read_text()[:-20])  # killed while it wrote the last line

        for name, content in (
            ("knn", "{"),
            ("linear", "[1]"),
            ("odd", '{"command": "linear", "test_accuracy": "x"}'),
        ):
            write_summary(damaged, name, content)
        for file in (damaged / "backbone.safetensors", *(damaged / "checkpoints").iterdir()):
            file.write_bytes(b"half")
        (damaged / "config.yaml").write_bytes(b"\x00\xff: [")
        (damaged / "views.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        with open(damaged / "metrics.jsonl", "a") as file:
            file.write('{"epoch": 4, "train_loss": "<b>", "z_std": null}\n[3]\n')

        for run in (bare, hostile):
            shutil.rmtree(run / "checkpoints")
            (run / "backbone.safetensors").unlink()
        counted = {
            "command": "knn",
            "per_class": {"cat": 75, "<b>": 50},
            "confusion": [[3, 1], [2, 2]],
        }
        write_summary(bare, "knn", json.dumps(counted))
        table = [{"features": HOSTILE, "k": "<b>", "temperature": [], "accuracy": 50.0}]
        write_summary(hostile, "knn", json.dumps({"command": "knn", "table": table}))
        make_page(folder, *(str(folder / name) for name in names))

    return made("page_of_wrecks", fill) / "report" / "index.html"


def write_summary(run: Path, name: str, content: str) -> None:
    (run / "results" / name).mkdir(parents=True)
    (run / "results" / name / "summary.json").write_text(content)


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A copy of `a`, to be changed."""
    return shutil.copytree(runs / "a", tmp_path / "runs" / "a")


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl with its times."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def read(index: Path) -> Element:
    """The page as a browser reads it; whatever is not valid raises."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(
        index.read_text("ascii")
    )


def words(index: Path) -> str:
    return re.sub(r"\s+", " ", " ".join(read(index).itertext()))


def cells(index: Path, name: str) -> list[str]:
    """The figures of a table's row."""
    for row in read(index).iter("tr"):
        texts = ["".join(cell.itertext()) for cell in row]
        if texts[0] == name:
            return texts[1:]
    raise AssertionError(name)


def charts(index: Path, theme: str = "light") -> dict[str, Element]:
    """The figures of the page as SVG, by what is said of them to those who do not see it."""
    found = {}
    for picture in read(index).iter("picture"):
        uri = picture[0].get("srcset") if theme == "dark" else picture[1].get("src")
        kind, content = (uri or "").split(",")
        assert kind == "data:image/svg+xml;base64"
        found[picture[1].get("alt") or ""] = ElementTree.fromstring(
            base64.b64decode(content, validate=True)
        )
    return found
