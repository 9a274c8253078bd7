"""The parts with the user's own loaders, backbone and image statistics."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from models.batch_norm import BatchNorm2d
from simsiam import KNNMonitor, SimSiam, ViewsDataModule, load_backbone
from simsiam.evaluation.metrics import rankme
from tests.helpers import Program
from tests.trainers import fit, make_data, make_model
from utils.errors import UserError
from utils.knn import knn_predict


class LabelledPairs(Dataset[Any]):
    """([x1, x2], label), as torchvision's data sets give them with a transform of two crops."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[list[Tensor], int]:
        x1, x2 = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(i))
        return [x1, x2], i % 4


def pairs_loader() -> DataLoader[Any]:
    return DataLoader(LabelledPairs(), batch_size=10)


def test_the_monitor_measures_on_the_loaders_it_was_given() -> None:
    bank = TensorDataset(torch.randn(60, 3, 32, 32), torch.arange(60) % 4)
    queries = TensorDataset(torch.randn(30, 3, 32, 32), torch.arange(30) % 4)
    monitor = KNNMonitor(k=5, bank=DataLoader(bank, 16), queries=DataLoader(queries, 16))
    model = make_model()
    trainer = fit(monitor, model=model, data=pairs_loader(), max_epochs=2)

    with torch.no_grad():
        model.eval()
        bank_features = model(bank.tensors[0])
        query_features = model(queries.tensors[0])
    predicted = knn_predict(
        nn.functional.normalize(query_features, dim=1),
        nn.functional.normalize(bank_features, dim=1),
        bank.tensors[1],
        4,
        k=5,
    )
    accuracy = 100 * (predicted == queries.tensors[1]).float().mean().item()
    assert float(trainer.callback_metrics["kNN_accuracy"]) == pytest.approx(accuracy)
    rank = rankme(bank_features)
    assert float(trainer.callback_metrics["rankme"]) == pytest.approx(rank, rel=1e-4)


def test_a_monitor_without_loaders_says_what_to_pass() -> None:
    with pytest.raises(ValueError, match=r"KNNMonitor\(bank=..., queries=...\)"):
        fit(KNNMonitor(k=5), data=pairs_loader(), max_epochs=1)
    with pytest.raises(ValueError, match="both bank and queries"):
        KNNMonitor(bank=pairs_loader())


@pytest.fixture
def checkpoint_without_statistics(tmp_path: Path) -> Path:
    """Return a checkpoint of training on a loader, of whose images nothing is known."""
    checkpoint = tmp_path / "own.ckpt"
    fit(data=pairs_loader(), max_steps=1).save_checkpoint(checkpoint)
    return checkpoint


def test_unknown_image_statistics_are_an_error_when_used(
    checkpoint_without_statistics: Path,
) -> None:
    backbone = load_backbone(checkpoint_without_statistics)
    with pytest.raises(ValueError, match=r"not known: train with SimSiam\(mean="):
        _ = backbone.mean
    module = SimSiam.load_from_checkpoint(checkpoint_without_statistics)
    assert module.hparams["mean"] is None


def test_knn_refuses_a_checkpoint_without_image_statistics(
    checkpoint_without_statistics: Path, program: Program
) -> None:
    path = str(checkpoint_without_statistics)
    status, _, err = program("knn", "--checkpoint", path, "--dataset", "patterns")
    assert status == 2
    assert err.count("\n") == 1
    assert "mean, std and size of its images are unknown" in err


def test_any_module_that_gives_features_is_a_backbone(tmp_path: Path) -> None:
    network = torchvision.models.shufflenet_v2_x0_5()
    network.fc = nn.Identity()
    module = SimSiam(network, out_dim=32, h_dim=16)
    trainer = fit(KNNMonitor(k=5), model=module, data=make_data(10, 20), max_epochs=1)
    assert module.projector[0].in_features == 1024
    assert "kNN_accuracy" in trainer.callback_metrics

    trainer.save_checkpoint(tmp_path / "own.ckpt")
    message = "a custom ShuffleNetV2, which this program"
    with pytest.raises(UserError, match=message):
        load_backbone(tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match=r"a custom ShuffleNetV2\. Build it and pass it"):
        SimSiam.load_from_checkpoint(tmp_path / "own.ckpt")
    loaded = SimSiam.load_from_checkpoint(tmp_path / "own.ckpt", backbone=network)
    assert loaded.hparams["mean"] == pytest.approx(module.hparams["mean"])


def test_a_backbone_must_return_features() -> None:
    with pytest.raises(ValueError, match="must give features"):
        SimSiam(nn.Conv2d(3, 8, 3))


class WithProbe(SimSiam):
    """Trains a linear layer on the features, from the second batch of an epoch on."""

    def __init__(self, **options: Any) -> None:
        super().__init__("resnet10", width=2, out_dim=16, h_dim=8, **options)
        self.probe = nn.Linear(16, 4)
        self.teacher = nn.Linear(16, 4).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        result = super().training_step(batch, batch_idx)
        if batch_idx > 0:
            x1 = batch[0][0]
            result["loss"] = result["loss"] + self.probe(self(x1).detach()).square().mean()
        return result


@pytest.mark.parametrize("fixed_predictor", [False, True])
def test_networks_that_a_subclass_adds_are_trained(fixed_predictor: bool) -> None:
    module = WithProbe(fixed_predictor=fixed_predictor, warmup_epochs=0)
    before = {name: value.clone() for name, value in module.named_parameters()}
    trainer = fit(model=module, data=pairs_loader(), max_epochs=1)
    for name, parameter in module.named_parameters():
        is_fixed = name.startswith("teacher") or (fixed_predictor and name.startswith("predictor"))
        assert torch.equal(parameter, before[name]) == is_fixed, name
    (encoder, *_) = trainer.optimizers[0].param_groups
    assert any(parameter is module.probe.weight for parameter in encoder["params"])
    # Frozen networks would make checkpoints from before unreadable.
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert id(module.teacher.weight) not in optimized


class OnGPU(Tensor):
    """A tensor that claims to be on a GPU, where all views go through our networks in one pass."""

    is_cuda = True


@pytest.mark.parametrize(
    ("batch_norm", "expected"),
    [(nn.BatchNorm2d, [6, 6]), (BatchNorm2d, [12])],
    ids=["torch's", "ours"],
)
def test_foreign_batch_norm_gets_one_view_at_a_time(
    batch_norm: type[nn.Module], expected: list[int]
) -> None:
    """In one pass, torch's BN would compute its statistics over all views together."""
    views = [torch.randn(6, 3, 32, 32).as_subclass(OnGPU) for _ in range(2)]
    module = SimSiam(
        nn.Sequential(nn.Conv2d(3, 8, 3), batch_norm(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )
    batch_sizes: list[int] = []
    module.backbone.register_forward_pre_hook(lambda _, inputs: batch_sizes.append(len(inputs[0])))
    module.training_step(views, 0)
    assert batch_sizes == expected


class SavesItsArguments(ViewsDataModule):
    def __init__(self, n: int) -> None:
        super().__init__("patterns", train_images=n, test_images=20, batch_size=20)
        self.n = n
        self.save_hyperparameters()


def test_a_data_module_is_only_loaded_if_it_saves_its_arguments(tmp_path: Path) -> None:
    """Others would silently get the defaults, which are those of CIFAR-10."""
    file = tmp_path / "a.ckpt"
    fit(data=SavesItsArguments(60), max_epochs=1).save_checkpoint(file)
    assert SavesItsArguments.load_from_checkpoint(file, weights_only=True).n == 60
    with pytest.raises(UserError, match="does not hold the arguments of ViewsDataModule"):
        ViewsDataModule.load_from_checkpoint(file)
