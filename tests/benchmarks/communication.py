"""Count the messages between the processes of a run, and compare them with a model of their cost.

Run `python tests/benchmarks/communication.py`. It starts 2, 4 and 8 processes on this machine,
which train a small network by DDP (gloo), and prints three tables:

- the messages and bytes of a training step and the time spent waiting for them,
- the bytes of a kNN measurement,
- what the same model says about larger networks on up to 64 GPUs. These rows are calculated.

"Counted" bytes are those of the tensors that a process gets from the others. The processes share
the cores of this machine, so their times say little about machines with a GPU for each process.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from communication_model import predict_knn, predict_step, print_calculated
from timing import table
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

import models.batch_norm
from simsiam import SimSiam
from simsiam.callbacks.sharded_features import nearest_in_shards
from utils.distributed import all_gather_rows, shard

WARMUP_STEPS = 2
SIZE = 16  # pixels of the views
VIEWS = 2
QUERIES = 500
BANK = 4000
FEATURES = 64
K = 50


@dataclass
class Counts:
    """What a process has received from the others, and how long it waited."""

    messages: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    bytes: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, name: str, num_bytes: float, seconds: float) -> None:
        self.messages[name] += 1
        self.bytes[name] += num_bytes
        self.seconds[name] += seconds

    def divided_by(self, n: int) -> dict[str, dict[str, float]]:
        """Return all numbers divided by n."""
        parts = {"messages": self.messages, "bytes": self.bytes, "seconds": self.seconds}
        return {
            part: {name: number / n for name, number in numbers.items()}
            for part, numbers in parts.items()
        }


def count_calls(counts: Counts) -> None:
    """Replace torch's collective operations by versions that are counted."""
    processes = distributed.get_world_size()
    others = processes - 1
    all_gather = distributed.all_gather
    all_reduce = distributed.all_reduce

    def counted_all_gather(gathered: list[Tensor], tensor: Tensor, *args: Any, **kw: Any) -> Any:
        begin = time.perf_counter()
        result = all_gather(gathered, tensor, *args, **kw)
        counts.add("all_gather", others * tensor.nbytes, time.perf_counter() - begin)
        return result

    def counted_all_reduce(tensor: Tensor, *args: Any, **kw: Any) -> Any:
        begin = time.perf_counter()
        result = all_reduce(tensor, *args, **kw)
        num_bytes = 2 * others / processes * tensor.nbytes
        counts.add("all_reduce", num_bytes, time.perf_counter() - begin)
        return result

    distributed.all_gather = counted_all_gather
    distributed.all_reduce = counted_all_reduce


def time_steps(step: Callable[[], None], steps: int) -> float:
    """Return the median seconds of a step."""
    for _ in range(WARMUP_STEPS):
        step()
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def make_network(width: int) -> SimSiam:
    torch.manual_seed(0)
    network = SimSiam("resnet10", width=width, out_dim=16 * width, h_dim=4 * width)
    network.one_pass = True  # as on a GPU; on a CPU, each view has messages of its own
    return network


def measure_step(batch: int, width: int, steps: int) -> dict[str, Any]:
    """Measure steps with and without communication in this process."""
    network = make_network(width)
    processes = distributed.get_world_size()
    x = [torch.randn(batch // processes, 3, SIZE, SIZE) for _ in range(VIEWS)]
    counts = Counts()
    last_bucket = [0.0]

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self) -> Tensor:
            return self.network.training_step(x, 0)["loss"]

    def compute() -> None:
        network.zero_grad()
        network.training_step(x, 0)["loss"].backward()

    # Without communication. All processes compute at the same time, as they do with it.
    world_size = models.batch_norm._world_size
    models.batch_norm._world_size = lambda: 1
    distributed.barrier()
    alone = time_steps(compute, steps)
    models.batch_norm._world_size = world_size
    network.zero_grad(set_to_none=True)

    parallel = DistributedDataParallel(Loss())

    def hook(
        state: None,
        bucket: distributed.GradBucket,  # pyright: ignore[reportPrivateImportUsage]
    ) -> torch.futures.Future[Tensor]:
        gradients = bucket.buffer().div_(processes)
        num_bytes = 2 * (processes - 1) / processes * gradients.nbytes
        counts.add("gradients", num_bytes, 0.0)
        last_bucket[0] = time.perf_counter()
        sending = distributed.distributed_c10d.all_reduce(gradients, async_op=True)
        assert sending is not None
        return sending.get_future().then(lambda future: future.value()[0])

    parallel.register_comm_hook(None, hook)
    count_calls(counts)

    def train() -> None:
        network.zero_grad()
        parallel().backward()
        # What is left to wait for after the last gradient has been computed.
        counts.seconds["gradients"] += time.perf_counter() - last_bucket[0]

    distributed.barrier()
    together = time_steps(train, steps)
    total = steps + WARMUP_STEPS
    return {"alone": alone, "together": together, **counts.divided_by(total)}


def measure_knn() -> dict[str, Any]:
    """Count what a process receives in a kNN measurement."""
    generator = torch.Generator().manual_seed(0)
    queries = normalize(torch.randn(QUERIES, FEATURES, generator=generator), dim=1)
    bank = normalize(torch.randn(BANK, FEATURES, generator=generator), dim=1)
    counts = Counts()
    gather, reduce = distributed.all_gather, distributed.all_reduce
    count_calls(counts)
    all_queries = all_gather_rows(queries[shard(QUERIES)])
    part = shard(BANK)
    nearest_in_shards(all_queries, bank[part], K, part.start)
    distributed.all_gather = gather
    distributed.all_reduce = reduce
    return {"messages": counts.messages["all_gather"], "bytes": counts.bytes["all_gather"]}


def work(rank: int, processes: int, folder: str, args: argparse.Namespace) -> None:
    """Measure in one of the processes. The first one writes the results into a file."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store{processes}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    knn = measure_knn()
    step = measure_step(args.batch_size, args.width, args.steps)
    if rank == 0:
        Path(folder, f"{processes}.json").write_text(json.dumps({"step": step, "knn": knn}))
    distributed.barrier()
    distributed.destroy_process_group()


def measured_rows(args: argparse.Namespace) -> tuple[list[list[str]], list[list[str]]]:
    """Measure with each number of processes. Return the rows of the tables of steps and of kNN."""
    step_rows: list[list[str]] = []
    knn_rows: list[list[str]] = []
    network = make_network(args.width)
    for processes in args.processes:
        with tempfile.TemporaryDirectory() as folder:
            # Forked processes need not import everything again, which would take most of the time.
            multiprocessing.start_processes(  # pyright: ignore[reportPrivateImportUsage]
                work, (processes, folder, args), nprocs=processes, start_method="fork"
            )
            result = json.loads(Path(folder, f"{processes}.json").read_text())
        step = result["step"]
        predicted = predict_step(network, processes)
        names = ("all_gather", "all_reduce")
        bn_messages = sum(step["messages"][name] for name in names)
        bn_bytes = sum(step["bytes"][name] for name in names)
        bn_seconds = sum(step["seconds"][name] for name in names)
        step_rows.append(
            [
                str(processes),
                f"{bn_messages:.0f} ({predicted.bn_messages})",
                f"{bn_bytes / 1e3:,.0f} ({predicted.bn_bytes / 1e3:,.0f})",
                f"{step['bytes']['gradients'] / 1e3:,.0f} ({predicted.gradient_bytes / 1e3:,.0f})",
                f"{1000 * bn_seconds / bn_messages:.2f}",
                f"{1000 * step['seconds']['gradients']:.1f}",
                f"{1000 * step['together']:.0f}",
                f"{1000 * step['alone']:.0f}",
            ]
        )
        knn = result["knn"]
        expected = predict_knn(processes, QUERIES, FEATURES, K)
        knn_rows.append(
            [
                str(processes),
                f"{knn['messages']:.0f}",
                f"{knn['bytes'] / 1e3:,.0f} ({expected / 1e3:,.0f})",
            ]
        )
    return step_rows, knn_rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--batch-size", type=int, default=64, help="of all processes")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tflops", type=float, default=400, help="of a GPU, for the model")
    parser.add_argument(
        "--latency-us",
        type=float,
        nargs=2,
        default=[30, 100],
        help="of a message in a machine and between machines, for the model",
    )
    parser.add_argument(
        "--gbytes",
        type=float,
        nargs=2,
        default=[150, 40],
        help="that a GPU receives in a second, in a machine and between machines, for the model",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)  # a forked process could not use threads of this one
    step_rows, knn_rows = measured_rows(args)
    head = (
        "processes",
        "BN messages",
        "BN kB",
        "gradient kB",
        "ms a message",
        "ms for gradients",
        "ms a step",
        "without messages",
    )
    table("Received by a process in a step: counted (calculated)", head, step_rows)
    head = ("processes", "messages", "kB")
    table("Received by a process in a kNN measurement: counted (calculated)", head, knn_rows)
    print_calculated(args)


if __name__ == "__main__":
    main()
