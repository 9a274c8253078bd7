"""`python main.py report`: one page that says what the runs say, to everyone, and needs nothing beside itself."""

import itertools
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from xml.etree.ElementTree import Element

import html5lib
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.tensorboard.writer import SummaryWriter

import main
from simsiam.config.commands import Pretrain, command_line, settings_to_keep
from simsiam.report import figures, page
from simsiam.report.analysis import flat
from simsiam.report.records import group, read_run
from tests.helpers import SMALL, Program
from utils.cli import parse
from utils.filesystem import lock_folder

CURVES = ["images_per_second", "kNN_accuracy", "learning_rate", "train_loss", "z_std"]
FEW = ("--seeds", "0", "1", "--epochs", "1", "--label-fraction", "0.5")
PICTURES = ["classes", "confusion", "map", "neighbours", "views"]


@pytest.fixture(scope="session")
def runs(made: Callable[..., Path]) -> Path:
    """Runs `a`, `b`, `c` of seeds 0, 1, 2, and `d` of another width; of `a` there is a report."""

    def fill(folder: Path) -> None:
        small = [*SMALL, "--epochs", "3"]
        for name, *flags in (["a"], ["b", "--seed", "1"], ["c", "--seed", "2"], ["d", "--width", "8"]):
            where = ["--save-dir", str(folder), "--exp-name", name]
            assert main.main([*small, *where, *flags]) == 0
        assert main.main(["report", str(folder / "a")]) == 0

    return made("reported", fill)


@pytest.fixture
def page_of_a(runs: Path) -> Path:
    """The report of one run."""
    return runs / "a" / "report" / "index.html"


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A run of one's own, without a report."""
    return shutil.copytree(runs / "a", tmp_path / "runs" / "a", ignore=shutil.ignore_patterns("report"))


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def read(index: Path) -> Element:
    """The page as a browser reads it; whatever is not valid raises."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(index.read_text("ascii"))


def words(index: Path) -> str:
    return re.sub(r"\s+", " ", " ".join(read(index).itertext()))


def cells(index: Path, name: str) -> list[str]:
    """The figures of a table's row."""
    for row in read(index).iter("tr"):
        texts = ["".join(cell.itertext()) for cell in row]
        if texts[0] == name:
            return texts[1:]
    raise AssertionError(name)


# ---------------------------------------------------------------- what is in it


def test_the_page_of_one_run_has_its_figures_and_says_where_it_is(run: Path, program: Program) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    status, out, err = program("report", str(run))
    index = run / "report" / "index.html"
    assert (status, err) == (0, "") and str(index) in out and index.as_uri() in out
    assert sorted(file.stem for file in (run / "report" / "figures").iterdir()) == sorted(CURVES + PICTURES)
    last = rows(run)[-1]
    assert cells(index, "kNN, last (%)") == [f"{last['kNN_accuracy']:.2f}"]
    assert cells(index, "loss") == [f"{last['train_loss']:.4f}"] and "a (finished, 3 epochs)" in words(index)
    assert cells(index, "kNN, untrained (%)") == [
        f"{json.loads((run / 'summary.json').read_text())['kNN_untrained']:.2f}"
    ]
    assert {file: file.read_bytes() for file in before} == before  # a report changes nothing of a run


def test_the_pictures_are_pictures_and_the_curves_are_drawn(page_of_a: Path) -> None:
    for file in (page_of_a.parent / "figures").iterdir():
        with Image.open(file) as picture:
            assert picture.width > 200 and len(picture.convert("RGB").getcolors(1 << 24) or ()) > 2, file
    tree = read(page_of_a)
    drawn = [svg for svg in tree.iter() if str(svg.tag).endswith("svg")]
    assert len(drawn) == len(CURVES) + 3  # classes, confusion, map
    lines = [e for e in drawn[0].iter() if "stroke: var(--0)" in e.get("style", "") and "L" in e.get("d", "")]
    assert lines and (lines[0].get("d") or "").count("L") == len(
        rows(page_of_a.parent.parent)
    )  # from the untrained network on


def test_it_is_valid_small_and_fetches_nothing(page_of_a: Path) -> None:
    text, tree = page_of_a.read_text("ascii"), read(page_of_a)
    assert len(text) < 5_000_000
    assert "default-src 'none'" in text and "@import" not in text
    assert not [e for e in tree.iter() if e.tag in ("script", "link", "iframe", "object")]
    for e in tree.iter():
        for name, value in e.items():
            if name.split("}")[-1] in ("src", "href", "data", "srcset", "action"):
                assert value.startswith(("data:image/", "#")), value[:80]
            assert not re.search(r"url\((?!#)", value), value
    assert not re.search(r"url\(", "".join(style.text or "" for style in tree.iter("style")))
    ids = [e.get("id") for e in tree.iter() if e.get("id")]
    assert len(ids) == len(set(ids))


def test_it_is_for_everyone(page_of_a: Path) -> None:
    tree = read(page_of_a)
    assert tree.get("lang") == "en" and tree.find("head/title") is not None
    assert [meta.get("content") for meta in tree.iter("meta") if meta.get("name") == "viewport"]
    assert all(image.get("alt") for image in tree.iter("img")) and list(tree.iter("img"))
    for svg in (e for e in tree.iter() if str(e.tag).endswith("svg")):
        assert svg[0].tag.endswith("title") and len(svg[0].text or "") > 10
    assert all(table.find("thead/tr/th") is not None for table in tree.iter("table"))
    levels = [int(e.tag[1]) for e in tree.iter() if re.fullmatch("h[1-6]", str(e.tag))]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_seeds_become_mean_and_deviation_and_other_runs_are_named_by_what_differs(
    runs: Path, program: Program, tmp_path: Path
) -> None:
    given = [str(runs / name) for name in "abcd"]
    status, out, _ = program("report", *given, "--output", str(tmp_path / "out"), "--no-pictures")
    index = tmp_path / "out" / "index.html"
    assert status == 0 and "width 4 (mean of 3 seeds)" in words(index) and "width 8" in words(index)
    last = [rows(runs / name)[-1]["kNN_accuracy"] for name in "abcd"]
    expected = f"{mean(last[:3]):.2f} \u00b1 {stdev(last[:3]):.2f}"
    assert cells(index, "kNN, last (%)") == [expected, f"{last[3]:.2f}"]
    assert expected.replace("\u00b1", "+-") in out
    assert "the band one deviation" in words(index) and index.read_text().count("fill-opacity: 0.2") == len(CURVES)
    for name in "abcd":
        assert str(runs / name) in words(index)


@pytest.mark.slow("a further page")
def test_the_same_run_again_is_no_further_seed(runs: Path, run: Path, program: Program, tmp_path: Path) -> None:
    again = run.rename(run.with_name("again"))
    given = [str(runs / "a"), str(again), str(again)]  # and one named twice is one
    assert program("report", *given, "--output", str(tmp_path / "out"), "--no-pictures")[0] == 0
    index = tmp_path / "out" / "index.html"
    assert "seeds)" not in words(index) and len(cells(index, "loss")) == 2 and "A again" not in words(index)


@pytest.mark.slow("three commands and a page")
def test_what_the_commands_measured_is_in_the_tables(run: Path, program: Program) -> None:
    for command in (["knn"], ["linear"], ["finetune", *FEW]):
        assert program(*command, "--checkpoint", str(run))[0] == 0
    assert program("report", str(run))[0] == 0
    index = run / "report" / "index.html"
    found = {file.parent.name: json.loads(file.read_text()) for file in run.glob("results/*/summary.json")}
    row = next(r for r in found["knn"]["table"] if (r["features"], r["k"], r["temperature"]) == ("projector", 20, 0.2))
    assert cells(index, "kNN, projector features, k 20, T 0.2") == [f"{row['accuracy']:.2f}"]
    assert cells(index, "linear, L-BFGS, 200 labels") == [f"{found['linear']['test_accuracy']:.2f}"]
    tuned = found["finetune_0.5"]
    expected = f"{tuned['test_accuracy']:.2f} \u00b1 {tuned['deviation']:.2f}"
    assert cells(index, "fine-tuned, 100 labels") == [expected]
    assert "by the command knn" in words(index)  # which counted the classes already


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--epochs 7 --no-stop-grad --learning-rate 0.5 --train-images 50 --views 3 --knn-t 0.25",
        "--save-dir 'a b' --exp-name=-x$HOME --version ';' --warmup-epochs 0 --precision 32 --no-compile",
    ],
)
def test_the_command_in_the_page_gives_the_same_settings(flags: str) -> None:
    config = parse(Pretrain, shlex.split(flags), "main.py")
    for between in (" ", " \\\n    "):
        line = command_line(settings_to_keep(config), between)
        assert line.startswith("python main.py")
        assert parse(Pretrain, shlex.split(line.replace("\\\n", ""))[2:], "main.py") == config
    assert command_line(settings_to_keep(Pretrain())) == "python main.py"


@pytest.mark.slow("two pages for a line")
def test_a_run_remembers_its_hardware_and_the_page_tells_it(run: Path, program: Program) -> None:
    hardware = yaml.safe_load((run / "config.yaml").read_text())["resolved"]["hardware"]
    assert hardware["cpu"] and hardware["cores"] >= 1 and "gpu" not in hardware
    assert program("report", str(run), "--no-pictures")[0] == 0
    assert cells(run / "report" / "index.html", "processor") == [f"{hardware['cpu']}, {hardware['cores']} cores"]
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("hardware", "software"))
    assert program("report", str(run), "--no-pictures")[0] == 0
    assert cells(run / "report" / "index.html", "processor") == ["unknown"]


@pytest.mark.slow("a further page")
def test_what_only_tensorboard_has_is_drawn_too(run: Path, program: Program) -> None:
    with SummaryWriter(str(run / "tensorboard")) as writer:
        for row in rows(run):
            writer.add_scalar("perf/mfu", 0.1 * row["epoch"], row["step"] - 1)  # as on a GPU
    assert read_run(run).curve("perf/mfu") == {1: pytest.approx(0.1), 2: pytest.approx(0.2), 3: pytest.approx(0.3)}
    assert program("report", str(run), "--no-pictures")[0] == 0
    assert (run / "report" / "figures" / "mfu.png").exists()


def test_without_scikit_learn_the_map_is_by_pca(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(8, 0, -1)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sklearn.manifold", None)
        points, method = flat(features, "run")
    x = (features - features.mean(dim=0)).double().numpy()
    theirs = x @ np.linalg.svd(x)[2][:2].T
    assert method == "PCA" and np.allclose(np.abs(points), np.abs(theirs), atol=1e-3)  # the signs are anyone's
    assert flat(features, "run")[1] == "t-SNE"
    for few in (torch.ones(50, 8), torch.ones(1, 8)):  # collapsed; alone
        points, method = flat(few, "run")
        assert method == "PCA" and points.shape == (len(few), 2) and np.isfinite(points).all()


# ---------------------------------------------------------------- runs that are not whole


@pytest.mark.slow("three pages")
def test_of_a_killed_run_it_says_how_far_it_came(run: Path, program: Program) -> None:
    (run / "summary.json").unlink()
    (run / "backbone.safetensors").unlink()
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-20])  # killed while it wrote the last line
    (run / "checkpoints" / "last.ckpt").write_bytes(b"half")
    assert program("report", str(run))[0] == 0
    index = run / "report" / "index.html"
    assert "a (stopped after 2 of 3 epochs)" in words(index) and "nearest" in words(index)  # of best.ckpt
    with lock_folder(run, "taken"):
        assert program("report", str(run), "--no-pictures")[0] == 0
    assert "(running, 2 of 3 epochs so far)" in words(index)
    assert not (run / "report" / "figures" / "map.png").exists()  # of the report before this one


@pytest.mark.slow("a further page")
def test_damaged_files_are_left_out_and_named(run: Path, program: Program) -> None:
    for name, content in (("knn", "{"), ("linear", "[1]"), ("odd", '{"command": "linear", "test_accuracy": "x"}')):
        (run / "results" / name).mkdir(parents=True)
        (run / "results" / name / "summary.json").write_text(content)
    (run / "config.yaml").write_bytes(b"\x00\xff: [")
    for file in run.glob("tensorboard/events*"):
        file.write_bytes(file.read_bytes()[:100])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "train_loss": "<b>", "z_std": null}\n[3]\n')
    assert program("report", str(run))[0] == 0
    text = words(run / "report" / "index.html")
    for part in ("config.yaml is damaged", "results/knn/summary.json is damaged", "results/linear/summary.json is"):
        assert part in text


@pytest.mark.slow("a further page")
def test_without_a_checkpoint_or_its_images_the_page_says_so(
    run: Path, cifar10_run: Path, program: Program, tmp_path: Path
) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "backbone.safetensors").unlink()
    nowhere = tmp_path / "nowhere"
    flags = ["--data-dir", str(nowhere), "--output", str(tmp_path / "out")]
    assert program("report", str(run), str(cifar10_run), *flags)[0] == 0
    text = words(tmp_path / "out" / "index.html")
    assert "no checkpoint yet" in text and f"cifar10 is not in {nowhere}" in text and not nowhere.exists()


def test_hostile_names_stay_text(run: Path, program: Program, tmp_path: Path) -> None:
    name = "<script>alert(1)<\\script> $x$ \u4e2d \x1b[31m &amp; \"'"
    hostile = run.rename(run.with_name(name))
    other = shutil.copytree(hostile, run.with_name("b"))
    status, _, err = program("report", str(hostile), str(other), "--output", str(tmp_path / "out"), "--no-pictures")
    tree = read(tmp_path / "out" / "index.html")
    assert (status, err) == (0, "") and not list(tree.iter("script"))
    assert name.replace("\x1b", "\ufffd") in "".join(tree.itertext())


# ---------------------------------------------------------------- where it goes, and what is refused


@pytest.mark.slow("three pages; that a page changes nothing of its run is a quick test")
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


def test_its_help_teaches(program: Program) -> None:
    status, out, _ = program("report", "--help")
    assert status == 0 and "RUN [RUN ...]" in out and "--no-pictures" in out and "(default: None)" not in out
    assert re.search(r"\breport\b", program("--help")[1])


# ---------------------------------------------------------------- charts


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_lines_stand_out_from_the_paper(dark: bool) -> None:
    """By WCAG 2: text 4.5 to 1, lines 3 to 1."""
    colours = dict(re.findall(r"--(\w+): (#\w{6})", figures.css(dark)))
    assert list(colours) == list(dict(re.findall(r"--(\w+): (#\w{6})", figures.css(not dark))))
    for name in ("ink", "muted", *"01234"):
        low, high = sorted((luminance(colours[name]), luminance(colours["paper"])))
        assert (high + 0.05) / (low + 0.05) >= (4.5 if name in ("ink", "muted") else 3), name


def test_no_two_lines_look_alike() -> None:
    looks = [tuple(figures.look(style).values()) for style in range(140)]
    assert len(set(looks)) == 140
    for one, next_ in itertools.pairwise(looks):
        assert all(a != b for a, b in zip(one, next_, strict=True))  # colour, dash and marker


def test_a_band_is_a_deviation_to_each_side_of_the_mean(runs: Path) -> None:
    (together,) = group([read_run(runs / name) for name in "abc"])
    epochs, middle, deviation = together.curve("train_loss")
    columns = list(zip(*([row["train_loss"] for row in rows(runs / name)] for name in "abc"), strict=True))
    assert epochs == [1, 2, 3] and deviation == [stdev(column) for column in columns]
    assert middle == [mean(column) for column in columns]
    drawn = figures.curves([figures.Series("A", "", 0, epochs, middle, deviation)], "epoch", "loss").axes[0]
    corners = {(x, round(y, 9)) for x, y in drawn.collections[0].get_paths()[0].vertices.tolist()}
    edges = {(e, round(m + s * d, 9)) for e, m, d in zip(epochs, middle, deviation, strict=True) for s in (-1, 1)}
    assert edges <= corners and drawn.lines[0].get_ydata().tolist() == middle


@pytest.mark.parametrize(
    ("places", "moved"),
    [([], []), ([1, 5], [1, 5]), ([1, 1], [0.5, 1.5]), ([3, 1, 1.5], [3, 0.75, 1.75]), ([2, 2, 2], [1, 2, 3])],
)
def test_labels_move_apart_and_no_further(places: list[float], moved: list[float]) -> None:
    assert figures.apart(places, 1) == moved
    assert figures.apart([9, 9.5, 2], 1, low=0, high=9.5) == [8.5, 9.5, 2] and figures.apart([0, 5], 1, 1, 9) == [1, 5]


def test_a_page_takes_text_as_text() -> None:
    made = page.element("p", "a < b & c", page.element("b", "\x00\ud800"), class_='"x"')
    assert made == '<p class="&quot;x&quot;">a &lt; b &amp; c<b>\ufffd\ufffd</b></p>'
