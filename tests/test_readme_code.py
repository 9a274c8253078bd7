"""The code in README.md and docs/ runs, for each kind of network that it is meant for."""

import shlex
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simsiam.evaluation.checkpoint import load_checkpoint
from tests.helpers import Program
from tests.images import patterns, write_images
from tests.pages import CODE, OTHER_COMMANDS, make_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the run `runs/simsiam_cifar10` of a narrow network, and photos."""
    folder = tmp_path_factory.mktemp("readme")
    return make_run(folder, "--width 4 --train-images 100 --batch-size 50")


@pytest.fixture(scope="module")
def full_width(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return such a folder with the default backbone, for code that needs its shapes."""
    folder = tmp_path_factory.mktemp("wide")
    return make_run(folder, "--train-images 20 --batch-size 10 --knn-every 0")


@pytest.fixture(scope="module")
def imagenet_stem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return such a folder with the default backbone for views of 96 pixels."""
    folder = tmp_path_factory.mktemp("imagenet_stem")
    write_images(folder / "images", patterns(20))
    write_images(folder / "images", patterns(20, split=1), split="val")
    data = ["--dataset", "folder", "--data-dir", str(folder / "images")]
    cache = ["--cache-dir", str(folder / "cache")]
    flags = "--image-size 96 --train-images 20 --batch-size 10 --knn-every 0"
    return make_run(folder, flags, *data, *cache)


# A file that code reads -> the beginning of the command that writes it.
WRITTEN_BY = {
    "runs/simsiam_cifar10/results/linear/head.safetensors": "linear ",
    "features.npz": "embed ",
}


def find_command(beginning: str, file: str) -> str:
    """Return the command that names the file, or else the first command with this beginning."""
    matching = [flags for flags in OTHER_COMMANDS if flags.startswith(beginning)]
    naming = [flags for flags in matching if file in flags]
    return (naming or matching)[0]


def run_code(
    code: str, run: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Run a block of code in a copy of the folder `run`, and return the code's variables."""
    # The code gets a copy, so that it does not see what the commands have written.
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for file, beginning in WRITTEN_BY.items():
        if file in code and not Path(file).exists():
            status, _, err = program(*shlex.split(find_command(beginning, file)))
            assert status == 0, err

    variables: dict[str, Any] = {}
    with warnings.catch_warnings():
        if "pl.Trainer" in code:
            warnings.simplefilter("ignore")  # Lightning's advice
        exec(code, variables)
    return variables


@pytest.mark.parametrize("code", CODE)
def test_each_block_of_python_runs(
    code: str,
    trained: Path,
    full_width: Path,
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = full_width if "resnet18" in code else trained
    code = code.replace("train_images=1000, test_images=200", "train_images=100, test_images=50")
    run_code(code, run, program, tmp_path, monkeypatch)


CODE_FOR_A_PHOTO = [code for code in CODE if "photo.jpg" in code]
CODE_FOR_TIMM = [
    "import timm\n" + code.replace("torchvision.models.resnet18()  # or ", "")
    for code in CODE_FOR_A_PHOTO
    if "# or timm" in code
]


def test_code_for_a_photo_is_shown() -> None:
    assert len(CODE_FOR_A_PHOTO) == 2
    assert len(CODE_FOR_TIMM) == 1


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize(
    "code", [*CODE_FOR_A_PHOTO, *CODE_FOR_TIMM], ids=["linear", "torchvision", "timm"]
)
def test_code_for_a_photo_gives_the_features_of_embed_for_both_stems(
    code: str,
    stem: str,
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    run = request.getfixturevalue({"cifar": "full_width", "imagenet": "imagenet_stem"}[stem])
    variables = run_code(code, run, program, tmp_path, monkeypatch)
    embed = ["embed", "runs/simsiam_cifar10", "--images", "photos", "--output", "photo.npz"]
    assert program(*embed)[0] == 0
    embedded = np.load("photo.npz")["features"]
    metadata = load_checkpoint("runs/simsiam_cifar10").metadata
    assert metadata.stem == stem
    assert metadata.image_size == {"cifar": 32, "imagenet": 96}[stem]
    if "features" in variables:
        features = variables["features"].detach().numpy()
    else:
        features = variables["backbone"](variables["x"]).detach().numpy()
    np.testing.assert_allclose(features, embedded, atol=1e-5 * embedded.max(), rtol=1e-5)
