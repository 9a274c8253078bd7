"""Wrong flags of the commands that evaluate: status 2, one line on stderr, nothing written.

Wrong flags of a pre-training are in tests/config/test_cli.py.
"""

from pathlib import Path

import pytest

from tests.helpers import Program

# Command -> flags -> a part of the message.
BAD_FLAGS = {
    "knn": {
        "--bogus": "no such flag",
        "--dataset mnist": "cifar10",
        "--train-images 0": "greater than or equal to 1",
        "--dataset cifar10 --data-dir /no/such --data-url http://127.0.0.1:9/": "_1 is missing",
        "--results-dir /proc/nowhere": "cannot be written",
        "--results-dir /etc/passwd": "is a file",
        "--image-size 64": "32 pixels wide",
    },
    "linear": {
        "--epochs 5": "goes with --augment",
        "--crop-scale 0.5": "goes with --augment",
        "--augment --epochs 0": "greater than or equal to 1",
        "--augment --crop-scale 2": "less than or equal to 1",
        "--augment --learning-rate nan": "finite",
        "--held-out 0": "greater than 0",
        "--held-out 0.001": "hold out 0 of 200",
        "--results-dir=": "is empty",
        "--precision bf16": "goes with --augment",
        "--augment --precision 16": "GPU",
        "--seed -1": "greater than or equal to 0",
    },
    "finetune": {
        "--label-fraction 0": "greater than 0",
        "--label-fraction 1.5": "less than or equal to 1",
        "--label-fraction nan": "less than or equal to 1",
        "--label-fraction 0.01": "without a label",
        "--label-count 0": "greater than or equal to 1",
        "--label-count 9": "without a label",
        "--label-count 210": "21 labels of class horizontal, which has 20",
        "--label-count 50 --label-fraction 0.1": "one of them",
        "--seeds": "at least 1 item",
        "--seeds -1": "greater than or equal to 0",
        "--epochs 0": "greater than or equal to 1",
        "--batch-size 1": "greater than or equal to 2",
        "--learning-rate 0": "greater than 0",
        "--head-learning-rate -1": "greater than 0",
        "--crop-scale 0": "greater than 0",
    },
    "embed": {
        "--output features.txt": "ends in .npz",
        "--output features.npy": "ends in .npz",
        "--output /proc/nowhere/f.npz": "cannot be written",
        "--images /no/such": "no such folder",
        "--images /etc/passwd": "neither a .txt of paths nor a .csv",
        "--split all": "There are both, test, train",
        "--images /tmp --split test": "Drop the flag, or --images",
        "--images /tmp --train-images 3": "Drop the flag, or --images",
        f"--output /tmp/{'x' * 300}.npz": "too long",
        "--images=": "is empty",
    },
    "neighbours": {
        "--output picture.jpg": ".png",
        "--queries 0": "greater than or equal to 1",
        "--k 51": "less than or equal to 50",
        "--train-images 5": "there are 5 train images",
        "--images /no/such": "no such folder",
    },
    "export": {
        "--format tflite": "There are safetensors, torch-export, onnx",
        "--output backbone.onnx": "end in .safetensors",
        "--format onnx --output backbone.pt2": "end in .onnx",
        "--output /": "end in .safetensors",
    },
}


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        (command, flags, message)
        for command, messages in BAD_FLAGS.items()
        for flags, message in messages.items()
    ],
)
def test_a_wrong_flag_is_refused_in_one_line(
    command: str, flags: str, message: str, trained: Path, program: Program
) -> None:
    before = sorted(trained.rglob("*"))
    status, out, err = program(command, "--checkpoint", str(trained), *flags.split())
    assert (status, out) == (2, ""), err
    assert err.startswith("main.py: ") and err.count("\n") == 1
    assert message in err
    assert sorted(trained.rglob("*")) == before
