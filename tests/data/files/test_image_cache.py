"""files/image_cache.py: images are decoded once, and changes of their files are noticed."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam.data.cache.index import read_index
from simsiam.data.file_paths import FilePaths
from simsiam.data.files import image_cache
from simsiam.data.files.cached_images import open_cache
from simsiam.data.files.resizing import resize_whole
from tests.data.files.decoding import (
    FILES,
    Printed,
    decode,
    decode_all,
    expected,
    photos,
    read_cache,
)
from tests.images import smooth_image, write_bad_images
from utils.errors import UserError


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    return lambda: capsys.readouterr().out


def modification_times(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_images_are_decoded_once(tmp_path: Path, printed: Printed) -> None:
    files = photos(tmp_path / "photos", 600)
    assert torch.equal(decode(tmp_path, files), expected(tmp_path, files))
    assert f"decoded {len(files)} images" in printed()
    before = modification_times(tmp_path / "cache")
    decode(tmp_path, files)
    assert printed() == "" and modification_times(tmp_path / "cache") == before
    assert sorted(before) == FILES


def test_whole_images_are_stored_with_their_own_shapes(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    sizes = [(48, 40), (30, 90), (9, 7)]  # width, height
    files = [Path(f"{i}.png") for i in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        smooth_image(size).save(tmp_path / "photos" / file)
    decode(tmp_path, files)
    index = read_index(tmp_path / "cache")
    lines = index.find(FilePaths(map(str, files)))
    _, whole = open_cache(tmp_path / "cache", index, lines)
    assert whole.original_sizes.tolist() == [[40, 48], [90, 30], [7, 9]]
    assert whole.stored_sizes.tolist() == [[16, 19], [48, 16], [7, 9]]  # at most twice 8 pixels
    for i, file in enumerate(files):
        height, width = whole.stored_sizes[i].tolist()
        offset = int(whole.offsets[i])
        stored = whole.pixels[offset : offset + 3 * height * width].view(height, width, 3)
        pixels = torch.from_numpy(np.array(Image.open(tmp_path / "photos" / file)))
        assert torch.equal(stored, resize_whole(pixels, 16))


def test_the_index_describes_each_file(tmp_path: Path) -> None:
    files = photos(tmp_path / "photos", 3)
    decode(tmp_path, files)
    first, *lines = (tmp_path / "cache" / "index.jsonl").read_text().splitlines()
    header = json.loads(first)
    state = (tmp_path / "photos" / files[2]).stat()
    content = hashlib.sha256((tmp_path / "photos" / files[2]).read_bytes()).hexdigest()
    assert header["size"] == 8 and header["stored_side"] == 16 and len(lines) == 3
    path, size, time, digest, *sizes, offset, slot, notes = json.loads(lines[2])
    assert [path, size, time] == ["0002.png", state.st_size, state.st_mtime_ns]
    assert digest == content and sizes == [10, 10, 10, 10]
    assert (offset, slot, notes) == (600, 2, {})


@pytest.mark.parametrize("change", ["replaced", "new", "touched"])
def test_a_changed_file_alone_is_decoded_again(
    change: str, tmp_path: Path, printed: Printed
) -> None:
    files = photos(tmp_path / "photos", 20)
    decode(tmp_path, files)
    file = tmp_path / "photos" / files[3]
    if change == "replaced":
        smooth_image().save(file)
    elif change == "new":
        smooth_image().save(tmp_path / "photos" / "0001b.png")
        files = sorted([*files, Path("0001b.png")])
    else:
        os.utime(file, ns=(1, 1))
    printed()
    before = (tmp_path / "cache" / "index.jsonl").read_text()
    assert torch.equal(decode(tmp_path, files), expected(tmp_path, files))
    out = printed()
    valid = len(files) - 1
    assert f"{valid} of {len(files)} images are already decoded" in out and "decoded" in out
    after = (tmp_path / "cache" / "index.jsonl").read_text()
    assert after.startswith(before) and after.count("\n") == before.count("\n") + 1
    assert sorted(os.listdir(tmp_path / "cache")) == FILES


def test_a_removed_file_needs_no_decoding(tmp_path: Path, printed: Printed) -> None:
    files = photos(tmp_path / "photos", 20)
    decode(tmp_path, files)
    (tmp_path / "photos" / files.pop(3)).unlink()
    printed()
    assert torch.equal(decode(tmp_path, files), expected(tmp_path, files))
    assert printed() == ""


def test_another_size_is_decoded_again(tmp_path: Path) -> None:
    files = photos(tmp_path / "photos", 20)
    decode(tmp_path, files)
    assert torch.equal(decode(tmp_path, files, 6), expected(tmp_path, files, 6))
    assert sorted(os.listdir(tmp_path / "cache")) == FILES


def test_runs_on_parts_of_a_folder_share_the_images(tmp_path: Path, printed: Printed) -> None:
    files = photos(tmp_path / "photos", 20)
    decode(tmp_path, files[::2])
    printed()
    assert torch.equal(decode(tmp_path, files), expected(tmp_path, files))
    assert "10 of 20 images are already decoded" in printed()
    decode(tmp_path, files[::2])
    assert printed() == ""


def test_a_mapped_cache_survives_decoding_again(tmp_path: Path) -> None:
    files = photos(tmp_path / "photos", 20)
    old = decode(tmp_path, files)
    before = expected(tmp_path, files)
    smooth_image().save(tmp_path / "photos" / files[0])
    new = decode(tmp_path, files)
    assert torch.equal(old, before) and not torch.equal(new, before)


def large_photos(folder: Path, shade: int) -> list[Path]:
    """Make four images that fill more than a cache may waste, and return the names of the files."""
    folder.mkdir(exist_ok=True)
    files = [Path(f"{i}.png") for i in range(4)]
    for i, file in enumerate(files):
        Image.new("RGB", (500, 400), (shade, i, 7)).save(folder / file)
    return files


def test_space_of_files_that_changed_is_used_again(tmp_path: Path, printed: Printed) -> None:
    for shade in range(4):
        files = large_photos(tmp_path / "photos", shade)
        mapped = decode(tmp_path, files, 200)
        assert torch.equal(mapped, expected(tmp_path, files, 200))
    assert "files that have changed or are gone" in printed()
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "cache").iterdir()}
    assert len(sizes) == 3 and sum(sizes.values()) < 2.1 * 4 * 3 * (200**2 + 400 * 500)
    index = decode_all(tmp_path / "cache", tmp_path / "photos", files, 200)
    assert len(index) - len(index.valid_lines()) == 4


def test_a_cache_that_cannot_be_made_smaller_is_used_as_it_is(
    tmp_path: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = image_cache._flush_to_disk

    def flush_without_space(file: Any) -> None:
        if file.name.endswith("clean.1.uint8"):  # the last one that is written again
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(file)

    with monkeypatch.context() as full_disk:
        full_disk.setattr(image_cache, "_flush_to_disk", flush_without_space)
        for shade in range(3):
            files = large_photos(tmp_path / "photos", shade)
            mapped = decode(tmp_path, files, 200)
            assert torch.equal(mapped, expected(tmp_path, files, 200))
            assert sorted(os.listdir(tmp_path / "cache")) == FILES
    assert "keeps the unused space (No space left on device)" in printed()

    # Once there is space, the cache is made smaller.
    files = large_photos(tmp_path / "photos", 3)
    assert torch.equal(decode(tmp_path, files, 200), expected(tmp_path, files, 200))
    names = sorted(os.listdir(tmp_path / "cache"))
    assert names == ["clean.1.uint8", "index.jsonl", "whole.1.uint8"]


def test_bad_images_are_listed_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    bad = write_bad_images(tmp_path / "photos")
    files = [Path(name) for name in sorted([*bad, "good.png"])]
    for _ in range(2):
        index = decode_all(tmp_path / "cache", tmp_path / "photos", files)
        entries = index.entries(index.valid_lines())
        reasons = {file: entry.failure for file, entry in entries if entry.failure}
        assert reasons.keys() == bad.keys()
        assert all(reason in reasons[name] for name, reason in bad.items())
    good = [Path("good.png")]
    assert torch.equal(read_cache(tmp_path / "cache", good), expected(tmp_path, good))
    with pytest.raises(UserError, match="no complete cache"):
        read_cache(tmp_path / "cache", files)
    smooth_image().save(tmp_path / "photos" / "nowhere.png")  # now the dangling link has a target
    decode_all(tmp_path / "cache", tmp_path / "photos", files)
    assert len(read_cache(tmp_path / "cache", [*good, Path("dangling.png")])) == 2


def test_a_file_that_became_readable_is_decoded(tmp_path: Path) -> None:
    """The size and the modification time of the file are the same as before, as after a chmod."""
    files = photos(tmp_path / "photos", 3)
    file = tmp_path / "photos" / files[1]
    content = file.read_bytes()
    file.write_bytes(b"x" * len(content))
    os.utime(file, ns=(1, 1))
    index = decode_all(tmp_path / "cache", tmp_path / "photos", files)
    assert list(index.failures.values()) == ["not an image"]
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    assert torch.equal(decode(tmp_path, files), expected(tmp_path, files))
