"""The files of `embed` lead from each feature to its image."""

import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from simsiam.commands import embed
from simsiam.evaluation import feature_files
from tests.helpers import Program
from tests.images import patterns, write_images


def run_embed(program: Program, run: Path, output: Path, *flags: str) -> tuple[int, str, str]:
    results = ("--results-dir", str(output.parent / "results"))
    return program("embed", str(run), "--output", str(output), *results, *flags)


def test_each_feature_of_a_folder_has_the_path_of_its_image(
    photos: Path, folder_run: Path, program: Program, tmp_path: Path
) -> None:
    """The images at the paths, in that order, have the same features as the data set."""
    assert run_embed(program, folder_run, tmp_path / "f.npz")[0] == 0
    arrays = np.load(tmp_path / "f.npz", allow_pickle=False)
    assert [path.split("/")[0] for path in arrays["paths"]] == ["train"] * 200 + ["val"] * 60
    for i, path in enumerate(arrays["paths"]):
        with Image.open(photos / path) as image:
            (tmp_path / "copies").mkdir(exist_ok=True)
            image.save(tmp_path / "copies" / f"{i:03d}.png")
        assert arrays["classes"][arrays["labels"][i]] == path.split("/")[1]
    flags = ("--images", str(tmp_path / "copies"))
    assert run_embed(program, folder_run, tmp_path / "copies.npz", *flags)[0] == 0
    copies = np.load(tmp_path / "copies.npz", allow_pickle=False)
    np.testing.assert_allclose(copies["features"], arrays["features"], atol=1e-5)


def test_a_parquet_file_has_what_the_npz_file_has(
    folder_run: Path, program: Program, tmp_path: Path
) -> None:
    for name in ("f.npz", "f.parquet"):
        status, _, err = run_embed(program, folder_run, tmp_path / name)
        assert (status, err) == (0, "")
    arrays = np.load(tmp_path / "f.npz", allow_pickle=False)
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["features", "label", "class", "path", "index", "split"]
    assert table["features"].type == pyarrow.list_(pyarrow.float32(), 32)
    assert np.array_equal(np.array(table["features"].to_pylist(), np.float32), arrays["features"])
    assert table["label"].to_pylist() == arrays["labels"].tolist()
    assert table["class"].to_pylist() == arrays["classes"][arrays["labels"]].tolist()
    assert table["path"].to_pylist() == arrays["paths"].tolist()
    assert table["index"].to_pylist() == arrays["indices"].tolist()
    assert table["split"].to_pylist() == arrays["split"].tolist()


def test_a_parquet_file_of_arrays_has_the_same_columns(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    assert run_embed(program, trained, tmp_path / "f.parquet", "--split", "test")[0] == 0
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet")
    assert table["path"].to_pylist() == [None] * 100 and table["path"].type == pyarrow.string()
    assert table["index"].to_pylist() == list(range(100))


def test_paths_may_be_any_bytes(trained: Path, program: Program, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", patterns(3), "{i}.png")
    os.rename(tmp_path / "photos" / "1.png", os.fsencode(tmp_path) + b"/photos/1\xff\xfe.png")
    os.rename(tmp_path / "photos" / "2.png", tmp_path / "photos" / "\u5199\u771f.png")
    flags = ("--images", str(tmp_path / "photos"))
    for name in ("f.npz", "f.parquet"):
        status, out, err = run_embed(program, trained, tmp_path / name, *flags)
        assert (status, err) == (0, "")
    assert "The column path holds bytes" in out
    from_npz = np.load(tmp_path / "f.npz", allow_pickle=False)["paths"].tolist()
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet")
    from_parquet = table["path"].to_pylist()
    expected = sorted(os.listdir(os.fsencode(tmp_path / "photos")))
    assert sorted(from_parquet) == sorted(os.fsencode(path) for path in from_npz) == expected
    for path in from_npz:
        assert (tmp_path / "photos" / path).exists()
    assert table["label"].to_pylist() == [-1] * 3 and table["class"].to_pylist() == [None] * 3


def test_a_parquet_file_needs_pyarrow(
    trained: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_files.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(embed, "open_dataset", torch.no_grad)  # nothing is computed before
    status, _, err = run_embed(program, trained, tmp_path / "f.parquet")
    assert status == 2 and err.count("\n") == 1 and "pip install pyarrow" in err
    assert list(tmp_path.iterdir()) == []
