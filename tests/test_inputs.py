"""simsiam/inputs.py accepts a user's batches, values and datamodules, or says what is wrong."""

import warnings
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from simsiam import KNNMonitor, SimSiam, load_backbone
from simsiam.evaluation.starting_weights import load_weights
from tests.trainers import fit, make_model, make_trainer

IMAGES, LABELS = torch.randn(24, 3, 16, 16), torch.arange(24) % 4


class Pairs(Dataset[Any]):
    """Two views of each image, arranged by `collate`."""

    def __init__(self, arrange: Callable[[Tensor, Tensor, int], Any]) -> None:
        self.arrange = arrange

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, i: int) -> Any:
        return self.arrange(IMAGES[i], IMAGES[i].flip(2), i)


def views(
    arrange: Callable[[Tensor, Tensor, int], Any] = lambda a, b, i: [a, b],
) -> DataLoader[Any]:
    return DataLoader(Pairs(arrange), 8)


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize(
    "arrange",
    [
        lambda a, b, i: [a, b],
        lambda a, b, i: (a, b, a),
        lambda a, b, i: ([a, b], i),
        lambda a, b, i: ([a, b], i, f"{i}.png"),  # the form of lightly's loaders
        lambda a, b, i: ([a, b[:, :8, :8]], i),  # views of different sizes
    ],
)
def test_views_come_alone_or_before_labels_and_names(arrange: Any) -> None:
    assert fit(data=views(arrange), max_epochs=1).global_step == 3


@pytest.mark.parametrize(
    ("arrange", "described"),
    [
        (lambda a, b, i: {"x1": a, "x2": b}, "a dict with the keys x1, x2"),
        (lambda a, b, i: a, r"a float32 tensor \(8, 3, 16, 16\)"),
        (lambda a, b, i: [a], r"a list of 1 \(a float32 tensor \(8, 3, 16, 16\)\)"),
        (lambda a, b, i: (a, i), r"a list of 2 \(.*; a int64 tensor \(8,\)\)"),
        (lambda a, b, i: (a, b, i), "a list of 3"),
        (lambda a, b, i: ([a], i), r"a list of 2 \(a list of 1"),
        (lambda a, b, i: torch.stack([a, b]), r"a float32 tensor \(8, 2, 3, 16, 16\)"),
        (lambda a, b, i: [a.byte(), b.byte()], r"a list of 2 \(a uint8 tensor"),
    ],
)
def test_a_batch_without_two_views_is_described(arrange: Any, described: str) -> None:
    message = (
        rf"a training batch must be views of the same images, \[x1, x2\].*this one is {described}"
    )
    with pytest.raises(ValueError, match=message):
        fit(data=views(arrange), max_epochs=1)


def labelled(*columns: Any) -> DataLoader[Any]:
    return DataLoader(list(zip(IMAGES, *columns, strict=True)), 10)


NAMES = [f"{i}.png" for i in range(len(IMAGES))]


@pytest.mark.parametrize(
    "columns",
    [
        (LABELS.tolist(),),
        (LABELS.tolist(), NAMES),
        (LABELS[:, None],),  # (N, 1), the shape of MedMNIST's labels
        ((LABELS * 10**9).tolist(),),  # Memory grows with the number of different labels only.
        (LABELS.to(torch.uint8),),
    ],
)
def test_knn_takes_the_first_two_parts_of_a_batch(columns: Any) -> None:
    loader = labelled(*columns)
    plain = labelled(LABELS.tolist())
    model = make_model()
    accuracies = []
    for batches in (loader, plain):
        monitor = KNNMonitor(k=3, bank=batches, queries=batches)
        make_trainer(monitor, max_epochs=0).fit(model, views())
        accuracies.append(monitor.measure(make_trained(model), model)["kNN_accuracy"])
    assert accuracies[0] == accuracies[1]


def make_trained(model: SimSiam) -> pl.Trainer:
    trainer = make_trainer(max_epochs=0)
    trainer.fit(model, views())
    return trainer


@pytest.mark.parametrize(
    ("loader", "described"),
    [
        (
            DataLoader(TensorDataset(IMAGES), 8),
            r"a list of 1 \(a float32 tensor \(8, 3, 16, 16\)\)",
        ),
        (DataLoader(IMAGES, 8), "a float32 tensor"),  # pyright: ignore[reportArgumentType]
        (DataLoader([{"x": x} for x in IMAGES], 8), "a dict with the keys x"),  # pyright: ignore[reportArgumentType]
        (labelled(LABELS.float()), "a float32 tensor"),
        (labelled((LABELS - 1).tolist()), "a int64 tensor"),
        (labelled(NAMES), "a tuple of 10"),
    ],
)
def test_a_batch_that_knn_cannot_use_is_described(loader: Any, described: str) -> None:
    monitor = KNNMonitor(k=3, bank=loader, queries=loader)
    with pytest.raises(
        ValueError, match=rf"must give \(images, labels\).*this batch is .*{described}"
    ):
        fit(monitor, data=views(), max_epochs=1)


def test_a_loader_without_a_batch_is_named() -> None:
    monitor = KNNMonitor(k=3, bank=[], queries=labelled(LABELS.tolist()))
    with pytest.raises(ValueError, match="a loader gives no batch"):
        fit(monitor, data=views(), max_epochs=1)


@pytest.mark.parametrize("loader", [DataLoader(IMAGES, 10), labelled(LABELS.tolist(), NAMES)])  # pyright: ignore[reportArgumentType]
def test_predict_gives_the_features_of_images_with_or_without_labels(loader: Any) -> None:
    model = make_model()
    features = make_trainer().predict(model, loader)
    assert features is not None
    expected = model.eval()(IMAGES)
    torch.testing.assert_close(torch.cat(features), expected)  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------- hyper-parameters


class Stem(Enum):
    CIFAR = "cifar"


def test_numbers_of_every_library_become_plain_hyper_parameters(tmp_path: Path) -> None:
    odd: dict[str, Any] = {
        "width": np.int64(2),
        "out_dim": np.int32(16),
        "h_dim": torch.tensor(8),
        "learning_rate": np.float64(0.1),
        "warmup_epochs": torch.tensor(0.5),
        "symmetric": np.bool_(True),
        "mean": np.full(3, 0.5),
        "std": torch.full((3,), 0.25),
        "image_size": np.uint8(16),
        "classes": np.array(["a", "b"]),
        "stem": Stem.CIFAR,
    }
    model = SimSiam(np.str_("resnet10"), **odd)
    for value in model.hparams.values():
        parts = value if isinstance(value, list) else [value]
        assert {type(part) for part in parts} <= {bool, int, float, str, type(None)}
    fit(model=model, data=views(), max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    backbone = load_backbone(tmp_path / "a.ckpt")
    assert backbone.mean == (0.5,) * 3 and backbone.std == (0.25,) * 3 and backbone.image_size == 16


@pytest.mark.parametrize(
    ("name", "value"), [("width", 4.0), ("out_dim", 0), ("h_dim", "8"), ("image_size", -1)]
)
def test_a_size_is_a_whole_number(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1"):
        make_model(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", "auto", "a number of at least 0, got 'auto'"),
        ("learning_rate", float("nan"), "a number of at least 0, got nan"),
        ("warmup_epochs", -1, "a number of at least 0, got -1"),
        ("predictor_lr_scale", -1.0, "a number of at least 0"),
        ("momentum", 2, "less than 1, got 2"),
        ("mean", [0.5, 0.5], "3 channels, got"),
        ("std", 0.5, "3 channels, got 0.5"),
    ],
)
def test_a_hyper_parameter_out_of_range_is_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must .*{message}"):
        make_model(**{name: value})


class WithTemperature(SimSiam):
    """Has one more argument."""

    def __init__(self, temperature: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.temperature = temperature


class WithHead(SimSiam):
    """Has one more network, arguments that are not plain, and another predictor."""

    def __init__(self, head: nn.Module, folder: Path = Path("x"), **options: Any) -> None:
        super().__init__(**options)
        self.head = head
        self.predictor = nn.Linear(16, 16)


@pytest.mark.filterwarnings("ignore:Attribute 'head' is an instance of")
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(WithTemperature, {"temperature": 0.1}), (WithHead, {"head": nn.Linear(2, 2)})],
)
def test_a_checkpoint_of_a_subclass_gives_its_backbone(
    kind: Any, arguments: dict[str, Any], tmp_path: Path
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = kind(backbone="resnet10", width=2, out_dim=16, h_dim=8, **arguments)
    messages = [str(w.message) for w in caught if "are not saved: head" in str(w.message)]
    assert len(messages) == (1 if kind is WithHead else 0)
    fit(model=module, data=views(), max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    loaded = load_backbone(tmp_path / "a.ckpt")
    for name, weight in module.backbone.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    other = make_model()
    weights = load_weights(other, tmp_path / "a.ckpt")  # --model-path
    assert weights.lines == (
        f"the backbone of {tmp_path / 'a.ckpt'}",
        "projector and predictor start from random weights",
    )
    assert torch.equal(other.backbone.conv1.weight, module.backbone.conv1.weight)


# ---------------------------------------------------------------- datamodules


class Foreign(pl.LightningDataModule):
    """A user's datamodule, whose attributes may mean something else."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        vars(self).update(attributes)

    def train_dataloader(self) -> DataLoader[Any]:
        return views()


@pytest.mark.parametrize(
    ("attributes", "named"),
    [
        ({"classes": 4}, "classes"),
        ({"classes": [0, 1]}, "classes"),
        ({"size": (32, 32)}, "size"),
        ({"size": 0.5}, "size"),
        ({"mean": 0.5, "std": 0.5}, "mean and std"),
        ({"mean": [0.5] * 3}, "mean and std"),
        ({"mean": [0.5] * 3, "std": [0.0] * 3}, "mean and std"),
        ({"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}, "mean and std"),
        ({"mean": abs, "size": "large", "classes": nn.Linear(2, 2)}, "mean and std.*size.*classes"),
    ],
)
def test_attributes_that_do_not_fit_are_ignored(
    attributes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    model = make_model()
    with pytest.warns(
        UserWarning, match=f"SimSiam ignores attributes of Foreign: {named}"
    ) as caught:
        trainer = fit(model=model, data=Foreign(**attributes), max_epochs=1)
    assert len([w for w in caught if "SimSiam ignores" in str(w.message)]) == 1
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    load_backbone(tmp_path / "a.ckpt")
    assert model.hparams["mean"] is None
    assert model.hparams["image_size"] is None
    assert model.hparams["classes"] == []


def test_attributes_that_fit_are_taken(tmp_path: Path) -> None:
    data = Foreign(mean=np.full(3, 0.5), std=(1, 1, 1), size=np.int64(16), classes=("a", "b"))
    fit(data=data, max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    backbone = load_backbone(tmp_path / "a.ckpt")
    assert (backbone.mean, backbone.std, backbone.image_size) == ((0.5,) * 3, (1.0,) * 3, 16)
