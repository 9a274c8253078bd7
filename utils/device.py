"""Which device and which precision, where "auto" is asked for."""

from typing import Any

import torch

from utils.errors import check


def choose_accelerator(accelerator: str) -> str:
    """Lightning's name, "gpu" or "cpu".

    Raises:
        UserError: a GPU asked for where there is none.
    """
    gpu = torch.cuda.is_available()
    check(gpu or accelerator != "gpu", "--accelerator gpu: torch finds no GPU here; leave the flag out for the CPU")
    return "gpu" if gpu and accelerator != "cpu" else "cpu"


def choose_device(accelerator: str) -> torch.device:
    """torch's device, likewise."""
    return torch.device("cuda" if choose_accelerator(accelerator) == "gpu" else "cpu")


def choose_precision(precision: str, accelerator: str) -> Any:
    """Lightning's name for it.

    Args:
        precision: auto, 32, bf16 or 16.
        accelerator: "gpu" or "cpu", or "auto" for what `choose_accelerator` makes of it.

    Raises:
        UserError: one that the device does not have.
    """
    accelerator = choose_accelerator(accelerator)
    if precision == "auto":
        precision = "bf16" if accelerator == "gpu" and torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    check(precision != "16" or accelerator == "gpu", "--precision 16 needs a GPU: take bf16 or 32")
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision]
