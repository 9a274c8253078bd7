"""simsiam/data/cifar.py on the real CIFAR-10."""

import functools
import hashlib
import http.server
import os
import pickle
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10

from simsiam.config.options import DataOptions
from simsiam.data import cifar, load_dataset, prepare_dataset
from simsiam.data.cifar import read_plain_pickle
from simsiam.data.dataset import channel_statistics
from tests.images import CIFAR_FOLDER, link_cifar10
from utils.errors import UserError


def test_cifar10_is_what_torchvision_reads(cifar10_dir: Path) -> None:
    train, test = load_dataset(DataOptions("cifar10", str(cifar10_dir), test_images=1000))
    theirs = CIFAR10(str(cifar10_dir), train=True)
    assert train.images.shape == (50_000, 3, 32, 32) and train.images.dtype == torch.uint8
    assert torch.equal(train.images[:100], torch.from_numpy(theirs.data[:100]).permute(0, 3, 1, 2))
    assert train.labels.tolist() == theirs.targets and train.classes == tuple(theirs.classes)
    assert len(test) == 1000


def test_statistics_are_those_of_all_pixels(cifar10_dir: Path) -> None:
    mean, std = channel_statistics(load_dataset(DataOptions("cifar10", str(cifar10_dir)))[0].images)
    assert mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-4)
    assert std == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-4)


def test_a_missing_file_is_named_with_the_remedies(cifar10_dir: Path, tmp_path: Path) -> None:
    root = link_cifar10(cifar10_dir, tmp_path / "data", without=("data_batch_3",))
    with pytest.raises(UserError) as error:
        prepare_dataset(
            DataOptions("cifar10", str(root), "http://127.0.0.1:9/nothing-there.tar.gz")
        )
    message = str(error.value)
    remedies = ("127.0.0.1:9", "--data-url", "--dataset patterns", str(root))
    for part in ("data_batch_3 is missing", *remedies):
        assert part in message
    assert "\n" not in message
    assert os.listdir(root) == [CIFAR_FOLDER]
    assert len(list((root / CIFAR_FOLDER).iterdir())) == 6


def damage(cifar10_dir: Path, root: Path, missing: tuple[str, ...] = ()) -> Path:
    """Link all files into `root`, except for some. Return a changed copy of data_batch_2 there."""
    link_cifar10(cifar10_dir, root, without=("data_batch_2", *missing))
    content = bytearray((cifar10_dir / CIFAR_FOLDER / "data_batch_2").read_bytes())
    content[1_000_000] ^= 1
    (root / CIFAR_FOLDER / "data_batch_2").write_bytes(content)
    return root / CIFAR_FOLDER / "data_batch_2"


def test_a_damaged_file_is_named_and_left_alone(cifar10_dir: Path, tmp_path: Path) -> None:
    file = damage(cifar10_dir, tmp_path / "data")
    content = file.read_bytes()
    with pytest.raises(UserError, match="data_batch_2 is damaged"):
        load_dataset(DataOptions("cifar10", str(tmp_path / "data")))
    assert file.read_bytes() == content


def test_nothing_is_downloaded_next_to_a_damaged_file(cifar10_dir: Path, tmp_path: Path) -> None:
    file = damage(cifar10_dir, tmp_path / "data", missing=("data_batch_5",))
    options = DataOptions("cifar10", str(tmp_path / "data"), "http://127.0.0.1:9/nothing.tar.gz")
    with pytest.raises(UserError, match="data_batch_2 is damaged"):
        prepare_dataset(options)
    assert len(list(file.parent.iterdir())) == 6


def test_each_file_is_read_once_and_unpickled_only_with_its_published_checksum(
    cifar10_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    unpickled: list[str] = []
    read_bytes = Path.read_bytes

    def count(path: Path) -> bytes:
        read.append(path.name)
        return read_bytes(path)

    def record(content: bytes) -> object:
        unpickled.append(hashlib.md5(content).hexdigest())
        return read_plain_pickle(content)

    def fail(*_: object) -> bool:
        raise AssertionError("a file is hashed a second time")

    monkeypatch.setattr(Path, "read_bytes", count)
    monkeypatch.setattr(cifar, "read_plain_pickle", record)
    monkeypatch.setattr(cifar, "check_integrity", fail)
    options = DataOptions("cifar10", str(cifar10_dir))
    prepare_dataset(options)
    load_dataset(options)
    published = [CIFAR10.meta["md5"]]
    published += [md5 for _, md5 in (*CIFAR10.train_list, *CIFAR10.test_list)]
    assert sorted(unpickled) == sorted(published) and len(read) == len(set(read)) == 7

    unpickled.clear()
    damaged = damage(cifar10_dir, tmp_path / "data")
    with pytest.raises(UserError, match="is damaged"):
        load_dataset(DataOptions("cifar10", str(tmp_path / "data")))
    assert damaged.name in read and set(unpickled) < set(published)


def test_a_failed_download_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data_batch_1 is missing"):
        prepare_dataset(
            DataOptions("cifar10", str(tmp_path / "new"), "http://127.0.0.1:9/nothing-there.tar.gz")
        )
    assert not (tmp_path / "new").exists()


@pytest.fixture
def mirror(
    cifar10_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, list[str]]]:
    """Serve the real files on this machine, with the archive's checksum as the published one."""
    archive = tmp_path / "mirror" / CIFAR10.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz", compresslevel=0) as tar:
        tar.add(cifar10_dir / CIFAR_FOLDER, CIFAR_FOLDER)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            requests.append(self.command)

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(archive.parent))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{archive.name}", requests
    server.shutdown()
    server.server_close()


@pytest.mark.slow("moves 160 MB; one download is a quick test")
def test_two_processes_download_once(mirror: tuple[str, list[str]], tmp_path: Path) -> None:
    url, requests = mirror
    root = tmp_path / "data"
    prepare_dataset(DataOptions("cifar10", str(tmp_path / "alone"), url))
    once = len(requests)
    threads = [
        threading.Thread(target=prepare_dataset, args=(DataOptions("cifar10", str(root), url),))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(requests) == 2 * once
    assert os.listdir(root) == [CIFAR_FOLDER]
    train, _ = load_dataset(DataOptions("cifar10", str(root)))
    assert len(train) == 50_000


def test_an_archive_with_another_checksum_is_refused(
    mirror: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, _ = mirror
    archive = tmp_path / "mirror" / CIFAR10.filename
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="download failed"):
        prepare_dataset(DataOptions("cifar10", str(tmp_path / "data"), url))
    assert not (tmp_path / "data").exists()


@pytest.mark.slow("moves 160 MB; bad archives are quick tests")
def test_an_archive_writes_only_published_files(
    mirror: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = mirror
    archive, evil = tmp_path / "mirror" / CIFAR10.filename, tmp_path / "evil.txt"
    evil.write_text("evil")
    with (
        tarfile.open(archive, "r:gz") as old,
        tarfile.open(tmp_path / "new.tgz", "w:gz", compresslevel=0) as new,
    ):
        for name in (
            "../evil.txt",
            "../../evil.txt",
            str(tmp_path / "data" / "evil.txt"),
            f"{CIFAR_FOLDER}/evil.txt",
        ):
            new.add(evil, name)
        for member in old.getmembers():
            new.addfile(member, old.extractfile(member))
    evil.unlink()
    os.replace(tmp_path / "new.tgz", archive)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    prepare_dataset(DataOptions("cifar10", str(tmp_path / "data"), url))
    assert not list(tmp_path.rglob("evil.txt"))
    assert len(list((tmp_path / "data" / CIFAR_FOLDER).iterdir())) == 7


def test_a_download_leaves_only_the_published_files(
    mirror: tuple[str, list[str]], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    prepare_dataset(DataOptions("cifar10", str(root), mirror[0]))
    assert os.listdir(root) == [CIFAR_FOLDER] and len(list((root / CIFAR_FOLDER).iterdir())) == 7


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_of_plain_data_is_read(protocol: int) -> None:
    content = {"labels": [1, 2], "name": "x", "more": (1.5, None, b"y")}
    if protocol < 3:
        content.pop("more")  # today's Python pickles bytes with a function that is refused here
    assert read_plain_pickle(pickle.dumps(content, protocol)) == content


def test_more_images_than_there_are_is_an_error(cifar10_dir: Path) -> None:
    with pytest.raises(UserError, match="has 10000"):
        load_dataset(DataOptions("cifar10", str(cifar10_dir), test_images=10_001))
