"""The page of `report`: it shows what the runs recorded, is accessible, and fetches nothing."""

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml
from PIL import Image

from simsiam.config.commands import Pretrain, pretrain_command, settings_to_keep
from simsiam.report import charts as charts_of_the_page
from tests.helpers import Program
from tests.report.conftest import cells, charts, page_text, parse_page, rows
from utils.cli import parse

CURVES = sorted(charts_of_the_page.CURVES)
PICTURES = [*charts_of_the_page.FEATURE_CHARTS, *charts_of_the_page.FEATURE_PICTURES]
FEW = ("--seeds", "0", "1", "--epochs", "1", "--label-fraction", "0.5")


def test_page_of_one_run_shows_its_metrics(page_of_one: Path, runs: Path) -> None:
    run = runs / "a"
    assert sorted(file.stem for file in (page_of_one.parent / "figures").iterdir()) == sorted(
        CURVES + PICTURES
    )
    last, summary = rows(run)[-1], json.loads((run / "summary.json").read_text())
    assert cells(page_of_one, "kNN, last (%)") == [f"{last['kNN_accuracy']:.2f}"]
    assert cells(page_of_one, "kNN, best (%)") == [f"{summary['kNN_best']:.2f}"]
    assert cells(page_of_one, "kNN, untrained (%)") == [f"{summary['kNN_untrained']:.2f}"]
    assert cells(page_of_one, "loss") == [f"{last['train_loss']:.4f}"]
    text = page_text(page_of_one)
    assert "kNN is top-1 on the test images (k 20, T 0.1)." in text
    assert "a (finished, 3 of 3 epochs)" in text and "--width=4" in text and str(run) in text


def test_pictures_are_not_empty_and_curves_have_all_epochs(page_of_one: Path, runs: Path) -> None:
    for file in (page_of_one.parent / "figures").iterdir():
        with Image.open(file) as picture:
            assert picture.width > 200, file
            colours = picture.convert("RGB").getcolors(1 << 24) or ()
            assert len(colours) > 2, file
            if file.stem != "views":
                assert picture.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255), file
    assert len(charts(page_of_one)) == len(CURVES) + len(charts_of_the_page.FEATURE_CHARTS)
    for theme, colour in (("light", "#0072b2"), ("dark", "#56b4e9")):
        accuracy_charts = [
            svg for alt, svg in charts(page_of_one, theme).items() if alt.startswith("kNN accuracy")
        ]
        elements = accuracy_charts[0].iter()
        lines = [e.get("d", "") for e in elements if f"stroke: {colour}" in e.get("style", "")]
        # A line has a segment for each epoch, because it begins at the untrained network.
        assert max(line.count("L") for line in lines) == len(rows(runs / "a"))


def test_gallery_marks_neighbours_of_the_same_class(page_of_one: Path) -> None:
    galleries = [e for e in parse_page(page_of_one).iter("div") if e.get("class") == "row"]
    assert len(galleries) == 8 and all(len(row) == 9 for row in galleries)
    alt_texts = {"same": "of the same class", "other": "of another class"}
    kinds = set()
    for row in galleries:
        query, *neighbours = ("".join(tile.itertext()).strip() for tile in row)
        for text, tile in zip(neighbours, row[1:], strict=True):
            name, cosine = text.split()
            kind = "same" if name == query else "other"
            assert tile.get("class") == f"tile {kind}" and -1 <= float(cosine) <= 1
            assert (tile[0].get("alt") or "").endswith(alt_texts[kind])
            kinds.add(kind)
    assert kinds == {"same", "other"}


def test_page_is_valid_and_small_and_fetches_nothing(page_of_one: Path) -> None:
    text, tree = page_of_one.read_text("ascii"), parse_page(page_of_one)
    assert len(text) < 5_000_000
    assert "default-src 'none'" in text and "@import" not in text
    assert not [e for e in tree.iter() if e.tag in ("script", "link", "iframe", "object")]
    for e in tree.iter():
        for name, value in e.items():
            if name.split("}")[-1] in ("src", "href", "data", "srcset", "action"):
                assert value.startswith("data:image/"), value[:80]
            assert "url(" not in value, value
    assert "url(" not in "".join(style.text or "" for style in tree.iter("style"))
    for svg in [*charts(page_of_one).values(), *charts(page_of_one, "dark").values()]:
        links = [value for e in svg.iter() for name, value in e.items() if name.endswith("href")]
        assert all(link.startswith(("#", "data:image/png")) for link in links)
        assert not [
            e for e in svg.iter() if e.tag.split("}")[-1] in ("script", "metadata", "foreignObject")
        ]


def test_page_is_accessible(page_of_one: Path, page_of_four: Path) -> None:
    for index in (page_of_one, page_of_four):
        tree = parse_page(index)
        assert tree.get("lang") == "en" and tree.find("head/title") is not None
        assert [meta.get("content") for meta in tree.iter("meta") if meta.get("name") == "viewport"]
        assert all(image.get("alt") for image in tree.iter("img")) and list(tree.iter("img"))
        assert all(table.find("thead/tr/th") is not None for table in tree.iter("table"))
        scrolled = [div for div in tree.iter("div") if div.get("class") == "scroll"]
        assert len(scrolled) == len(list(tree.iter("table")))
        assert all((div.get("tabindex"), div.get("role")) == ("0", "region") for div in scrolled)
        assert all(div.get("aria-label") for div in scrolled)
        levels = [int(e.tag[1]) for e in tree.iter() if re.fullmatch("h[1-6]", str(e.tag))]
        assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
        for alt in charts(index):
            assert len(alt) > 10


def test_seeds_share_a_mean_and_other_runs_are_named_by_what_differs(
    page_of_four: Path, runs: Path
) -> None:
    text = page_text(page_of_four)
    assert "width 4 (mean of 3 seeds)" in text and "width 8" in text
    last = [rows(runs / name)[-1]["kNN_accuracy"] for name in "abcd"]
    expected = f"{mean(last[:3]):.2f} \u00b1 {stdev(last[:3]):.2f}"
    assert cells(page_of_four, "kNN, last (%)") == [expected, f"{last[3]:.2f}"]
    assert "the band one deviation" in text
    curves = [svg for alt, svg in charts(page_of_four).items() if "by epoch" in alt]
    bands = [[e for e in svg.iter() if "fill-opacity: 0.2" in e.get("style", "")] for svg in curves]
    assert [len(band) for band in bands] == [1] * len(CURVES)
    assert all(str(runs / name) in text for name in "abcd")


@pytest.mark.slow("a further page")
def test_copy_of_a_run_is_not_a_further_seed(
    runs: Path, run: Path, program: Program, tmp_path: Path
) -> None:
    again = run.rename(run.with_name("again"))
    paths = [str(runs / "a"), str(again), str(again)]  # a run that is named twice counts once
    assert program("report", *paths, "--output", str(tmp_path / "out"), "--no-pictures")[0] == 0
    index = tmp_path / "out" / "index.html"
    assert "seeds)" not in page_text(index)
    assert len(cells(index, "loss")) == 2
    assert "A again" not in page_text(index)


@pytest.mark.slow("three commands and a page")
def test_tables_have_the_results_of_the_other_commands(run: Path, program: Program) -> None:
    for command in (["knn"], ["linear"], ["finetune", *FEW]):
        assert program(*command, "--checkpoint", str(run))[0] == 0
    assert program("report", str(run))[0] == 0
    index = run / "report" / "index.html"
    summaries = {
        file.parent.name: json.loads(file.read_text())
        for file in run.glob("results/*/summary.json")
    }
    accuracies = {
        (row["features"], row["k"], row["temperature"]): row["accuracy"]
        for row in summaries["knn"]["table"]
    }
    accuracy = accuracies["projector", 20, 0.2]
    assert cells(index, "kNN, projector features, k 20, T 0.2") == [f"{accuracy:.2f}"]
    accuracy = summaries["linear"]["test_accuracy"]
    assert cells(index, "linear, 200 labels") == [f"{accuracy:.2f}"]
    finetuned = summaries["finetune_0.5"]
    expected = f"{finetuned['test_accuracy']:.2f} \u00b1 {finetuned['deviation']:.2f}"
    assert cells(index, "finetune 0.5, 100 labels, 1 epoch") == [expected]


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--epochs 7 --no-stop-grad --learning-rate 0.5 --train-images 50 --views 3 --knn-t 0.25",
        "--save-dir 'a b' --exp-name=-x$HOME --version ';' --warmup-epochs 0 "
        "--precision 32 --no-compile",
    ],
)
def test_command_on_the_page_gives_the_same_settings(flags: str) -> None:
    config = parse(Pretrain, shlex.split(flags), "main.py")
    for between in (" ", " \\\n    "):
        line = pretrain_command(settings_to_keep(config), between)
        assert line.startswith("python main.py")
        assert parse(Pretrain, shlex.split(line.replace("\\\n", ""))[2:], "main.py") == config
    assert pretrain_command(settings_to_keep(Pretrain())) == "python main.py"


def test_page_shows_the_hardware_that_a_run_recorded(
    page_of_one: Path, page_of_wrecks: Path
) -> None:
    run = page_of_wrecks.parents[1] / "bare"
    hardware = yaml.safe_load((run / "config.yaml").read_text())["resolved"]["hardware"]
    assert hardware["cpu"] and hardware["cores"] >= 1 and "gpu" not in hardware
    for name in ("cpu", "cores"):
        value = str(hardware[name])
        assert cells(page_of_one, name) == [value]
        # The second run's config.yaml is damaged.
        assert cells(page_of_wrecks, name) == [value, "-", value, value]


@pytest.mark.slow("two pages")
def test_second_report_shows_the_run_as_it_is_now(run: Path, program: Program) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    status, out, err = program("report", str(run))
    index = run / "report" / "index.html"
    assert (status, err) == (0, "") and str(index) in out and index.as_uri() in out
    # The report has changed no file of the run.
    assert {file: file.read_bytes() for file in before} == before
    shutil.rmtree(run / "checkpoints")
    (run / "backbone.safetensors").unlink()
    (run / "views.png").unlink()
    assert program("report", str(run))[0] == 0
    assert "no checkpoint in this folder" in page_text(index)
    assert sorted(file.stem for file in (run / "report" / "figures").iterdir()) == CURVES
