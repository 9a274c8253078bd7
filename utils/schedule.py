"""The learning rate schedule: linear warm-up, then half a cosine to zero."""

import importlib.util
from pathlib import Path

from torch.optim import Optimizer


def _bolts_scheduler() -> type:
    """lightning-bolts' `LinearWarmupCosineAnnealingLR`, loaded from its own file.

    The package's `__init__` imports parts of Lightning that no longer exist, so `import pl_bolts` fails; the file of
    the scheduler needs nothing but torch. `find_spec` finds the package without running it.
    """
    package = importlib.util.find_spec("pl_bolts")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("lightning-bolts is not installed: pip install -r req.txt")
    file = Path(package.origin).parent / "optimizers" / "lr_scheduler.py"
    spec = importlib.util.spec_from_file_location("pl_bolts_lr_scheduler", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LinearWarmupCosineAnnealingLR


LinearWarmupCosineAnnealingLR: type = _bolts_scheduler()


class WarmupCosine(LinearWarmupCosineAnnealingLR):
    """bolts' schedule, with support for no warm-up and for parameter groups with a constant rate."""

    def get_lr(self) -> list[float]:
        starts_at_peak = self.last_epoch == 0 and self.warmup_epochs == 0
        rates = self.base_lrs if starts_at_peak else super().get_lr()
        groups = self.optimizer.param_groups
        return [
            base if group.get("constant_lr") else rate
            for base, rate, group in zip(self.base_lrs, rates, groups, strict=True)
        ]


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> WarmupCosine:
    """A scheduler to be stepped after each optimizer step s.

    The rate rises linearly from 0 at s = 0 to the group's own rate at s = warmup_steps - 1, then it is
    lr/2 (1 + cos(pi t)) with t = (s - warmup_steps) / (total_steps - warmup_steps). A group with `constant_lr=True`
    keeps its rate throughout.

    Args:
        warmup_steps: optimizer steps of warm-up, 0 for none.
        total_steps: optimizer steps of the whole run.

    Raises:
        ValueError: the warm-up leaves no step for the cosine.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"a warm-up of {warmup_steps} steps does not fit into a run of {total_steps}")
    return WarmupCosine(optimizer, warmup_epochs=warmup_steps, max_epochs=total_steps)
