"""Threads that decode and resize images."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from utils.distributed import local_world_size


def count_threads() -> int:
    """Return how many threads cut crops: the cores that this process may use, or its share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // local_world_size())


def start_threads(count: int) -> ThreadPoolExecutor:
    """Return a pool of threads in each of which torch uses one core.

    Without this, torch would start further threads in each thread of the pool, which takes half of
    the speed.
    """
    cores_of_this_thread = torch.get_num_threads()
    # A pool starts a thread only if all others are busy, so each one waits until all have started.
    all_started = threading.Barrier(count + 1)
    pool = ThreadPoolExecutor(count)

    def use_one_core() -> None:
        # Without this first call, torch would copy the number of the main thread into this thread
        # at its first operation, and overwrite the 1.
        torch.get_num_threads()
        torch.set_num_threads(1)
        all_started.wait()

    for _ in range(count):
        pool.submit(use_one_core)
    all_started.wait()
    # A part of torch has one setting for all threads, so set the number again.
    torch.set_num_threads(cores_of_this_thread)
    return pool
