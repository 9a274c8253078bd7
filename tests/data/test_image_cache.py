"""simsiam/data/image_cache.py: images are decoded once, and changes of their files are noticed."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from simsiam.data.image_cache import decode_images, open_cache
from tests.data.decoding import FILES, Printed, decode, expected, metadata, photos
from tests.helpers import bad_folder, picture


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    return lambda: capsys.readouterr().out


def test_images_are_decoded_once(
    tmp_path: Path, printed: Printed
) -> None:
    files = photos(tmp_path / "photos", 600)
    assert torch.equal(decode(tmp_path, files), expected(tmp_path, files))
    assert f"decoded {len(files)} images" in printed()
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    decode(tmp_path, files)
    assert printed() == "" and before == {
        file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()
    }
    assert sorted(before) == FILES


def test_the_manifest_describes_each_source(tmp_path: Path) -> None:
    files = photos(tmp_path / "photos", 3)
    decode(tmp_path, files)
    first, *done = (tmp_path / "cache" / "manifest.jsonl").read_text().splitlines()
    manifest = json.loads(first)
    state = (tmp_path / "photos" / files[2]).stat()
    assert manifest["side"] == 8 and manifest["labels"] == [0, 1, 2]
    assert manifest["sources"][2] == ["0002.png", state.st_size, state.st_mtime_ns]
    assert (
        done[2] == hashlib.sha256((tmp_path / "photos" / files[2]).read_bytes()).hexdigest()
        and len(done) == 3
    )


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


@pytest.mark.parametrize(
    "change", ["one is another", "one is new", "one is gone", "touched", "another side"]
)
def test_changed_sources_are_decoded_again(change: str, tmp_path: Path, printed: Printed) -> None:
    files = photos(tmp_path / "photos", 20)
    decode(tmp_path, files)
    side, one = 8, tmp_path / "photos" / files[3]
    if change == "one is another":
        picture().save(one)
    elif change == "one is new":
        picture().save(tmp_path / "photos" / "0001b.png")
        files = sorted([*files, Path("0001b.png")])
    elif change == "one is gone":
        one.unlink()
        files.remove(Path(one.name))
    elif change == "touched":
        os.utime(one, ns=(1, 1))
    else:
        side = 6
    printed()
    assert torch.equal(decode(tmp_path, files, side), expected(tmp_path, files, side))
    out = printed()
    assert "decoded" in out and sorted(os.listdir(tmp_path / "cache")) == FILES


def test_a_mapped_cache_survives_decoding_again(tmp_path: Path) -> None:
    files = photos(tmp_path / "photos", 20)
    old, before = decode(tmp_path, files), expected(tmp_path, files)
    picture().save(tmp_path / "photos" / files[0])
    new = decode(tmp_path, files)
    assert torch.equal(old, before) and not torch.equal(new, before)


def test_bad_images_are_listed_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    bad = bad_folder(tmp_path / "photos")
    files = [Path(name) for name in sorted([*bad, "good.png"])]
    for _ in range(2):
        listed = decode_images(tmp_path / "cache", tmp_path / "photos", files, 8, metadata(files))
        found = {str(file): why for file, why in listed.items()}
        assert found.keys() == bad.keys() and all(why in found[name] for name, why in bad.items())
    cache = open_cache(tmp_path / "cache")[0]
    assert cache.labels.tolist() == [files.index(Path("good.png"))] and len(found) == len(bad)
    assert torch.equal(cache.images, expected(tmp_path, [Path("good.png")]))
    picture().save(tmp_path / "photos" / "nowhere.png")  # what a link dangled for
    assert len(decode(tmp_path, files)) == 2


def test_a_file_that_became_readable_is_decoded(
    tmp_path: Path,
) -> None:
    """As after a chmod."""
    files = photos(tmp_path / "photos", 3)
    one = tmp_path / "photos" / files[1]
    content = one.read_bytes()
    one.write_bytes(b"x" * len(content))
    os.utime(one, ns=(1, 1))
    assert len(decode(tmp_path, files)) == 2
    one.write_bytes(content)
    os.utime(one, ns=(1, 1))
    assert torch.equal(decode(tmp_path, files), expected(tmp_path, files))
