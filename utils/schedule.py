"""The learning rate schedule: linear warm-up, then half a cosine down to zero."""

import runpy
from importlib.metadata import distribution

from torch.optim import Optimizer

# The class is lightning-bolts' own. `import pl_bolts` fails, because bolts uses parts of Lightning
# that no longer exist. Therefore only the file with the class is run. Once bolts can be imported
# again, an ordinary import can replace this.
BOLTS_FILE = distribution("lightning-bolts").locate_file("pl_bolts/optimizers/lr_scheduler.py")
BOLTS_NAMES = runpy.run_path(str(BOLTS_FILE))
LinearWarmupCosineAnnealingLR: type = BOLTS_NAMES["LinearWarmupCosineAnnealingLR"]


class WarmupCosine(LinearWarmupCosineAnnealingLR):
    """bolts' schedule, which also works without a warm-up and with groups of constant rate."""

    def get_lr(self) -> list[float]:
        """Return the learning rate of each parameter group for the next optimizer step."""
        if self.last_epoch == 0 and self.warmup_epochs == 0:
            rates = self.base_lrs  # bolts would start at 0.
        else:
            rates = super().get_lr()

        group_rates: list[float] = []
        groups = self.optimizer.param_groups
        for group, peak_rate, rate in zip(groups, self.base_lrs, rates, strict=True):
            if group.get("constant_lr"):
                group_rates.append(peak_rate)
            else:
                group_rates.append(rate)
        return group_rates


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> WarmupCosine:
    """Build a schedule that is stepped after each optimizer step s.

    Let lr be the rate of a parameter group. Step s = 0, 1, ... of the warm-up has the rate
    lr s / (warmup_steps - 1); the step of a warm-up of one step has the rate 0. A later step s has
    lr/2 (1 + cos(pi t)) with t = (s - warmup_steps) / (total_steps - warmup_steps).

    Args:
        optimizer: Parameter groups with `constant_lr=True` keep their rate throughout.
        warmup_steps: Steps of linear warm-up. With 0, the first step has the rate lr.
        total_steps: Steps of the run. The rate is 0 at its end.

    Raises:
        ValueError: The warm-up leaves no step for the cosine.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"a warm-up of {warmup_steps} steps does not fit into a run of {total_steps}"
        )
    # bolts calls steps epochs.
    return WarmupCosine(optimizer, warmup_epochs=warmup_steps, max_epochs=total_steps)
