"""simsiam/data/listing/list_file.py: lists of images in a .txt or a .csv."""

import os
from pathlib import Path

import numpy as np
import pytest

from simsiam.config.options import DataOptions
from simsiam.data import load_dataset, prepare_dataset
from simsiam.data.dataset import Splits
from simsiam.data.listing import list_rows
from simsiam.data.listing.list_file import ListFile
from tests.helpers import Program, read_rows
from tests.images import patterns, smooth_image, write_images
from utils.errors import UserError

Printed = pytest.CaptureFixture[str]


def put(folder: Path, *names: str) -> None:
    """Save an image under each of these names. Each is another one."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        smooth_image((8, 9 + i)).save(folder / name, "PNG")


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path: Path) -> ListFile:
    return ListFile(path, "--data-dir")


def load(path: Path, **options: object) -> Splits:
    """Decode the images of a list and load them."""
    cache = path.parent / "cache"
    all_options = DataOptions("folder", path, image_size=8, cache_dir=cache, **options)
    prepare_dataset(all_options)
    return load_dataset(all_options)


# ---------------------------------------------------------------- paths in a .txt


def test_a_txt_is_a_list_of_relative_and_absolute_paths(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "sub/a b.png", "sub/no suffix", "list/x.png")
    text = f"../b.png\r\n\n# a comment\n{tmp_path}/sub/a b.png\n  ./x.png \n../sub/no suffix"
    images = read(write(tmp_path / "list" / "l.txt", text))
    assert [(images.root / file).exists() for file in images.files] == [True] * 4
    assert images.files[2] == "x.png"
    assert images.classes == () and images.labels.tolist() == [-1] * 4
    # The images are those of the files, in the order of the list.
    train, test = load(images.source)
    pixels = [Path(images.root / file) for file in images.files]
    assert len(train) == len(pixels) == 4 and len(test) == 0
    options = DataOptions("folder", tmp_path / "sub", image_size=8, cache_dir=tmp_path / "cache")
    prepare_dataset(options)
    assert (load_dataset(options)[0].images[0] == train.images[1]).all()  # "sub/a b.png"


def test_names_may_be_any_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    put(tmp_path, name, "école.png", "x\u2028y.png")
    content = b"\xef\xbb\xbf" + "école.png\n".encode() + b"caf\xe9.png\n" + "x\u2028y.png".encode()
    images = read(write(tmp_path / "l.txt", content))
    assert list(map(Path, images.files)) == [Path("école.png"), Path(name), Path("x\u2028y.png")]
    assert all((tmp_path / file).exists() for file in images.files)


def test_a_list_of_powershell_is_read(tmp_path: Path) -> None:
    put(tmp_path, "é.png", "b.png")
    content = "é.png\r\nb.png\r\n".encode("utf-16")
    files = read(write(tmp_path / "l.txt", content)).files
    assert list(map(Path, files)) == [Path("é.png"), Path("b.png")]


def test_a_repeated_line_is_used_once_and_counted(tmp_path: Path, capsys: Printed) -> None:
    put(tmp_path, "a.png", "b.png")
    train, _ = load(write(tmp_path / "l.txt", "a.png\nb.png\n./a.png\na.png\n"))
    assert len(train) == 2
    assert "l.txt: left out 2 repeated lines\n" in capsys.readouterr().out


def test_the_same_file_under_two_paths_or_two_spellings_is_used_once(tmp_path: Path) -> None:
    put(tmp_path, "a/x.png", "b.png")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    paths = ["a/x.png", f"{tmp_path}/a/x.png", "link/x.png", "a/../a/x.png", "b.png"]
    images = read(write(tmp_path / "l.txt", "\n".join(paths)))
    assert list(map(Path, images.files)) == [Path("a/x.png"), Path("b.png")]

    table = "path,label,split\na/x.png,\u00e9,train\na/x.png,e\u0301, Train \nb.png,y,val\n"
    images = read(write(tmp_path / "l.csv", table))
    assert [images.split_names[i] for i in images.splits.tolist()] == ["train", "val"]


def test_files_with_the_same_key_stay_different(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_rows, "hash", lambda _: 7, raising=False)
    put(tmp_path, "a.png", "b.png", "c.png")
    images = read(write(tmp_path / "l.txt", "a.png\nb.png\na.png\nc.png\n./b.png\n"))
    assert list(images.files) == ["a.png", "b.png", "c.png"]
    assert images.describe_skipped() == "2 repeated lines"


def test_the_first_contradiction_is_reported(tmp_path: Path) -> None:
    lines = ["path,label"]
    for label in "xyz":
        lines += [f"{i}.png,{label}" for i in range(20)]
    with pytest.raises(UserError, match=r"line 22 gives 0.png another label or .* than line 2\."):
        read(write(tmp_path / "l.csv", "\n".join(lines)))


def test_lines_without_text_are_empty(tmp_path: Path) -> None:
    """Spreadsheets leave such lines at the end of a table."""
    put(tmp_path, "a.png", "b.png")
    images = read(write(tmp_path / "l.csv", "path,label\na.png,x\n  \n,\nb.png,y\n"))
    assert list(images.files) == ["a.png", "b.png"]


def test_a_lone_carriage_return_is_a_part_of_a_name(tmp_path: Path) -> None:
    put(tmp_path, "a\rb.png", "c.png")
    images = read(write(tmp_path / "l.txt", "a\rb.png\r\nc.png\n"))
    assert list(images.files) == ["a\rb.png", "c.png"]


def test_missing_files_are_unreadable_images(tmp_path: Path, capsys: Printed) -> None:
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "folder").mkdir()
    path = write(tmp_path / "l.txt", "a.png\nnone.png\nfolder\nb.png\n")
    message = r"2 of 4 images in .*l.txt cannot be read: none.png \(No such file .*folder \(not a"
    with pytest.raises(UserError, match=message):
        load(path)
    assert len(load(path, skip_bad_images=True)[0]) == 2
    assert "left out: 2 of 4 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", "", "no path in it"),
        ("l.txt", "# nothing\n\n", "no path in it"),
        ("l.txt", "x.png\ny.png\n", "none of its 2 files exists, such as /"),
        ("l.txt", b"\x89PNG\0\0", "is not a text file"),
        ("l.csv", "", "path,label\\[,split\\], but it names none"),
        ("l.csv", "path,label\n", "no path in it"),
        ("l.csv", "file,class\na.png,x\n", "but it names file, class"),
        ("l.csv", "a.png,x\nb.png,y\n", "but it names a.png, x"),
        ("l.csv", "path,label,label\na.png,x,y\n", "two columns label"),
        (
            "l.csv",
            "path,label\na.png,x\na,b.png,x\n",
            "line 3 has 3 fields, but the first line has 2. Put a path with a ',' into double",
        ),
        ("l.csv", "path,label\na.png\n", "2 has 1 field, but the first line has 2. Give each"),
        ("l.csv", "path,label\n,x\n", "line 2 has no path"),
        ("l.csv", 'path,label\na.png,"x\nb.png,y\n', "label or the split of line 2 continues"),
        ("l.csv", 'label,path,split\nx,a.png,"train\ny,b.png,train"\n', "of line 2 continues"),
        ("l.csv", "path,label\na.png,x\na.png,y\n", "line 3 gives a.png another label .* line 2"),
        ("l.csv", "path,split\na.png,train\na.png,val\n", "another label or split than line 2"),
        ("l.csv", "path,split\na.png,train\nb.png,dev\n", "split has 'dev', but takes train, val"),
        ("l.csv", "path,split\na.png,train\nb.png,\n", "split has '', but takes train, val"),
        ("l.csv", "path,split\na.png,val\n", "no image in it has the split train"),
        ("l.npz", "x", "neither a .txt .* --dataset arrays"),
        ("l.zip", "x", "neither a .txt .* Unpack it"),
        ("l.png", "x", "Pass the folder of the image"),
        ("l.json", "{}", "is a file, but neither a .txt of paths nor a .csv of path,label"),
    ],
)
def test_other_files_are_refused_in_one_line(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    put(tmp_path, "a.png", "b.png")
    with pytest.raises(UserError, match=message) as error:
        load(write(tmp_path / name, content))
    assert "\n" not in str(error.value) and name in str(error.value)
    assert not (tmp_path / "cache").exists()


# ---------------------------------------------------------------- labels and splits in a .csv

TABLE = """path,label,split
a.png,cat,train
b.png,dog,train
"c, d.png",cat,train
e.png,dog,val
"""


@pytest.mark.parametrize(
    "text",
    [
        TABLE,
        "\ufeff" + TABLE.replace("\n", "\r\n"),
        TABLE.replace("path,label,split", "Path, LABEL , Split"),
        TABLE.replace('"c, d.png"', "c, d.png").replace(",", ";").replace("c; d.png", "c, d.png"),
        TABLE.replace('"c, d.png"', "c, d.png").replace(",", "\t").replace("c\t d", "c, d"),
        TABLE.replace("train", "Training").replace("val", "Validation"),
    ],
)
def test_a_csv_has_labels_and_splits(text: str, tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png", "c, d.png", "e.png")
    train, test = load(write(tmp_path / "l.csv", text))
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 1, 0] and test.labels.tolist() == [1]


def test_columns_may_have_any_order_and_others_are_named(tmp_path: Path, capsys: Printed) -> None:
    put(tmp_path, "a.png", "b.png")
    text = "width,split,label,id,path\n8,train,10,x,a.png\n8,train,2,y,b.png\n"
    train, test = load(write(tmp_path / "l.csv", text))
    assert train.classes == ("10", "2")  # Numbers are names, in the order of text.
    assert train.labels.tolist() == [0, 1] and len(test) == 0
    assert "l.csv: left out the columns width, id\n" in capsys.readouterr().out


def test_images_of_other_splits_are_counted(tmp_path: Path, capsys: Printed) -> None:
    put(tmp_path, "a.png", "b.png", "c.png", "d.png")
    path = write(
        tmp_path / "l.csv", "path,split\na.png,test\nb.png,val\nc.png,train\nd.png,train\n"
    )
    assert [len(split) for split in load(path)] == [2, 1]
    message = "l.csv: training on train, testing on val; not used: 1 image of test\n"
    assert message in capsys.readouterr().out
    assert [len(split) for split in load(path, held_out_images=1)] == [1, 1]
    message = "training on train; not used: 1 image of test, 1 image of val\n"
    assert message in capsys.readouterr().out


def test_a_changed_list_decodes_its_new_images_alone(tmp_path: Path, capsys: Printed) -> None:
    put(tmp_path, "a.png", "b.png", "c.png")
    path = write(tmp_path / "l.txt", "a.png\nb.png\n")
    first, _ = load(path)
    load(path)
    assert capsys.readouterr().out.count("decoded 2 images") == 1
    write(path, "b.png\nc.png\n")
    second, _ = load(path)
    assert "1 of 2 images are already decoded" in capsys.readouterr().out
    assert (second.images[0] == first.images[1]).all()
    assert len(list((tmp_path / "cache").iterdir())) == 1


# ---------------------------------------------------------------- commands


def test_a_run_on_a_list_equals_a_run_on_the_folder(
    train_on_folder: Program, program: Program, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    write_images(photos, patterns(60))
    write_images(photos, patterns(20, split=1), split="val")
    lines = ["path,label,split"]
    for file in sorted(photos.rglob("*.png")):
        split, name, _ = file.relative_to(photos).parts
        lines.append(f"{file},{name},{split}")
    path = write(tmp_path / "list.csv", "\n".join(lines))
    for data_dir, name in ((photos, "folder"), (path, "list")):
        status, out, err = train_on_folder(data_dir, "--exp-name", name)
        assert (status, err) == (0, "") and "60 train and 20 test images, 10 classes" in out
    assert read_rows(tmp_path / "runs" / "folder") == read_rows(tmp_path / "runs" / "list")

    run = str(tmp_path / "runs" / "list")
    for command in ("knn", "linear", "neighbours", "report"):
        status, out, err = program(command, run)
        assert (status, err) == (0, ""), command
    status, out, err = program("embed", run, "--images", str(path))
    assert (status, err) == (0, "") and "80 images" in out
    with np.load(tmp_path / "runs" / "list" / "results" / "embed" / "features.npz") as arrays:
        assert list(arrays["paths"]) == [line.split(",")[0] for line in lines[1:]]
        assert len(arrays["classes"]) == 10 and (arrays["labels"] >= 0).all()
    status, out, err = program("neighbours", run, "--images", str(path), "--overwrite")
    assert (status, err) == (0, "")


def test_other_files_end_the_program_with_one_line(program: Program, tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    for flags in (
        ("--data-dir", str(write(tmp_path / "l.txt", "a.png"))),  # without --dataset folder
        ("--dataset", "folder", "--data-dir", str(tmp_path / "a.png")),
        ("--dataset", "folder", "--data-dir", str(write(tmp_path / "x.npz", "x"))),
        ("--dataset", "arrays", "--data-dir", str(write(tmp_path / "x.csv", "path\na.png"))),
        ("--dataset", "arrays", "--data-dir", str(tmp_path)),
    ):
        status, _, err = program(*flags)
        assert status == 2 and err.count("\n") == 1 and "no such" not in err
        assert "Pass" in err or "--dataset arrays" in err
