"""The benchmarks of evaluations: what they measure, on which images, and that they continue."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.nn.functional import normalize

import main
from models import resnet10
from simsiam import SimSiam, ViewsDataModule, load_backbone
from simsiam.config.evaluation_commands import Knn
from simsiam.config.evaluation_options import CheckpointOptions
from simsiam.evaluation.context import EvaluationContext, open_context
from simsiam.evaluation.features import extract_features
from tests.benchmarks import evaluation_questions
from tests.benchmarks.evaluation_questions import (
    PROTOCOLS,
    USUAL,
    Backbone,
    Protocol,
    estimate_statistics,
)
from tests.benchmarks.weight_average import WeightAverages
from tests.conftest import MakeOnce
from tests.helpers import CHEAP, CPU, NETWORK
from tests.test_module import QUIET
from utils.knn import knn_predict

HELD_OUT = "--train-images 500 --held-out-images 100"


@pytest.fixture(scope="module")
def run(make_once: MakeOnce) -> Path:
    """Return the folder of a run that has held out 100 images."""

    def fill(folder: Path) -> None:
        flags = f"--dataset patterns {HELD_OUT} --pictures-every 50 {NETWORK} {CPU} {CHEAP}"
        assert main.main([*flags.split(), "--epochs", "1", "--save-dir", str(folder)]) == 0

    return make_once("held_out_run", fill) / "simsiam_patterns"


@pytest.fixture(scope="module")
def context(run: Path) -> EvaluationContext:
    config = Knn(checkpoint=CheckpointOptions(checkpoint=str(run)))
    return open_context(config, torch.device("cpu"), labels=True)


def test_bn_statistics_are_those_of_the_batches_alone() -> None:
    network = resnet10(width=4).eval()
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.fill_(7.0)  # must be forgotten
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    estimate_statistics(network, iter([images]))
    assert not network.training
    in_eval_mode = network(images)
    in_train_mode = network.train()(images)
    # Running variances have n - 1 in the denominator, so the two differ a little.
    torch.testing.assert_close(in_eval_mode, in_train_mode, atol=0.02, rtol=0.02)


def test_an_image_and_its_mirror_image_have_the_same_mean_features(
    context: EvaluationContext,
) -> None:
    protocol = Protocol(zoom=36 / 32, mirror=True)
    backbone = Backbone(context, context.train, 100)
    features = backbone.features("queries", protocol)
    images = context.test.images
    assert isinstance(images, torch.Tensor)
    context = replace(context, test=replace(context.test, images=images.flip(-1)))
    mirrored = Backbone(context, context.train, 100)
    torch.testing.assert_close(mirrored.features("queries", protocol), features)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(100))
    assert not torch.allclose(
        mirrored.features("queries", Protocol()), backbone.features("queries", Protocol())
    )


def test_bn_statistics_of_views_and_of_clean_images_differ(context: EvaluationContext) -> None:
    before = [buffer.clone() for buffer in context.checkpoint.backbone.buffers()]
    backbone = Backbone(context, context.train, 200)
    usual, clean, views = (
        backbone.features("queries", Protocol(bn=bn)) for bn in ("", "clean", "views")
    )
    assert not torch.allclose(clean, usual)
    assert not torch.allclose(clean, views)
    after = context.checkpoint.backbone.buffers()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluation_questions.py", *map(str, arguments)])
    return evaluation_questions.main()


def test_held_out_images_are_measured_and_finished_results_are_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (run, "--results", tmp_path, "--bn-images", 100)
    assert call(monkeypatch, *arguments) == 0
    (file,) = tmp_path.iterdir()
    results = json.loads(file.read_text())
    assert list(results) == list(PROTOCOLS)

    data = ViewsDataModule("patterns", train_images=500, held_out_images=100, batch_size=50)
    data.setup()
    backbone = load_backbone(run)
    bank, queries = (
        extract_features(backbone, split.images, data.mean, data.std)
        for split in (data.train, data.test)
    )
    assert (len(bank), len(queries)) == (400, 100)
    predicted = knn_predict(queries, normalize(bank), data.train.labels, 10, 20, 0.07)
    expected = 100 * (predicted == data.test.labels).float().mean().item()
    assert results[USUAL]["knn_20"] == pytest.approx(expected, abs=1.01)

    del results["zoom 40"]
    results[USUAL]["knn_20"] = 12.34
    file.write_text(json.dumps(results))
    capsys.readouterr()
    assert call(monkeypatch, *arguments) == 0
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in err.splitlines()] == [f"{run.name}, zoom 40"]
    assert "12.34" in out
    for name in PROTOCOLS:
        assert out.count(f"\n {name}  ") == 3, name  # a row in each of three tables
    assert "held-out train images" in out


def test_a_run_without_held_out_images_is_refused(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, trained, "--results", tmp_path) == 2
    assert "was not trained with --held-out-images" in capsys.readouterr().err


class Recorder(pl.Callback):
    """Notes a weight and a BN statistic after each step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []
        self.means: list[torch.Tensor] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        state = pl_module.state_dict()
        self.weights.append(state["backbone.conv1.weight"].clone())
        self.means.append(state["backbone.bn1.running_mean"].clone())


def test_averages_of_weights_are_exponential() -> None:
    recorder = Recorder()
    averages = WeightAverages((0.5, 0.9))
    trainer = pl.Trainer(**QUIET, max_steps=4, callbacks=[averages, recorder])
    data = ViewsDataModule("patterns", train_images=50, test_images=10, batch_size=10)
    trainer.fit(SimSiam("resnet10", width=4, out_dim=32, h_dim=16), datamodule=data)
    for decay, average in averages.averages.items():
        for name, values in (
            ("conv1.weight", recorder.weights),
            ("bn1.running_mean", recorder.means),
        ):
            expected = values[0]
            for value in values[1:]:
                expected = decay * expected + (1 - decay) * value
            torch.testing.assert_close(average.module.state_dict()[name], expected)
