"""The command `cache`, and caches of earlier versions."""

import hashlib
import os
from pathlib import Path

import pytest

from simsiam.config.options import DataOptions
from simsiam.data.cache_folders import find_old_caches
from tests.helpers import Program
from tests.images import smooth_image
from utils.filesystem import lock_folder


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Return a folder of twelve images."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for i in range(12):
        smooth_image().rotate(30 * i).save(folder / f"{i:02d}.png")
    return folder


def test_caches_are_listed_and_removed(
    flat: Path, train_on_folder: Program, program: Program, tmp_path: Path
) -> None:
    assert train_on_folder(flat, "--batch-size", "6")[0] == 0
    where = ("--cache-dir", str(tmp_path / "cache"))
    (tmp_path / "cache" / "no cache").mkdir()
    (name,) = [entry for entry in os.listdir(tmp_path / "cache") if entry != "no cache"]
    status, out, err = program("cache", *where)
    assert (status, err) == (0, "") and name in out and "flat" in out and "today" in out

    status, _, err = program("cache", *where, "--clear", "other")
    assert status == 2 and err.count("\n") == 1 and name in err
    with lock_folder(tmp_path / "cache" / name, ""):
        status, _, err = program("cache", *where, "--clear", name)
        assert status == 2 and "is in use" in err
    status, out, _ = program("cache", *where, "--clear", "all")
    assert status == 0 and "removed" in out
    assert os.listdir(tmp_path / "cache") == ["no cache"]
    assert "There is no cache" in program("cache", *where)[1]


def test_a_cache_of_an_earlier_version_is_named_and_replaced(
    flat: Path, train_on_folder: Program, program: Program, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    # The name that the earlier version gave to the cache of these options.
    options = DataOptions("folder", str(flat), image_size=32, cache_dir=str(cache))
    assert find_old_caches(options) == []
    key = "\n".join([str(flat), "32", "None", "None"])
    old = cache / hashlib.sha256(key.encode()).hexdigest()[:16]
    old.mkdir(parents=True)
    (old / "manifest.jsonl").write_text("{}\n")
    (old / "images.uint8").write_bytes(bytes(100))
    assert "images of an earlier version" in program("cache", "--cache-dir", str(cache))[1]

    status, out, err = train_on_folder(flat, "--batch-size", "6")
    assert (status, err) == (0, "")
    assert f"{old}, a cache of an earlier version, is replaced" in out
    assert not old.exists() and len(os.listdir(cache)) == 1
