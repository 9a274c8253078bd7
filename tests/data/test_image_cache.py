"""simsiam/data/image_cache.py and memmap_images.py: decoded once, whole or noticed, and read without being held."""

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam.data.datamodule import EpochSampler
from simsiam.data.image_cache import BLOCK, open_cache
from simsiam.data.image_cache import decode as decode_into
from simsiam.data.images import ImageFolder, read_image
from simsiam.data.memmap_images import MemmapImages
from simsiam.data.read_ahead import ReadAhead
from tests.helpers import Started, bad_folder, picture, wait_for
from utils.errors import UserError


def photos(folder: Path, n: int) -> list[Path]:
    """n different images, as many files as that."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [Path(f"{i:04d}.png") for i in range(n)]
    for i, file in enumerate(files):
        Image.new("RGB", (10, 10), (i % 256, i // 256, 7)).save(folder / file)
    return files


def decode(tmp_path: Path, files: list[Path], side: int = 8) -> torch.Tensor:
    decode_into(tmp_path / "cache", tmp_path / "photos", files, side, {"x": 1})
    return open_cache(tmp_path / "cache").images[:]


def expected(tmp_path: Path, files: list[Path], side: int = 8) -> torch.Tensor:
    return torch.stack([read_image(tmp_path / "photos" / file, side) for file in files])


def pixels(cache: Path) -> list[Path]:
    return sorted(cache.glob("images-*.u8"))


Said = Callable[[], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return lambda: capsys.readouterr().out


# ---------------------------------------------------------------- decoded once


def test_images_are_those_of_their_files_and_are_decoded_once(tmp_path: Path, said: Said) -> None:
    files = photos(tmp_path / "photos", BLOCK + 44)
    assert torch.equal(decode(tmp_path, files), expected(tmp_path, files))
    assert f"decoded {len(files)} images" in said()
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    decode(tmp_path, files)
    assert said() == "" and before == {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    assert sorted(before) == [pixels(tmp_path / "cache")[0].name, "index.jsonl"]


def test_the_index_says_what_each_image_is_of(tmp_path: Path) -> None:
    import hashlib

    files = photos(tmp_path / "photos", 3)
    decode(tmp_path, files)
    lines = [json.loads(line) for line in (tmp_path / "cache" / "index.jsonl").read_text().splitlines()]
    assert lines[0]["side"] == 8 and lines[0]["about"] == {"x": 1} and "finished" in lines[-1]
    path, size, changed, sha256, why = lines[1]["sources"][2]
    file = tmp_path / "photos" / files[2]
    state = file.stat()
    assert (path, size, changed, why) == ("0002.png", state.st_size, state.st_mtime_ns, None)
    assert sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("change", ["one is another", "one is new", "one is gone", "touched", "another side"])
def test_what_changes_is_decoded_anew_and_the_rest_is_taken_over(change: str, tmp_path: Path, said: Said) -> None:
    files = photos(tmp_path / "photos", 20)
    old = decode(tmp_path, files)
    side, spoilt = 8, tmp_path / "photos" / files[3]
    if change == "one is another":
        picture().save(spoilt)
    elif change == "one is new":
        picture().save(tmp_path / "photos" / "0001b.png")
        files = sorted([*files, Path("0001b.png")])
    elif change == "one is gone":
        spoilt.unlink()
        files.remove(Path(spoilt.name))
    elif change == "touched":
        os.utime(spoilt, ns=(1, 1))
    else:
        side = 6
    other = set(files) - {Path(spoilt.name), Path("0001b.png")}
    if change != "another side":  # whoever decoded these again would find that they cannot be
        for file in other:
            state = (tmp_path / "photos" / file).stat()
            (tmp_path / "photos" / file).write_bytes(b"x" * state.st_size)
            os.utime(tmp_path / "photos" / file, ns=(state.st_atime_ns, state.st_mtime_ns))
    new = decode(tmp_path, files, side)
    assert new.shape == (len(files), 3, side, side) and "decoded" in said()
    if change == "touched":
        assert torch.equal(new, old)
    assert len(pixels(tmp_path / "cache")) == 1 and not open_cache(tmp_path / "cache").bad


def test_bad_images_are_listed_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    bad = bad_folder(tmp_path / "photos")
    files = [Path(name) for name in sorted([*bad, "good.png"])]
    assert decode(tmp_path, files).shape == (1, 3, 8, 8)
    cache = open_cache(tmp_path / "cache")
    assert cache.good == [files.index(Path("good.png"))] and len(cache.bad) == len(bad)
    assert all(any(line.startswith(name) and why in line for line in cache.bad) for name, why in bad.items())
    picture().save(tmp_path / "photos" / "nowhere.png")  # what a link dangled for
    assert len(decode(tmp_path, files)) == 2


# ---------------------------------------------------------------- cut off, twice at once, damaged, no room


def decode_folder(args: list[str]) -> int:
    """Decode the images in ARGS[1] into ARGS[0]."""
    folder = ImageFolder(args[1])
    decode_into(Path(args[0]), folder.folder, folder.files, 48, {})
    return 0


def start(tmp_path: Path) -> Started:
    return Started(decode_folder, [str(tmp_path / "cache"), str(tmp_path / "photos")])


def noise(tmp_path: Path, n: int = 1500) -> list[Path]:
    """Images that take a while, for a moment in between to be found."""
    (tmp_path / "photos").mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    image.save(tmp_path / "photos" / "0000.png", compress_level=1)
    for i in range(1, n):
        os.link(tmp_path / "photos" / "0000.png", tmp_path / "photos" / f"{i:04d}.png")
    return [Path(f"{i:04d}.png") for i in range(n)]


def wait_for_blocks(cache: Path, process: Started, blocks: int) -> None:
    journal = cache / "building.jsonl"
    wait_for(process, lambda: journal.exists() and len(journal.read_bytes().splitlines()) > blocks)


def test_killed_in_the_middle_it_goes_on_and_two_at_once_make_one_cache(tmp_path: Path) -> None:
    files = noise(tmp_path)
    process = start(tmp_path)
    wait_for_blocks(tmp_path / "cache", process, 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with open(tmp_path / "cache" / "building.jsonl", "ab") as journal:
        journal.write(b'{"crc32": 1')  # as if it had been killed in a line
    both = [start(tmp_path), start(tmp_path)]
    said = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    out = "".join(text for text, _ in said)
    assert out.count("images are decoded already") == 1 and out.count("decoded 1,500 images") == 1
    assert out.count("another process is decoding") == 1
    cache = open_cache(tmp_path / "cache")
    one = read_image(tmp_path / "photos" / files[0], 48)
    assert len(cache.images) == 1500 and bool((cache.images[:] == one).all()) and len(pixels(tmp_path / "cache")) == 1


@pytest.mark.slow("decodes 1,500 images; what changes without a kill is a quick test")
def test_what_changed_after_a_kill_is_not_taken_for_decoded(tmp_path: Path) -> None:
    files = noise(tmp_path)
    process = start(tmp_path)
    wait_for_blocks(tmp_path / "cache", process, 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (tmp_path / "photos" / files[5]).unlink()
    picture().save(tmp_path / "photos" / files[5])
    decode_into(tmp_path / "cache", tmp_path / "photos", files, 48, {})
    images = open_cache(tmp_path / "cache").images
    assert torch.equal(images[5:6][0], read_image(tmp_path / "photos" / files[5], 48))


@pytest.mark.parametrize("damage", ["a bit", "cut short", "gone", "longer", "index cut short", "index is nonsense"])
def test_a_damaged_cache_is_noticed_and_mended(damage: str, tmp_path: Path, said: Said) -> None:
    files = photos(tmp_path / "photos", BLOCK + 10)
    good = decode(tmp_path, files)
    file, index = pixels(tmp_path / "cache")[0], tmp_path / "cache" / "index.jsonl"
    content = bytearray(file.read_bytes())
    if damage == "a bit":
        content[1000] ^= 1
        file.write_bytes(content)
    elif damage == "cut short":
        file.write_bytes(content[:-100])
    elif damage == "longer":
        file.write_bytes(content + b"more")
    elif damage == "gone":
        file.unlink()
    else:
        text = index.read_bytes()
        index.write_bytes(text[: len(text) // 2] if damage == "index cut short" else b"\0\1\2")
    said()
    assert torch.equal(decode(tmp_path, files), good)
    assert len(pixels(tmp_path / "cache")) == 1
    if damage not in ("index is nonsense", "longer"):
        assert said().count("is damaged") == 1
    said()
    assert torch.equal(decode(tmp_path, files), good) and said() == ""


def test_without_room_nothing_is_begun_and_one_line_says_what_is_missing(tmp_path: Path) -> None:
    files = photos(tmp_path / "photos", 3)
    with pytest.raises(UserError, match=r"take 8381.9 GiB more.*--cache-dir"):
        decode(tmp_path, files, 1_000_000)
    assert not pixels(tmp_path / "cache")


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
    assert process.returncode == 0 and "File too large: mend that, or give another --cache-dir" in out, out + err


# ---------------------------------------------------------------- images on disk


@pytest.fixture
def stored(tmp_path: Path) -> tuple[MemmapImages, torch.Tensor]:
    images = torch.randint(0, 256, (50, 3, 6, 6), dtype=torch.uint8)
    (tmp_path / "a.u8").write_bytes(images.numpy().tobytes())
    return MemmapImages(tmp_path / "a.u8", 6, 50), images


def test_stored_images_are_taken_as_those_of_a_tensor(stored: tuple[MemmapImages, torch.Tensor]) -> None:
    disk, images = stored
    places = torch.tensor([7, 0, 49, 7, 3])
    assert torch.equal(disk[places], images[places]) and torch.equal(disk[3:9], images[3:9])
    assert torch.equal(disk[::7], images[::7]) and torch.equal(disk[-5:], images[-5:]) and len(disk[60:]) == 0
    assert tuple(disk.shape) == images.shape and len(disk) == 50 and disk.nbytes == images.nbytes
    assert all(torch.equal(a, b) for a, b in zip(disk.split(16), images.split(16), strict=True))
    part = disk.part(10, 30).part(5, 100)
    assert torch.equal(part[:], images[15:30]) and torch.equal(part[torch.tensor([14])], images[29:30])
    assert torch.equal(disk.resident(torch.device("cpu")), images) and disk.to(torch.device("cpu")) is disk
    with pytest.raises(IndexError):
        part[torch.tensor([15])]


def order(n: int, done: int = 0) -> EpochSampler:
    return EpochSampler(n, 8, seed=0, epoch=lambda: 0, device=torch.device("cpu"), done=lambda: done)


def test_read_ahead_gives_each_batch_with_its_images(stored: tuple[MemmapImages, torch.Tensor]) -> None:
    disk, images = stored
    for source in (disk, images):
        for done in (0, 2):
            reader = ReadAhead(order(50, done), source, pin=False)
            for _ in range(2):
                batches = list(reader)
                assert [b.tolist() for b, _ in batches] == [b.tolist() for b in order(50, done)]
                assert all(torch.equal(pixels, images[b]) for b, pixels in batches)
            assert reader.thread is not None and not reader.thread.is_alive()


def test_a_reader_that_nobody_listens_to_ends(stored: tuple[MemmapImages, torch.Tensor]) -> None:
    reader = ReadAhead(order(50), stored[0], pin=False)
    next(iter(reader))
    thread = reader.thread
    reader.close()
    assert thread is not None and not thread.is_alive()


def test_an_error_of_the_disk_reaches_who_waits(stored: tuple[MemmapImages, torch.Tensor]) -> None:
    disk, _ = stored
    os.truncate(disk.file, 1000)
    with pytest.raises(OSError, match="shorter"):
        list(ReadAhead(order(50), disk, pin=False))


def test_what_is_done_is_asked_when_the_first_batch_is_waited_for(stored: tuple[MemmapImages, torch.Tensor]) -> None:
    """A Trainer makes its iterator before it has taken up a run's state."""
    done = [0]
    one = EpochSampler(50, 8, seed=0, epoch=lambda: 0, device=torch.device("cpu"), done=lambda: done[0])
    batches = iter(ReadAhead(one, stored[0], pin=False))
    done[0] = 4
    assert [b.tolist() for b, _ in batches] == [b.tolist() for b in order(50, 4)]
