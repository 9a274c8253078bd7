"""Networks are loaded strictly from a run folder, a .ckpt and a .safetensors."""

import inspect
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from simsiam import SimSiam, load_backbone
from simsiam.evaluation.features import extract_features
from simsiam.evaluation.metadata import ALL_HPARAMS
from simsiam.evaluation.starting_weights import load_weights
from tests.helpers import SMALL, Program, with_cifar_stem
from utils.weights import BACKBONE, read_weights, write_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import main

    folder = tmp_path_factory.mktemp("runs")
    assert main.main([*SMALL, "--epochs", "1", "--save-dir", str(folder)]) == 0
    return folder / "simsiam_patterns"


def test_the_names_of_hyper_parameters_are_the_arguments_of_simsiam() -> None:
    """A new argument must be added to one of the groups in metadata.py, or nothing loads."""
    assert sorted(ALL_HPARAMS) == sorted(inspect.signature(SimSiam).parameters)


def test_all_three_ways_give_the_same_network(run: Path) -> None:
    x = torch.rand(5, 3, 32, 32)
    outputs = []
    for path in (run, str(run), run / "checkpoints" / "last.ckpt", run / "backbone.safetensors"):
        backbone = load_backbone(path)
        assert not backbone.training and backbone.image_size == 32
        assert backbone.mean == pytest.approx(load_backbone(run).mean) and len(backbone.std) == 3
        outputs.append(backbone(x))
    assert all(torch.equal(outputs[0], output) for output in outputs)


def test_load_from_checkpoint_gives_the_module(run: Path) -> None:
    module = SimSiam.load_from_checkpoint(run / "checkpoints" / "last.ckpt").eval()
    x = torch.rand(5, 3, 32, 32)
    assert torch.equal(module(x), load_backbone(run)(x)) and module.hparams["width"] == 4


def test_the_best_checkpoint_loads_as_well(run: Path) -> None:
    """Of this run's only epoch: it has the weights of the last one."""
    best = run / "checkpoints" / "best.ckpt"
    expected = load_backbone(run).state_dict()
    for backbone in (SimSiam.load_from_checkpoint(best).backbone, load_backbone(best)):
        assert all(
            torch.equal(expected[name], tensor) for name, tensor in backbone.state_dict().items()
        )


def test_the_loaded_features_are_those_that_were_monitored(run: Path) -> None:
    backbone = load_backbone(run)
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    ours = torch.nn.functional.normalize(
        backbone((images / 255 - mean[:, None, None]) / std[:, None, None])
    )
    torch.testing.assert_close(extract_features(backbone, images, mean, std), ours)


def test_files_from_before_there_were_stems_and_heads_without_bn_still_load(
    run: Path, tmp_path: Path
) -> None:
    metadata, state = read_weights(run / "backbone.safetensors", BACKBONE)
    del metadata["stem"]
    write_weights(tmp_path / "old.safetensors", BACKBONE, state, metadata)
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    for name in ("stem", "heads_bn"):
        del content["hyper_parameters"][name]
    torch.save(content, tmp_path / "old.ckpt")
    expected = load_backbone(run).state_dict()
    for file in ("old.safetensors", "old.ckpt"):
        model = SimSiam("resnet10", width=4, out_dim=32, h_dim=16)
        load_weights(model, tmp_path / file)
        for backbone in (load_backbone(tmp_path / file), model.backbone):
            loaded = backbone.state_dict()
            assert all(torch.equal(expected[name], loaded[name]) for name in loaded)


def test_timm_takes_the_file_strictly(tmp_path: Path) -> None:
    trained = SimSiam(out_dim=8, h_dim=4).backbone
    write_weights(
        tmp_path / "b.safetensors", BACKBONE, trained.state_dict(), {"backbone": "resnet18"}
    )
    theirs = with_cifar_stem(timm.create_model("resnet18", num_classes=0))
    theirs.load_state_dict(load_file(tmp_path / "b.safetensors"), strict=True)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(theirs.eval()(x), trained.eval()(x), atol=1e-6, rtol=1e-6)


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    program: Program, tmp_path: Path
) -> None:
    flags = ["--epochs", "3", "--checkpoint-every", "1"]
    assert program(*SMALL, *flags)[0] == 0
    folder = tmp_path / "runs" / "simsiam_patterns"
    (folder / "summary.json").unlink()  # as if it had been killed on its last metres
    last = folder / "checkpoints" / "last.ckpt"
    before = torch.load(last, weights_only=True)["state_dict"]
    last.write_bytes(last.read_bytes()[:-1000])
    status, out, err = program(*SMALL, *flags)
    assert status == 0
    assert "going back" in err and err.count("\n") == 1
    assert "last.previous.ckpt" in out
    after = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(before[name], after[name]) for name in before)
