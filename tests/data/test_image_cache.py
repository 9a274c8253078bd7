"""simsiam/data/image_cache.py: decoded once, complete or noticed."""

import hashlib
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam.data import image_cache
from simsiam.data.image_cache import decode_images, open_cache
from simsiam.data.images import CHUNK_IMAGES, read_image
from simsiam.data.listing import ImageFolder
from tests.helpers import Started, bad_folder, picture, wait_for
from utils.errors import UserError
from utils.filesystem import lock_folder

FILES = ["images.uint8", "manifest.jsonl"]


def photos(folder: Path, n: int) -> list[Path]:
    """n different images, as many files as that."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [Path(f"{i:04d}.png") for i in range(n)]
    for i, file in enumerate(files):
        Image.new("RGB", (10, 10), (i % 256, i // 256, 7)).save(folder / file)
    return files


def facts(files: list[Path]) -> dict[str, Any]:
    """As of train images without classes, but numbered."""
    return {"train": len(files), "labels": list(range(len(files))), "classes": []}


def decode(tmp_path: Path, files: list[Path], side: int = 8) -> torch.Tensor:
    decode_images(tmp_path / "cache", tmp_path / "photos", files, side, facts(files))
    return open_cache(tmp_path / "cache")[0].images


def expected(tmp_path: Path, files: list[Path], side: int = 8) -> torch.Tensor:
    return torch.stack([read_image(tmp_path / "photos" / file, side) for file in files])


Said = Callable[[], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return lambda: capsys.readouterr().out


# ---------------------------------------------------------------- decoded once


def test_images_are_those_of_their_files_and_are_decoded_once(tmp_path: Path, said: Said) -> None:
    files = photos(tmp_path / "photos", 600)
    assert torch.equal(decode(tmp_path, files), expected(tmp_path, files))
    assert f"decoded {len(files)} images" in said()
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    decode(tmp_path, files)
    assert said() == "" and before == {
        file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()
    }
    assert sorted(before) == FILES


def test_the_manifest_says_what_each_image_is_of(tmp_path: Path) -> None:
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


def test_the_digest_is_of_names_and_contents_wherever_the_folder_lies(tmp_path: Path) -> None:
    files = photos(tmp_path / "photos", 3)
    decode(tmp_path, files)
    hashes = [
        hashlib.sha256((tmp_path / "photos" / file).read_bytes()).hexdigest() for file in files
    ]
    lines = "\n".join(f"{file} {content}" for file, content in zip(files, hashes, strict=True))
    digest = open_cache(tmp_path / "cache")[0].digest
    assert digest == hashlib.sha256(lines.encode()).hexdigest()[:16]
    os.rename(tmp_path / "photos", tmp_path / "moved")
    decode_images(tmp_path / "other", tmp_path / "moved", files, 16, facts(files))
    assert open_cache(tmp_path / "other")[0].digest == digest
    (tmp_path / "moved" / files[0]).rename(tmp_path / "moved" / "a.png")
    decode_images(
        tmp_path / "other", tmp_path / "moved", [Path("a.png"), *files[1:]], 16, facts(files)
    )
    assert open_cache(tmp_path / "other")[0].digest != digest


@pytest.mark.parametrize(
    "change", ["one is another", "one is new", "one is gone", "touched", "another side"]
)
def test_what_changes_is_noticed(change: str, tmp_path: Path, said: Said) -> None:
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
    said()
    assert torch.equal(decode(tmp_path, files, side), expected(tmp_path, files, side))
    out = said()
    assert "decoded" in out and sorted(os.listdir(tmp_path / "cache")) == FILES


def test_a_run_that_reads_the_old_images_keeps_them(tmp_path: Path) -> None:
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
        listed = decode_images(tmp_path / "cache", tmp_path / "photos", files, 8, facts(files))
        found = {str(file): why for file, why in listed.items()}
        assert found.keys() == bad.keys() and all(why in found[name] for name, why in bad.items())
    cache = open_cache(tmp_path / "cache")[0]
    assert cache.labels.tolist() == [files.index(Path("good.png"))] and len(found) == len(bad)
    assert torch.equal(cache.images, expected(tmp_path, [Path("good.png")]))
    picture().save(tmp_path / "photos" / "nowhere.png")  # what a link dangled for
    assert len(decode(tmp_path, files)) == 2


def test_a_bad_file_that_can_be_read_now_is_noticed_though_size_and_time_are_the_same(
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


# ---------------------------------------------------------------- cut off, twice at once, damaged, no room


def decode_folder(args: list[str]) -> int:
    """Decode the images in ARGS[1] into ARGS[0]."""
    folder = ImageFolder(args[1])
    decode_images(Path(args[0]), folder.folder, folder.files, 48, facts(folder.files))
    return 0


def start(tmp_path: Path) -> Started:
    return Started(decode_folder, [str(tmp_path / "cache"), str(tmp_path / "photos")])


def noise(tmp_path: Path, n: int = 600) -> list[Path]:
    """Equal images; more than are decoded together, unless fewer are asked for."""
    (tmp_path / "photos").mkdir()
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    )
    image.save(tmp_path / "photos" / "0000.png", compress_level=1)
    for i in range(1, n):
        os.link(tmp_path / "photos" / "0000.png", tmp_path / "photos" / f"{i:04d}.png")
    return [Path(f"{i:04d}.png") for i in range(n)]


def decode_a_block(args: list[str]) -> int:
    """The same, in a process that is killed when it asks for the second block."""
    read = image_cache.read_images

    def read_a_block(*given: Any) -> Iterator[Any]:
        yield next(read(*given))
        os.kill(os.getpid(), signal.SIGKILL)

    image_cache.read_images = read_a_block
    return decode_folder(args)


def kill_after_a_block(tmp_path: Path) -> None:
    process = Started(decode_a_block, [str(tmp_path / "cache"), str(tmp_path / "photos")])
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "cache" / "manifest.jsonl").read_text().count("\n") == 1 + CHUNK_IMAGES


def test_a_killed_decoding_goes_on_and_two_at_once_make_one_cache(tmp_path: Path) -> None:
    files = noise(tmp_path)
    kill_after_a_block(tmp_path)
    with pytest.raises(UserError, match="no complete cache"):
        open_cache(tmp_path / "cache")
    with lock_folder(tmp_path / "cache", ""):  # until both are waiting
        both = [start(tmp_path), start(tmp_path)]
        for process in both:
            wait_for(
                process,
                lambda process=process: "another process is decoding" in process.printed()[0],
            )
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    out = "".join(text for text, _ in said)
    assert (
        out.count("512 of 600 images are decoded already") == 1
        and out.count("decoded 600 images") == 1
    )
    images = open_cache(tmp_path / "cache")[0].images
    assert len(images) == 600 and bool(
        (images == read_image(tmp_path / "photos" / files[0], 48)).all()
    )


@pytest.mark.slow("decodes 600 images; what changes without a kill is a quick test")
def test_what_changed_after_a_kill_is_not_taken_for_decoded(tmp_path: Path) -> None:
    files = noise(tmp_path)
    kill_after_a_block(tmp_path)
    (tmp_path / "photos" / files[5]).unlink()
    picture().save(tmp_path / "photos" / files[5])
    decode_images(tmp_path / "cache", tmp_path / "photos", files, 48, facts(files))
    images = open_cache(tmp_path / "cache")[0].images
    assert torch.equal(images[5], read_image(tmp_path / "photos" / files[5], 48))


@pytest.mark.parametrize(
    "damage", ["cut short", "gone", "manifest is empty", "manifest is nonsense"]
)
def test_a_damaged_cache_is_noticed_and_made_anew(damage: str, tmp_path: Path, said: Said) -> None:
    files = photos(tmp_path / "photos", 30)
    good = decode(tmp_path, files).clone()
    images, manifest = (tmp_path / "cache" / name for name in FILES)
    if damage == "cut short":
        os.truncate(images, images.stat().st_size - 100)
    elif damage == "gone":
        images.unlink()
    else:
        manifest.write_bytes(b"" if damage == "manifest is empty" else b"hello\n")
    said()
    with pytest.raises(UserError, match="no complete cache"):
        open_cache(tmp_path / "cache")
    assert torch.equal(decode(tmp_path, files), good) and "decoded 30 images" in said()
    assert torch.equal(decode(tmp_path, files), good) and said() == ""


def test_a_line_that_was_cut_off_is_decoded_again(tmp_path: Path, said: Said) -> None:
    files = photos(tmp_path / "photos", 30)
    good, manifest = decode(tmp_path, files).clone(), tmp_path / "cache" / "manifest.jsonl"
    whole = manifest.read_text()
    os.truncate(manifest, len(whole) - 100)  # one line and a part of another
    said()
    assert (
        torch.equal(decode(tmp_path, files), good)
        and "28 of 30 images are decoded already" in said()
    )
    assert manifest.read_text() == whole


def test_without_room_nothing_is_begun_and_one_line_says_what_is_missing(tmp_path: Path) -> None:
    files = photos(tmp_path / "photos", 3)
    with pytest.raises(UserError, match=r"take 8381.9 GiB.*--cache-dir"):
        decode(tmp_path, files, 1_000_000)
    assert not os.listdir(tmp_path / "cache")


def decode_without_room(args: list[str]) -> int:
    """The same, where no file may grow beyond 1 MB; prints the error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    with pytest.raises(UserError) as error:
        decode_folder(args)
    print(error.value)
    return 0


def test_a_disk_that_fills_up_is_answered_in_one_line(tmp_path: Path) -> None:
    noise(tmp_path, 300)
    process = Started(decode_without_room, [str(tmp_path / "cache"), str(tmp_path / "photos")])
    out, err = process.communicate()
    assert (
        process.returncode == 0 and "File too large: mend that, or give another --cache-dir" in out
    ), out + err
