"""`python main.py finetune`: finished seeds are kept, and the whole network learns.

The choice of labels is in tests/evaluation/test_label_subset.py.
"""

import json
import shutil
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from simsiam import load_backbone
from simsiam.config.options import DataOptions
from simsiam.data import load_dataset
from simsiam.evaluation.features import extract_features
from tests.helpers import Program, read_summary
from utils.weights import BACKBONE, read_weights, write_weights

FINETUNE = ["--label-fraction", "0.25", "--epochs", "2"]


def test_head_and_backbone_have_their_own_rates_and_both_fall_to_zero(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    rates = []

    def note_rates(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        if isinstance(optimizer, torch.optim.SGD):
            rates.append([group["lr"] for group in optimizer.param_groups])

    hook = register_optimizer_step_pre_hook(note_rates)
    flags = ["--checkpoint", str(trained), "--results-dir", str(tmp_path)]
    flags += ["--label-fraction", "0.25", "--epochs", "10", "--batch-size", "25"]
    flags += ["--learning-rate", "0.2", "--head-learning-rate", "0.5"]
    try:
        assert program("finetune", *flags)[0] == 0
    finally:
        hook.remove()
    assert len(rates) == 20  # 50 labels are two steps an epoch
    assert rates[0] == [0.5, 0.2]
    for head_rate, backbone_rate in rates:
        assert head_rate == pytest.approx(2.5 * backbone_rate)
    assert rates[-1][0] < 0.01
    assert rates == sorted(rates, reverse=True)


def test_finetune_keeps_networks_and_gives_mean_and_deviation(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    command = ["finetune", "--checkpoint", str(trained), "--results-dir", str(tmp_path), *FINETUNE]
    status, out, err = program(*command, "--seeds", "0", "1", "2")
    assert (status, err) == (0, "")
    folder = tmp_path / "finetune_0.25"
    seeds = [read_summary(folder / f"seed_{seed}") for seed in range(3)]
    accuracies = [figures["test_accuracy"] for figures in seeds]
    whole = read_summary(folder)
    assert whole["test_accuracy"] == mean(accuracies) and whole["deviation"] == stdev(accuracies)
    assert f"{mean(accuracies):.2f} +- {stdev(accuracies):.2f}" in out and whole["labels"] == 50
    assert whole["linear_accuracy"] == mean(figures["linear_accuracy"] for figures in seeds)
    assert len({figures["labels_digest"] for figures in seeds}) == 3

    backbone = load_backbone(folder / "seed_1" / "backbone.safetensors")
    head = torch.nn.Linear(32, 10)
    head.load_state_dict(load_file(folder / "seed_1" / "head.safetensors"), strict=True)
    _, test = load_dataset(DataOptions("patterns", "", train_images=200, test_images=100))
    features = extract_features(
        backbone, test.images, torch.tensor(backbone.mean), torch.tensor(backbone.std), False
    )
    right = 100 * (head(features).argmax(dim=1) == test.labels).float().mean().item()
    assert right == pytest.approx(accuracies[1], abs=1e-4)
    old = load_backbone(trained).state_dict()
    assert not any(torch.equal(old[name], tensor) for name, tensor in backbone.state_dict().items())


def test_large_gradients_do_not_throw_a_trained_backbone_away(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    """800 epochs leave features of deviation 0.004, and the weights of the head are large instead.

    Without a limit, the first steps at the default rate move each weight by many times its size.
    """
    metadata, weights = read_weights(trained / "backbone.safetensors", BACKBONE)
    for name in ("layer4.0.bn2", "layer4.0.downsample.1"):  # the last block adds the two
        weights[f"{name}.weight"] /= 250
        weights[f"{name}.bias"] /= 250
    write_weights(tmp_path / "small.safetensors", BACKBONE, weights, metadata)
    flags = ["--results-dir", str(tmp_path), "--label-fraction", "1"]
    flags += ["--epochs", "1", "--batch-size", "200"]
    assert program("finetune", "--checkpoint", str(tmp_path / "small.safetensors"), *flags)[0] == 0
    tuned = read_weights(tmp_path / "finetune_1" / "seed_0" / "backbone.safetensors", BACKBONE)[1]
    learned = [name for name in weights if "running" not in name and "num_batches" not in name]
    moved = sum((tuned[name] - weights[name]).square().sum() for name in learned) ** 0.5
    assert 0 < moved <= 0.031  # one step, at a rate of 0.03


def test_the_same_finetune_again_trains_only_the_seeds_that_are_missing(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    command = ["finetune", "--checkpoint", str(trained), "--results-dir", str(tmp_path), *FINETUNE]
    assert program(*command, "--seeds", "1")[0] == 0
    first = tmp_path / "finetune_0.25" / "seed_1" / "summary.json"
    measured = read_summary(first.parent)
    del measured["linear_accuracy"]  # as older calls left it
    first.write_text(json.dumps(measured))
    before = first.stat().st_mtime_ns
    status, out, _ = program(*command, "--seeds", "0", "1")
    assert status == 0
    assert "seed 1 is finished already" in out
    assert first.stat().st_mtime_ns == before
    assert set(read_summary(tmp_path / "finetune_0.25")["seeds"]) == {"0", "1"}
    # A default that is given as a flag is no other setting.
    status, out, _ = program(*command, "--seeds", "1", "--learning-rate", "0.03")
    assert status == 0 and "seed 1 is finished already" in out

    status, _, err = program(*command, "--epochs", "3", "--seeds", "1")
    assert status == 2 and "another --epochs" in err and err.count("\n") == 1
    assert program(*command, "--epochs", "3", "--seeds", "0", "1", "--overwrite")[0] == 0
    first.write_text("{")
    status, _, err = program(*command, "--epochs", "3", "--seeds", "1")
    assert status == 2 and "damaged" in err and err.count("\n") == 1


def test_from_scratch_begins_with_random_weights(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    for name, rest in (("a", []), ("b", ["--from-scratch"])):
        flags = ["--results-dir", str(tmp_path / name), "--seeds", "3"]
        flags += ["--learning-rate", "1e-12", "--head-learning-rate", "1e-12"]
        assert program("finetune", "--checkpoint", str(trained), *FINETUNE, *flags, *rest)[0] == 0
    tuned, scratch = (
        tmp_path / name / "seed_3" for name in ("a/finetune_0.25", "b/finetune_0.25_from_scratch")
    )
    old = load_backbone(trained)
    torch.testing.assert_close(
        load_backbone(tuned / "backbone.safetensors").conv1.weight, old.conv1.weight
    )
    assert (
        load_backbone(scratch / "backbone.safetensors").conv1.weight - old.conv1.weight
    ).abs().max() > 0.05

    # At this rate nothing moves, so the heads are as they began: one is the linear probe of the
    # labelled images, the other is zero.
    _, test = load_dataset(DataOptions("patterns", "", train_images=200, test_images=100))
    features = extract_features(
        old, test.images, torch.tensor(old.mean), torch.tensor(old.std), unit=False
    )
    probe = load_file(tuned / "head.safetensors")
    right = (features @ probe["weight"].T + probe["bias"]).argmax(dim=1) == test.labels
    assert read_summary(tuned)["linear_accuracy"] == pytest.approx(
        100 * right.float().mean().item(), abs=1e-4
    )
    assert (
        read_summary(tuned)["linear_accuracy"] > 14
        and read_summary(scratch)["linear_accuracy"] is None
    )  # measured: 17
    assert load_file(scratch / "head.safetensors")["weight"].abs().max() < 1e-9


def test_the_same_seed_gives_the_same_network(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    networks = []
    for name in "ab":
        flags = ["--results-dir", str(tmp_path / name), "--seeds", "5"]
        assert program("finetune", "--checkpoint", str(trained), *FINETUNE, *flags)[0] == 0
        networks.append(
            load_file(tmp_path / name / "finetune_0.25" / "seed_5" / "backbone.safetensors")
        )
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])


def test_a_training_that_diverges_ends_with_status_4(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    flags = ["--results-dir", str(tmp_path), "--learning-rate", "1e30"]
    status, _, err = program("finetune", "--checkpoint", str(trained), *FINETUNE, *flags)
    assert status == 4 and err.count("\n") == 1 and "lower learning rates" in err
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.safetensors"))


def test_a_tuned_backbone_says_so_and_not_what_its_origin_reached(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    flags = ["--results-dir", str(tmp_path), "--label-count", "50", "--epochs", "1", "--seeds", "4"]
    assert program("finetune", "--checkpoint", str(trained), *flags)[0] == 0
    folder = tmp_path / "finetune_50_labels"
    metadata, _ = read_weights(folder / "seed_4" / "backbone.safetensors", BACKBONE)
    tuned = metadata["tuned"]
    assert (tuned["labels"], tuned["seed"]) == (50, 4)
    assert tuned["test_accuracy"] == read_summary(folder)["test_accuracy"]
    assert "row" not in metadata


def test_seeds_of_other_weights_are_not_averaged_and_overwrite_leaves_other_seeds(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    command = ["finetune", "--checkpoint", str(run), *FINETUNE]
    assert program(*command, "--seeds", "0", "1")[0] == 0
    folder = run / "results" / "finetune_0.25"
    before = (folder / "seed_1" / "summary.json").read_bytes()
    assert program(*command, "--seeds", "0", "--overwrite")[0] == 0
    assert (folder / "seed_1" / "summary.json").read_bytes() == before
    assert program(*command, "--seeds", "0")[0] == 0 and set(read_summary(folder)["seeds"]) == {
        "0",
        "1",
    }

    metadata, state = read_weights(run / "backbone.safetensors", BACKBONE)
    state["bn1.bias"] += 0.1
    write_weights(run / "other.safetensors", BACKBONE, state, metadata)
    flags = ["--results-dir", str(run / "results"), "--seeds", "2", "0"]
    status, out, err = program(
        "finetune", "--checkpoint", str(run / "other.safetensors"), *FINETUNE, *flags
    )
    assert (status, out) == (2, "")
    assert "another --checkpoint" in err
    assert not (folder / "seed_2").exists()


@pytest.mark.slow("fine-tunes on 2,000 images; that fine-tuning trains is held by quick tests")
def test_all_labels_teach_more_than_a_few(
    cifar10_run: Path, program: Program, tmp_path: Path
) -> None:
    accuracies = []
    for fraction in ("0.05", "1"):
        flags = ["--results-dir", str(tmp_path), "--label-fraction", fraction]
        flags += ["--epochs", "6", "--batch-size", "64"]
        assert program("finetune", "--checkpoint", str(cifar10_run), *flags)[0] == 0
        accuracies.append(read_summary(tmp_path / f"finetune_{fraction}")["test_accuracy"])
    assert accuracies[1] > accuracies[0] + 5  # measured: 22 and 37
