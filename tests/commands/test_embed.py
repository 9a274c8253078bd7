"""`embed` and `neighbours`, of data sets and of any folder: arrays for numpy, and a gallery."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam import load_backbone
from simsiam.commands.neighbours import same_class_percentage
from simsiam.config.options import DataOptions
from simsiam.data import load_dataset
from simsiam.evaluation.features import extract_features
from simsiam.evaluation.gallery import Tile
from tests.helpers import Program
from tests.images import write_bad_images
from tests.processes import Started


def raw_features(run: Path, images: torch.Tensor) -> np.ndarray:
    backbone = load_backbone(run)
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    return extract_features(backbone, images, mean, std, unit=False).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 30 test images of patterns as PNG files, in a sub-folder for each class."""
    where = tmp_path_factory.mktemp("images")
    _, test = load_dataset(DataOptions("patterns", "", train_images=10, test_images=30))
    for i, (image, label) in enumerate(zip(test.images, test.labels.tolist(), strict=True)):
        file = where / test.classes[label] / f"{i:02d} \u00e4.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return where


@pytest.mark.parametrize(
    ("split", "sizes"), [("both", (200, 100)), ("train", (200, 0)), ("test", (0, 100))]
)
def test_a_data_sets_features_are_those_of_the_backbone(
    split: str, sizes: tuple[int, int], trained: Path, program: Program, tmp_path: Path
) -> None:
    output, results = tmp_path / "new" / "features.npz", tmp_path / "results"
    flags = ["--output", str(output), "--results-dir", str(results), "--split", split]
    status, out, err = program("embed", "--checkpoint", str(trained), *flags)
    assert (status, err) == (0, "") and str(output) in out
    with np.load(output, allow_pickle=False) as file:
        arrays = dict(file)
    assert set(arrays) == {"features", "labels", "indices", "split", "classes"}
    train, test = load_dataset(DataOptions("patterns", "", train_images=200, test_images=100))
    splits = {"train": train, "test": test}
    for (name, images), size in zip(splits.items(), sizes, strict=True):
        mine = arrays["split"] == name
        assert mine.sum() == size
        if size:
            np.testing.assert_allclose(
                arrays["features"][mine], raw_features(trained, images.images), atol=1e-5
            )
            assert np.array_equal(arrays["labels"][mine], images.labels.numpy())
            assert np.array_equal(arrays["indices"][mine], np.arange(size))
    assert tuple(arrays["classes"]) == splits["test"].classes
    made = results / "embed_features_npz"
    figures = json.loads((made / "summary.json").read_text())
    assert (figures["images"], figures["features"]) == (sum(sizes), 32)


def test_a_folders_features_are_those_of_the_same_images_as_a_data_set(
    trained: Path, folder: Path, program: Program, tmp_path: Path
) -> None:
    output = tmp_path / "f.npz"
    flags = ["--images", str(folder), "--output", str(output)]
    flags += ["--results-dir", str(tmp_path / "results")]
    assert program("embed", "--checkpoint", str(trained), *flags)[0] == 0
    arrays = np.load(output, allow_pickle=False)
    files = [Path(path) for path in arrays["paths"]]
    assert files == sorted(files) and len(files) == 30 and set(arrays["split"]) == {"folder"}
    _, test = load_dataset(DataOptions("patterns", "", train_images=10, test_images=30))
    order = [int(file.name[:2]) for file in files]
    np.testing.assert_allclose(
        arrays["features"], raw_features(trained, test.images[order]), atol=1e-5
    )
    names = sorted(test.classes)
    assert [names[label] for label in arrays["labels"]] == [file.parts[0] for file in files]
    assert list(arrays["classes"]) == names


def test_bad_images_stop_it_or_are_left_out(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    bad = write_bad_images(images)
    flags = ["--images", str(images), "--results-dir", str(tmp_path / "results")]
    for command in ("embed", "neighbours"):
        status, _, err = program(command, "--checkpoint", str(trained), *flags)
        assert status == 2 and err.count("\n") == 1 and f"{len(bad)} of 8 images" in err
        assert not list(tmp_path.glob("results/**/summary.json"))
        status, out, err = program(
            command, "--checkpoint", str(trained), *flags, "--skip-bad-images"
        )
        assert (status, err) == (0, "") and f"left out: {len(bad)} of 8" in out
        (tmp_path / "results" / command / "summary.json").unlink()
    with np.load(tmp_path / "results" / "embed" / "features.npz") as arrays:
        assert arrays["paths"].tolist() == ["good.png"] and arrays["features"].shape == (1, 32)
        assert arrays["labels"].tolist() == [-1] and len(arrays["classes"]) == 0


def test_an_output_that_exists_is_not_replaced_unasked(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    for command, name in (("embed", "f.npz"), ("neighbours", "n.png"), ("export", "b.safetensors")):
        output = tmp_path / name
        output.write_text("mine")
        flags = ["--output", str(output), "--results-dir", str(tmp_path / "results")]
        status, _, err = program(command, "--checkpoint", str(trained), *flags)
        assert status == 2
        assert "Use --overwrite to replace it" in err
        assert output.read_text() == "mine"
        assert program(command, "--checkpoint", str(trained), *flags, "--overwrite")[0] == 0
        assert output.stat().st_size > 1000
        assert sorted(file.name for file in tmp_path.iterdir()) == sorted({name, "results"})
        output.unlink()


def extract_many(args: list[str]) -> int:
    """Features of n images, in chunks; prints the largest memory of this process, in KiB."""
    n = int(args[0])
    # It takes hardly any memory itself, and has 48 features.
    network = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten())
    chunks = (torch.full((500, 3, 32, 32), i % 255, dtype=torch.uint8) for i in range(n // 500))
    assert extract_features(network, chunks, torch.zeros(3), torch.ones(3), n=n).shape == (n, 48)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return 0


def test_memory_is_that_of_the_features() -> None:
    peaks = []
    for n in (5_000, 55_000):
        process = Started(extract_many, [str(n)])
        out, err = process.communicate()
        assert process.returncode == 0, err
        peaks.append(int(out) / 1024)
    features, images = 50_000 * 48 * 4 / 2**20, 50_000 * 3 * 32 * 32 / 2**20  # 9 and 146 MiB
    assert peaks[1] - peaks[0] < features + 40 < images


# ---------------------------------------------------------------- neighbours


def test_the_gallery_shows_each_query_and_its_nearest_train_images(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    flags = ["--queries", "7", "--k", "4", "--results-dir", str(tmp_path)]
    assert program("neighbours", "--checkpoint", str(trained), *flags)[0] == 0
    with Image.open(tmp_path / "neighbours" / "neighbours.png") as file:
        picture = np.array(file)
    train, test = load_dataset(DataOptions("patterns", "", train_images=200, test_images=100))
    # In steps of a seventh; each index is moved on by one more, to meet other classes.
    indices = [0, 15, 30, 45, 61, 76, 91]
    bank, queries = (raw_features(trained, x) for x in (train.images, test.images[indices]))
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
    nearest = np.argsort(-(queries @ bank.T), axis=1)[:, :4]
    tile, step, line = 96, 106, 16
    same = 0
    for r, index in enumerate(indices):
        y = 36 + r * (step + line)
        images = [test.images[index], *(train.images[j] for j in nearest[r])]
        for c, image in enumerate(images):
            x = 10 + c * step + 10 * (c > 0)
            inner = picture[y + 4 : y + tile - 4, x + 4 : x + tile - 4]  # without the frame
            grown = (
                image.permute(1, 2, 0).numpy().repeat(3, 0).repeat(3, 1)[4 : tile - 4, 4 : tile - 4]
            )
            assert np.array_equal(inner, grown), (r, c)
            if c:
                alike = train.labels[nearest[r, c - 1]] == test.labels[index]
                assert tuple(picture[y, x]) == ((0, 114, 178) if alike else (213, 94, 0))
                same += int(alike)
    figures = json.loads((tmp_path / "neighbours" / "summary.json").read_text())
    assert figures["same_class"] == pytest.approx(100 * same / 28)


def test_share_of_the_same_class_is_of_pairs_whose_classes_are_known() -> None:
    image = Image.new("RGB", (2, 2))
    rows = [[Tile(image, "", same) for same in row] for row in ([None, True, False], [None, None])]
    assert same_class_percentage(rows) == 50
    assert same_class_percentage([[Tile(image, "", None)]]) is None


def test_queries_may_come_from_a_folder(
    trained: Path, folder: Path, program: Program, tmp_path: Path
) -> None:
    flags = ["--images", str(folder), "--queries", "3", "--k", "2", "--results-dir", str(tmp_path)]
    status, out, err = program("neighbours", "--checkpoint", str(trained), *flags)
    assert (status, err) == (0, "") and "neighbours.png" in out
    with Image.open(tmp_path / "neighbours" / "neighbours.png") as picture:
        assert picture.size == (20 + 3 * 106 + 10, 36 + 3 * 122)


def test_a_name_without_room_for_the_temporary_file_is_refused_before_the_work(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    output = tmp_path / f"{chr(0x732B) * 80}.npz"  # 84 letters
    flags = ["--output", str(output), "--results-dir", str(tmp_path / "results")]
    status, out, err = program("embed", "--checkpoint", str(trained), *flags)
    assert (status, out) == (2, "") and "takes 244 bytes, which is too long" in err
