"""The threads that decode and cut images."""

import torch

from simsiam.data.files.threads import start_threads


def test_torch_uses_one_core_in_each_thread_and_all_cores_outside() -> None:
    cores = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with start_threads(2) as pool:

            def count_cores(_: int) -> int:
                torch.ones(10**6).add_(1)  # an operation that would use several cores
                return torch.get_num_threads()

            assert set(pool.map(count_cores, range(8))) == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(cores)
