"""`linear`: a head on a frozen backbone, with a weight decay that is chosen without test images."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.metrics import top_k_accuracy_score

from simsiam import load_backbone
from simsiam.commands.linear import choose_recipe
from simsiam.config.linear_options import LinearOptions
from simsiam.config.options import DataOptions
from simsiam.data import load_dataset
from simsiam.evaluation.classifier import CHOICE_EPOCH
from simsiam.evaluation.features import extract_features
from simsiam.evaluation.logistic_regression import (
    fit_logistic,
    fold_standardisation,
    make_head,
    standardise_in_place,
)
from tests.helpers import Program, read_summary
from utils.philox import permutation


@pytest.mark.parametrize(
    "flags",
    [
        [],
        pytest.param(
            ["--augment", "--epochs", "3"], marks=pytest.mark.slow("trains a head by SGD")
        ),
    ],
)
def test_linear_keeps_a_head_that_has_the_accuracy_it_says(
    flags: list[str], cifar10_run: Path, cifar10_dir: Path, program: Program, tmp_path: Path
) -> None:
    weights = load_file(cifar10_run / "backbone.safetensors")
    status, out, err = program(
        "linear", "--checkpoint", str(cifar10_run), "--results-dir", str(tmp_path), *flags
    )
    assert (status, err) == (0, "")
    folder = tmp_path / ("linear_augment" if flags else "linear")
    figures = read_summary(folder)
    assert f"{figures['test_accuracy']:.2f}" in out
    assert "each class, by linear (" in out

    head = torch.nn.Linear(32, 10)
    head.load_state_dict(load_file(folder / "head.safetensors"), strict=True)
    with safe_open(folder / "head.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"])[0] == "airplane"
    _, test = load_dataset(
        DataOptions("cifar10", str(cifar10_dir), train_images=1000, test_images=500)
    )
    backbone = load_backbone(cifar10_run)
    features = extract_features(
        backbone, test.images, torch.tensor(backbone.mean), torch.tensor(backbone.std), False
    )
    right = (head(features).argmax(dim=1) == test.labels).float().mean().item()
    assert 100 * right == pytest.approx(figures["test_accuracy"], abs=1e-4)
    assert right > 0.2  # measured: .30 and .27
    after = load_file(cifar10_run / "backbone.safetensors")
    assert all(torch.equal(weights[name], after[name]) for name in weights)


def test_held_out_images_choose_and_all_train_images_teach(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    """Heads are measured on images that they have not seen. The saved head has seen all images."""
    flags = ["--results-dir", str(tmp_path), "--held-out", "0.25", "--seed", "3"]
    assert program("linear", "--checkpoint", str(trained), *flags)[0] == 0
    figures = read_summary(tmp_path / "linear")

    train, _ = load_dataset(DataOptions("patterns", "", train_images=200, test_images=100))
    backbone = load_backbone(trained)
    statistics = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    features = extract_features(backbone, train.images, *statistics, unit=False)
    order = permutation(200, CHOICE_EPOCH, seed=3)
    labels, x = train.labels[order], features[order]
    scale = standardise_in_place(x)

    def fit(decay: float, first: int) -> torch.nn.Linear:
        head = make_head(32, 10)
        fit_logistic(head, x[first:], labels[first:], decay)
        return head

    for decay in (1e-1, 1e-3):
        right = (fit(decay, 50)(x[:50]).argmax(dim=1) == labels[:50]).float().mean().item()
        assert figures["held_out"][f"{decay:g}"] == pytest.approx(
            100 * right, abs=4
        )  # two images, by rounding
    best = max(figures["held_out"].values())
    assert figures["held_out"][f"{figures['weight_decay']:g}"] == best
    assert best < 80
    expected = fit(figures["weight_decay"], 0)
    fold_standardisation(expected, *scale)
    saved = torch.nn.Linear(32, 10)
    saved.load_state_dict(load_file(tmp_path / "linear" / "head.safetensors"))
    saved_output = saved(features).softmax(dim=1)
    expected_output = expected(features).softmax(dim=1)
    torch.testing.assert_close(saved_output, expected_output, atol=0.02, rtol=0)


def test_the_share_that_is_held_out_matters_only_without_crops(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    command = ["linear", "--checkpoint", str(trained), "--results-dir", str(tmp_path)]
    status, _, err = program(*command, "--held-out", "0.00001")
    assert status == 2 and "would hold out 0 of" in err
    crops = ["--augment", "--epochs", "1", "--batch-size", "100"]
    assert program(*command, *crops, "--held-out", "0.00001")[0] == 0


@pytest.mark.slow("a probe twice")
def test_the_weight_decay_is_chosen_on_held_out_train_images_alone(
    cifar10_run: Path, program: Program, tmp_path: Path
) -> None:
    chosen = []
    for n in (500, 100):  # with other test images, all that was decided and learned is the same
        there = tmp_path / str(n)
        flags = ["--results-dir", str(there), "--test-images", str(n)]
        assert program("linear", "--checkpoint", str(cifar10_run), *flags)[0] == 0
        figures = read_summary(there / "linear")
        best = max(figures["held_out"].values())
        assert figures["held_out"][f"{figures['weight_decay']:g}"] == best
        assert len(figures["held_out"]) == 5
        chosen.append((figures["held_out"], load_file(there / "linear" / "head.safetensors")))
    assert chosen[0][0] == chosen[1][0]
    assert torch.equal(chosen[0][1]["weight"], chosen[1][1]["weight"])


@pytest.mark.slow("a probe twice; that random weights are taken is a quick test of finetune")
def test_from_scratch_fits_a_head_of_its_own(
    cifar10_run: Path, program: Program, tmp_path: Path
) -> None:
    command = ["linear", "--checkpoint", str(cifar10_run), "--results-dir", str(tmp_path)]
    assert program(*command)[0] == 0
    assert program(*command, "--from-scratch")[0] == 0
    pretrained = load_file(tmp_path / "linear" / "head.safetensors")
    from_scratch = load_file(tmp_path / "linear_from_scratch" / "head.safetensors")
    assert not torch.equal(pretrained["weight"], from_scratch["weight"])


def test_the_recipe_of_the_run_trains_the_head_by_lars_on_raw_features(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    flags = ["--augment", "--epochs", "2", "--results-dir", str(tmp_path)]
    command = ["linear", "--checkpoint", str(trained), *flags]
    status, out, err = program(*command, "--recipe", "imagenet")
    assert (status, err) == (0, "") and "crops and flips, LARS" in out and "top-5" in out
    summary = read_summary(tmp_path / "linear_augment")
    assert summary["recipe"] == "imagenet"
    assert summary["training"] == {
        "optimizer": "lars",
        "epochs": 2,
        "batch_size": 200,  # all images, which are fewer than 4096
        "learning_rate": pytest.approx(0.1 * 200 / 256),
        "crop_scale": 0.08,
        "raw_features": True,
        "initial_std": 0.01,
    }
    head = load_file(tmp_path / "linear_augment" / "head.safetensors")
    assert head["weight"].std().item() == pytest.approx(0.01, rel=0.5)  # LARS takes small steps

    same_but_sgd = ["--optimizer", "sgd", "--batch-size", "200", "--learning-rate", "0.078125"]
    assert program(*command, "--overwrite", "--recipe", "imagenet", *same_but_sgd)[0] == 0
    of_sgd = load_file(tmp_path / "linear_augment" / "head.safetensors")
    assert not torch.equal(head["weight"], of_sgd["weight"])

    assert program(*command, "--overwrite")[0] == 0
    assert read_summary(tmp_path / "linear_augment")["recipe"] == "cifar10"


def test_top_5_is_the_share_of_images_whose_class_is_among_five(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    status, out, _ = program("linear", "--checkpoint", str(trained), "--results-dir", str(tmp_path))
    summary = read_summary(tmp_path / "linear")
    assert status == 0 and f"{summary['test_top5_accuracy']:.2f}" in out
    _, test = load_dataset(DataOptions("patterns", "", train_images=200, test_images=100))
    backbone = load_backbone(trained)
    statistics = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    features = extract_features(backbone, test.images, *statistics, unit=False)
    head = load_file(tmp_path / "linear" / "head.safetensors")
    logits = features @ head["weight"].T + head["bias"]
    expected = top_k_accuracy_score(test.labels, logits, k=5, labels=range(10))
    assert summary["test_top5_accuracy"] == pytest.approx(100 * expected)
    assert summary["test_accuracy"] < summary["test_top5_accuracy"] < 100


def test_a_run_decides_the_recipe() -> None:
    def recipe_for(settings: dict[str, str], **flags: Any) -> str:
        checkpoint = SimpleNamespace(metadata=SimpleNamespace(settings=settings))
        context: Any = SimpleNamespace(checkpoint=checkpoint)
        return choose_recipe(LinearOptions(augment=True, **flags), context)

    assert recipe_for({"recipe": "imagenet"}) == "imagenet"
    assert recipe_for({"recipe": "imagenet"}, recipe="cifar10") == "cifar10"
    assert recipe_for({}) == "cifar10"  # a run of an earlier version
    assert recipe_for({"recipe": "of a later version"}) == "cifar10"


def test_the_recipes_options_go_with_augment(program: Program, trained: Path) -> None:
    for flag in (["--recipe", "imagenet"], ["--optimizer", "sgd"]):
        status, _, err = program("linear", "--checkpoint", str(trained), *flag)
        assert status == 2 and "each goes with --augment" in err
