"""files/image_cache.py: decoding that is killed, damaged, concurrent or without space."""

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam.data.files import image_cache
from simsiam.data.files.reading import CHUNK_IMAGES, read_image
from simsiam.data.listing.folder import ImageFolder
from tests.data.files.decoding import FILES, Printed, decode, decode_all, photos, read_cache
from tests.images import smooth_image
from tests.processes import Started, wait_for
from utils.errors import UserError
from utils.filesystem import lock_folder


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    return lambda: capsys.readouterr().out


def decode_folder(args: list[str]) -> int:
    """Decode the images in ARGS[1] into ARGS[0]."""
    folder = ImageFolder(args[1])
    decode_all(Path(args[0]), folder.root, folder.files, 48)
    return 0


def start(tmp_path: Path) -> Started:
    """Start a process that decodes photos/ into cache/."""
    return Started(decode_folder, [str(tmp_path / "cache"), str(tmp_path / "photos")])


def noise(tmp_path: Path, n: int = 600) -> list[Path]:
    """Make n files of the same noisy image. 600 are more than a chunk (`CHUNK_IMAGES`)."""
    (tmp_path / "photos").mkdir()
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    )
    image.save(tmp_path / "photos" / "0000.png", compress_level=1)
    for i in range(1, n):
        os.link(tmp_path / "photos" / "0000.png", tmp_path / "photos" / f"{i:04d}.png")
    return [Path(f"{i:04d}.png") for i in range(n)]


def decode_a_chunk(args: list[str]) -> int:
    """Decode images as `decode_folder` does, but kill this process before the second chunk."""
    read_all_chunks = image_cache.read_images

    def read_one_chunk(*arguments: Any) -> Iterator[Any]:
        yield next(read_all_chunks(*arguments))
        os.kill(os.getpid(), signal.SIGKILL)

    image_cache.read_images = read_one_chunk
    return decode_folder(args)


def kill_after_a_chunk(tmp_path: Path) -> None:
    process = Started(decode_a_chunk, [str(tmp_path / "cache"), str(tmp_path / "photos")])
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "cache" / "index.jsonl").read_text().count("\n") == 1 + CHUNK_IMAGES


def test_killed_decoding_resumes_in_one_of_two_processes(tmp_path: Path) -> None:
    files = noise(tmp_path)
    kill_after_a_chunk(tmp_path)
    with pytest.raises(UserError, match="no complete cache"):
        read_cache(tmp_path / "cache", files)
    with lock_folder(tmp_path / "cache", ""):  # Release it when both processes wait for it.
        both = [start(tmp_path), start(tmp_path)]
        for process in both:
            wait_for(process, lambda process=process: "Waiting for" in process.printed()[0])
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    out = "".join(text for text, _ in outputs)
    assert out.count("512 of 600 images are already decoded") == 1
    assert out.count("decoded 600 images") == 1
    images = read_cache(tmp_path / "cache", files)
    expected = read_image(tmp_path / "photos" / files[0], 48)
    assert len(images) == 600 and bool((images == expected).all())


@pytest.mark.slow("decodes 600 images; a change without a kill is a quick test")
def test_a_file_changed_after_a_kill_is_decoded_again(tmp_path: Path) -> None:
    files = noise(tmp_path)
    kill_after_a_chunk(tmp_path)
    (tmp_path / "photos" / files[5]).unlink()
    smooth_image().save(tmp_path / "photos" / files[5])
    decode_all(tmp_path / "cache", tmp_path / "photos", files, 48)
    images = read_cache(tmp_path / "cache", files)
    assert torch.equal(images[5], read_image(tmp_path / "photos" / files[5], 48))


@pytest.mark.parametrize("damage", ["cut short", "gone", "index is empty", "index is nonsense"])
def test_a_damaged_cache_is_decoded_again(damage: str, tmp_path: Path, printed: Printed) -> None:
    files = photos(tmp_path / "photos", 30)
    good = decode(tmp_path, files).clone()
    images, index, _ = (tmp_path / "cache" / name for name in FILES)
    if damage == "cut short":
        os.truncate(images, images.stat().st_size - 100)
    elif damage == "gone":
        images.unlink()
    else:
        index.write_bytes(b"" if damage == "index is empty" else b"hello\n")
    printed()
    with pytest.raises(UserError, match="no complete cache"):
        read_cache(tmp_path / "cache", files)
    assert torch.equal(decode(tmp_path, files), good) and "decoded 30 images" in printed()
    assert torch.equal(decode(tmp_path, files), good) and printed() == ""


def test_a_line_that_was_cut_off_is_decoded_again(tmp_path: Path, printed: Printed) -> None:
    files = photos(tmp_path / "photos", 30)
    good = decode(tmp_path, files).clone()
    index = tmp_path / "cache" / "index.jsonl"
    complete = index.read_text()
    os.truncate(index, len(complete) - 100)  # a part of the last line is missing
    printed()
    assert torch.equal(decode(tmp_path, files), good)
    assert "29 of 30 images are already decoded" in printed()
    assert index.read_text() == complete


def test_a_full_disk_is_noticed_before_decoding(tmp_path: Path) -> None:
    files = photos(tmp_path / "photos", 3)
    with pytest.raises(UserError, match=r"take 8381.9 GiB.*--cache-dir"):
        decode(tmp_path, files, 1_000_000)
    assert not os.listdir(tmp_path / "cache")


def decode_without_room(args: list[str]) -> int:
    """Decode images as `decode_folder` does, with files of at most 1 MB. Print the error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    with pytest.raises(UserError) as error:
        decode_folder(args)
    print(error.value)
    return 0


def test_a_disk_that_fills_up_is_reported_in_one_line(tmp_path: Path) -> None:
    noise(tmp_path, 300)
    process = Started(decode_without_room, [str(tmp_path / "cache"), str(tmp_path / "photos")])
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "File too large. Fix the cause, pass another --cache-dir" in out
