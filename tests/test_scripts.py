"""The parts in scripts of their own: several devices, LightningCLI, and use from other folders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simsiam import SimSiam, ViewsDataModule, load_backbone
from tests.helpers import ROOT
from tests.processes import Started, torchrun_environments


def run_script(folder: Path, code: str, *args: str) -> str:
    """Run a script outside the repository, and return its stdout."""
    (folder / "script.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "script.py", *args]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def use_lightning_cli(args: list[str]) -> int:
    from pytorch_lightning.cli import LightningCLI

    LightningCLI(SimSiam, ViewsDataModule, args=args)
    return 0


def test_lightning_cli_turns_arguments_into_flags(tmp_path: Path) -> None:
    model = {"backbone": "resnet10", "width": 4, "out_dim": 32, "h_dim": 16}
    data = {"dataset": "patterns", "train_images": 100, "test_images": 10, "batch_size": 50}
    trainer = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "enable_progress_bar": "false",
        "enable_model_summary": "false",
        "default_root_dir": tmp_path,
    }
    args = ["fit"]
    for group, options in (("model", model), ("data", data), ("trainer", trainer)):
        args += [f"--{group}.{name}={value}" for name, value in options.items()]
    process = Started(use_lightning_cli, args)
    _, err = process.communicate()
    assert process.returncode == 0, err
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert len(load_backbone(checkpoint).mean) == 3


TRAIN_ON_DEVICES = """
import sys
import pytorch_lightning as pl
from simsiam import KNNMonitor, SimSiam, ViewsDataModule

pl.seed_everything(0, verbose=False)
data = ViewsDataModule("patterns", train_images=100, test_images=50, batch_size=50)
model = SimSiam("resnet10", width=4, out_dim=32, h_dim=16)
trainer = pl.Trainer(
    max_epochs=1,
    accelerator="cpu",
    devices=int(sys.argv[1]),
    callbacks=[KNNMonitor(k=5)],
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
)
trainer.fit(model, datamodule=data)
if trainer.is_global_zero:
    metrics = trainer.callback_metrics
    for name in ("train_loss", "z_std", "kNN_accuracy", "rankme"):
        print("METRIC", float(metrics[name]))
"""


def read_metrics(printed: str) -> list[float]:
    """Return the four metrics that TRAIN_ON_DEVICES prints."""
    lines = [line for line in printed.splitlines() if line.startswith("METRIC ")]
    assert len(lines) == 4, printed
    return [float(line.split()[1]) for line in lines]


def train_on_devices(args: list[str]) -> int:
    sys.argv = ["script.py", *args]
    exec(TRAIN_ON_DEVICES, {})
    return 0


def test_two_devices_learn_what_one_learns() -> None:
    one = Started(train_on_devices, ["1"])
    two = [
        Started(train_on_devices, ["2"], **environment) for environment in torchrun_environments()
    ]
    outputs = [process.communicate() for process in (one, *two)]
    assert [process.returncode for process in (one, *two)] == [0, 0, 0]
    printed = [out for out, _ in outputs]
    assert all("sync_dist" not in err for _, err in outputs)  # Lightning's warning
    assert read_metrics(printed[1]) == pytest.approx(read_metrics(printed[0]), rel=1e-4)


@pytest.mark.slow(
    "three fresh starts; that two processes learn what one does is the quick test above"
)
def test_a_script_starts_its_second_device(tmp_path: Path) -> None:
    one = read_metrics(run_script(tmp_path, TRAIN_ON_DEVICES, "1"))
    two = read_metrics(run_script(tmp_path, TRAIN_ON_DEVICES, "2"))
    assert two == pytest.approx(one, rel=1e-4)


PRINT_IMPORT_ERROR = """
try:
    from simsiam import SimSiam
except ImportError as error:
    print(error)
"""


def test_another_module_named_utils_is_explained(tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text("")
    printed = run_script(tmp_path, PRINT_IMPORT_ERROR)
    path = tmp_path / "utils.py"
    assert f"simsiam needs its own package 'utils', but Python finds {path}" in printed
