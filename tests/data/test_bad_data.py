"""Damaged and hostile files of CIFAR-10 are refused in one line. None of their code is run."""

import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from simsiam.config.options import DataOptions
from simsiam.data import load_dataset
from tests.helpers import SMALL, Program, prints_only_header
from tests.images import CIFAR_FOLDER, PAGE, Bomb, flip_bit, link_cifar10
from utils.errors import UserError

NOT_PUBLISHED = "data_batch_2 is damaged (its MD5 is not the published one)"

# For each case, a function from the published content to a damaged one, and the message.
BATCHES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda raw: b"", NOT_PUBLISHED),
    "cut short": (lambda raw: raw[:-1], NOT_PUBLISHED),
    "a flipped bit": (lambda raw: flip_bit(raw, 1_000_000), NOT_PUBLISHED),
    "a page": (lambda raw: PAGE, NOT_PUBLISHED),
    "a bomb": (lambda raw: pickle.dumps(Bomb()), NOT_PUBLISHED),
}

# For each case, a function that makes the content of a batch file, and the message.
FORGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "a bomb": (lambda: pickle.dumps(Bomb()), "names posix.system, which is not plain data"),
    "a bomb among images": (
        lambda: pickle.dumps({"data": np.zeros(3), "labels": Bomb()}),
        "not plain data",
    ),
    "an array of objects": (
        lambda: pickle.dumps({"data": np.array([Bomb()], dtype=object)}),
        "not plain data",
    ),
    "a function by name": (lambda: b"cbuiltins\neval\n.", "not plain data"),
    "a module": (lambda: b"cos\nsystem\n(S'touch HACKED'\ntR.", "not plain data"),
    "other names": (lambda: pickle.dumps({"pixels": 1}), "not readable"),
    "a list": (lambda: pickle.dumps([1, 2]), "not readable"),
    "no pickle": (lambda: PAGE, "not readable"),
    "cut short": (lambda: pickle.dumps({"data": np.zeros(999)})[:-20], "not readable"),
}


@pytest.mark.parametrize("case", BATCHES)
def test_a_bad_batch(
    case: str, cifar10_dir: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = link_cifar10(cifar10_dir, tmp_path / "data", without=("data_batch_2",))
    damage, message = BATCHES[case]
    content = damage((cifar10_dir / CIFAR_FOLDER / "data_batch_2").read_bytes())
    (root / CIFAR_FOLDER / "data_batch_2").write_bytes(content)
    status, out, err = program(*SMALL, "--dataset", "cifar10", "--data-dir", "data")
    assert status == 2 and prints_only_header(out) and err.count("\n") == 1 and message in err
    assert (root / CIFAR_FOLDER / "data_batch_2").read_bytes() == content
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize("case", FORGED)
def test_a_batch_with_a_forged_md5_runs_no_code(
    case: str, cifar10_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = link_cifar10(cifar10_dir, tmp_path / "data", without=("data_batch_2",))
    make, message = FORGED[case]
    (root / CIFAR_FOLDER / "data_batch_2").write_bytes(make())
    md5 = hashlib.md5(make()).hexdigest()  # as if somebody had found a collision
    files = dict(CIFAR10.train_list) | {"data_batch_2": md5}
    monkeypatch.setattr(CIFAR10, "train_list", list(map(list, files.items())))
    with pytest.raises(UserError) as error:
        load_dataset(DataOptions("cifar10", "data"))
    assert message in str(error.value) and os.listdir(tmp_path) == ["data"]


def archive(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    """Return a .tar.gz. Its members are files with some content, or links."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=0) as tar:
        for name, member in members.items():
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
    return buffer.getvalue()


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.SYMTYPE
    info.linkname = target
    return info


# For each case, a function that makes the archive, and the message.
ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the download failed"),
    "a page": (lambda: PAGE, "the download failed"),
    "cut short": (lambda: archive({"a": bytes(10**5)})[:5000], "the download failed"),
    "a path upwards": (
        lambda: archive({"../evil": b"evil", f"{CIFAR_FOLDER}/../../evil": b"evil"}),
        "the download failed",
    ),
    "an absolute path": (lambda: archive({"/tmp/evil_of_simsiam": b"evil"}), "the download failed"),
    "a link outwards": (
        lambda: archive(
            {CIFAR_FOLDER: link(CIFAR_FOLDER, "/tmp"), f"{CIFAR_FOLDER}/evil_of_simsiam": b"evil"}
        ),
        "the download failed",
    ),
    "a link for a file": (
        lambda: archive({"x": link(f"{CIFAR_FOLDER}/data_batch_1", "/etc/passwd")}),
        "the download failed",
    ),
    "bombs for batches": (
        lambda: archive(
            {f"{CIFAR_FOLDER}/{file}": pickle.dumps(Bomb()) for file, _ in CIFAR10.train_list}
        ),
        "the download failed",
    ),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_a_bad_archive_with_the_right_checksum(
    case: str, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is a local file, as the message about a failed download recommends."""
    monkeypatch.chdir(tmp_path)
    make, message = ARCHIVES[case]
    (tmp_path / "archive").write_bytes(make())
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(make()).hexdigest())
    url = (tmp_path / "archive").as_uri()
    flags = ["--dataset", "cifar10", "--data-dir", "data", "--data-url", url]
    status, out, err = program(*SMALL, *flags)
    assert status == 2 and prints_only_header(out) and err.count("\n") == 1 and message in err, err
    assert not list(tmp_path.rglob("*evil*")) and not Path("/tmp/evil_of_simsiam").exists()
    assert not Path("HACKED").exists() and not (tmp_path / "runs").exists()
