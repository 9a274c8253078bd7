"""files/image_cache.py: images are decoded once, and changes of their files are noticed."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from simsiam.data.files.image_cache import decode_images, open_cache
from tests.data.files.decoding import FILES, Printed, decode, expected, metadata, photos
from tests.images import smooth_image, write_bad_images


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


def test_the_manifest_describes_each_source(tmp_path: Path) -> None:
    files = photos(tmp_path / "photos", 3)
    decode(tmp_path, files)
    first, *lines = (tmp_path / "cache" / "manifest.jsonl").read_text().splitlines()
    manifest = json.loads(first)
    state = (tmp_path / "photos" / files[2]).stat()
    assert manifest["side"] == 8 and manifest["labels"] == [0, 1, 2]
    assert manifest["sources"][2] == ["0002.png", state.st_size, state.st_mtime_ns]
    content = (tmp_path / "photos" / files[2]).read_bytes()
    assert len(lines) == 3 and lines[2] == hashlib.sha256(content).hexdigest()


def test_the_digest_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    files = photos(tmp_path / "photos", 3)
    decode(tmp_path, files)
    hashes = [
        hashlib.sha256((tmp_path / "photos" / file).read_bytes()).hexdigest() for file in files
    ]
    lines = "\n".join(f"{file} {content}" for file, content in zip(files, hashes, strict=True))
    digest = open_cache(tmp_path / "cache")[0].digest
    assert digest == hashlib.sha256(lines.encode()).hexdigest()[:16]
    os.rename(tmp_path / "photos", tmp_path / "moved")
    decode_images(tmp_path / "other", tmp_path / "moved", files, 16, metadata(files))
    assert open_cache(tmp_path / "other")[0].digest == digest
    (tmp_path / "moved" / files[0]).rename(tmp_path / "moved" / "a.png")
    decode_images(
        tmp_path / "other", tmp_path / "moved", [Path("a.png"), *files[1:]], 16, metadata(files)
    )
    assert open_cache(tmp_path / "other")[0].digest != digest


@pytest.mark.parametrize("change", ["replaced", "new", "removed", "touched", "another side"])
def test_changed_sources_are_decoded_again(change: str, tmp_path: Path, printed: Printed) -> None:
    files = photos(tmp_path / "photos", 20)
    decode(tmp_path, files)
    side = 8
    file = tmp_path / "photos" / files[3]
    if change == "replaced":
        smooth_image().save(file)
    elif change == "new":
        smooth_image().save(tmp_path / "photos" / "0001b.png")
        files = sorted([*files, Path("0001b.png")])
    elif change == "removed":
        file.unlink()
        files.remove(Path(file.name))
    elif change == "touched":
        os.utime(file, ns=(1, 1))
    else:
        side = 6
    printed()
    assert torch.equal(decode(tmp_path, files, side), expected(tmp_path, files, side))
    out = printed()
    assert "decoded" in out and sorted(os.listdir(tmp_path / "cache")) == FILES


def test_a_mapped_cache_survives_decoding_again(tmp_path: Path) -> None:
    files = photos(tmp_path / "photos", 20)
    old = decode(tmp_path, files)
    before = expected(tmp_path, files)
    smooth_image().save(tmp_path / "photos" / files[0])
    new = decode(tmp_path, files)
    assert torch.equal(old, before) and not torch.equal(new, before)


def test_bad_images_are_listed_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    bad = write_bad_images(tmp_path / "photos")
    files = [Path(name) for name in sorted([*bad, "good.png"])]
    for _ in range(2):
        listed = decode_images(tmp_path / "cache", tmp_path / "photos", files, 8, metadata(files))
        reasons = {str(file): reason for file, reason in listed.items()}
        assert reasons.keys() == bad.keys()
        assert all(reason in reasons[name] for name, reason in bad.items())
    cache = open_cache(tmp_path / "cache")[0]
    assert cache.labels.tolist() == [files.index(Path("good.png"))] and len(reasons) == len(bad)
    assert torch.equal(cache.images, expected(tmp_path, [Path("good.png")]))
    smooth_image().save(tmp_path / "photos" / "nowhere.png")  # now the dangling link has a target
    assert len(decode(tmp_path, files)) == 2


def test_a_file_that_became_readable_is_decoded(tmp_path: Path) -> None:
    """The size and the modification time of the file are the same as before, as after a chmod."""
    files = photos(tmp_path / "photos", 3)
    file = tmp_path / "photos" / files[1]
    content = file.read_bytes()
    file.write_bytes(b"x" * len(content))
    os.utime(file, ns=(1, 1))
    assert len(decode(tmp_path, files)) == 2
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    assert torch.equal(decode(tmp_path, files), expected(tmp_path, files))
