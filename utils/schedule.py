"""The learning rate schedule: linear warm-up, then half a cosine to zero."""

import runpy
from importlib.metadata import distribution

from torch.optim import Optimizer

# bolts' own file, run by itself: `import pl_bolts` fails on parts of Lightning that no longer exist.
FILE = distribution("lightning-bolts").locate_file("pl_bolts/optimizers/lr_scheduler.py")
LinearWarmupCosineAnnealingLR: type = runpy.run_path(str(FILE))["LinearWarmupCosineAnnealingLR"]


class WarmupCosine(LinearWarmupCosineAnnealingLR):
    """bolts' schedule, with support for no warm-up and for parameter groups with a constant rate."""

    def get_lr(self) -> list[float]:
        starts_at_peak = self.last_epoch == 0 and self.warmup_epochs == 0
        rates = zip(
            self.base_lrs, self.base_lrs if starts_at_peak else super().get_lr(), strict=True
        )
        constant = [group.get("constant_lr") for group in self.optimizer.param_groups]
        return [
            base if is_constant else rate
            for (base, rate), is_constant in zip(rates, constant, strict=True)
        ]


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> WarmupCosine:
    """A scheduler to be stepped after each optimizer step s.

    The rate rises linearly from 0 at s = 0 to the group's own rate at s = warmup_steps - 1, then it is
    lr/2 (1 + cos(pi t)) with t = (s - warmup_steps) / (total_steps - warmup_steps). A group with `constant_lr=True`
    keeps its rate throughout. Raises ValueError if the warm-up leaves no step for the cosine.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"a warm-up of {warmup_steps} steps does not fit into a run of {total_steps}"
        )
    return WarmupCosine(optimizer, warmup_epochs=warmup_steps, max_epochs=total_steps)
