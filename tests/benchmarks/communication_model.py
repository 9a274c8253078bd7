"""Calculate what the processes of a run send each other: the model of docs/scaling.md.

`communication.py` compares it with counts.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from timing import table

from models.batch_norm import BatchNorm1d, BatchNorm2d
from simsiam import SimSiam


class ModelOfStep(NamedTuple):
    """What the model of docs/scaling.md says that a process receives in a step.

    The BN messages include the one of z_std.
    """

    bn_messages: int
    bn_bytes: float
    gradient_bytes: float


def predict_step(network: SimSiam, processes: int, views: int = 2) -> ModelOfStep:
    """Calculate the messages of a step. An all-reduce is taken for a ring.

    A BN layer with C channels gathers mean and variance of V views in the forward pass, and adds
    the gradients of what it gathered in the backward pass. For z_std, two float64 for each channel
    of z are added up.
    """
    layers = [m for m in network.modules() if isinstance(m, BatchNorm1d | BatchNorm2d)]
    moments = sum(2 * views * layer.num_features * 4 for layer in layers)  # bytes of one process
    others = processes - 1
    forward = others * moments
    backward = 2 * others / processes * (processes * moments)
    z_std = 2 * others / processes * (2 * network.hparams["out_dim"] * 8)
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    gradients = 2 * others / processes * (4 * parameters)
    return ModelOfStep(2 * len(layers) + 1, forward + backward + z_std, gradients)


def predict_knn(processes: int, queries: int, features: int, k: int) -> float:
    """Calculate the bytes that a process receives: features of queries, and neighbours of all."""
    others = processes - 1
    return others / processes * queries * features * 4 + others * queries * k * 12


class Case(NamedTuple):
    """A network and images, for which the model is calculated."""

    name: str
    build: Callable[[], SimSiam]
    images_per_gpu: int
    flops_per_image: float  # two views, forward and backward, see docs/scaling.md
    queries: int
    features: int


CASES = (
    Case("resnet18, 32 pixels", SimSiam, 512, 6.7e9, 10_000, 512),
    Case(
        "resnet50, 224 pixels",
        lambda: SimSiam("resnet50", stem="imagenet", out_dim=2048, h_dim=512, proj_layers=3),
        64,
        48.8e9,
        50_000,
        2048,
    ),
)
GPUS_PER_MACHINE = 8
K_OF_MODEL = 200


def calculated_rows(args: argparse.Namespace) -> list[list[str]]:
    """Calculate a step and a kNN measurement of larger networks on GPUs."""
    rows = []
    for case in CASES:
        with torch.device("meta"):
            network = case.build()
        for gpus in (8, 64):
            step = predict_step(network, gpus)
            is_one_machine = gpus <= GPUS_PER_MACHINE
            latency_us = args.latency_us[0 if is_one_machine else 1]
            rate = 1e9 * args.gbytes[0 if is_one_machine else 1]
            compute = case.images_per_gpu * case.flops_per_image / (1e12 * args.tflops)
            bn = step.bn_messages * latency_us * 1e-6 + step.bn_bytes / rate
            gradients = step.gradient_bytes / rate
            exposed = bn + max(0.0, gradients - 2 / 3 * compute)  # the backward pass hides some
            knn = predict_knn(gpus, case.queries, case.features, K_OF_MODEL)
            rows.append(
                [
                    case.name,
                    f"{gpus} x {case.images_per_gpu}",
                    f"{step.bn_messages}",
                    f"{step.bn_bytes / 1e6:,.1f}",
                    f"{step.gradient_bytes / 1e6:,.0f}",
                    f"{1000 * compute:.1f}",
                    f"{1000 * bn:.1f}",
                    f"{1000 * gradients:.1f}",
                    f"{100 * exposed / (exposed + compute):.0f}",
                    f"{knn / 1e9:.2f}",
                ]
            )
    return rows


def print_calculated(args: argparse.Namespace) -> None:
    """Print a table of steps and kNN measurements that are calculated.

    Args:
        args: the flags of `communication.py` for the model.
    """
    head = (
        "network",
        "GPUs x images",
        "BN messages",
        "BN MB",
        "gradient MB",
        "compute ms",
        "BN ms",
        "gradient ms",
        "% waiting",
        "kNN GB",
    )
    table("Calculated for GPUs, not measured", head, calculated_rows(args))
