"""What all starts of a search share, also those of a newer version of this program."""

from collections.abc import Mapping, Sequence
from typing import Any

from simsiam.commands.tuning.plan import UNSHARED, Plan, refit
from simsiam.commands.tuning.study import Study
from simsiam.config.commands import FITTED_DEFAULTS, PRETRAIN_DEFAULTS
from simsiam.config.run_state import find_unset
from utils.errors import require

SETTINGS = "settings"  # the fact that holds what must not change
FITTED = "fitted"  # the fact that holds the names of options that were fitted to the images


def keep_fitted(plan: Plan, facts: Mapping[str, Any]) -> Plan:
    """Return the plan with the values that an earlier start has fitted to the images.

    Without a flag, a search keeps its batch size and its k, whatever this version would choose.

    Args:
        facts: of the study.
    """
    known = facts.get(SETTINGS, {})
    # A search of an earlier version has not recorded what was fitted.
    fitted: Sequence[str] = facts.get(FITTED, list(FITTED_DEFAULTS))
    values: dict[str, Any] = {}
    for name in find_unset(plan.given):
        if name in fitted and name in known:
            values[name] = known[name]
    if not values:
        return plan
    return refit(plan, values)


def check_facts(study: Study, plan: Plan) -> None:
    """Write the facts that all workers must share, or compare them with those of an earlier start.

    A setting that the earlier start lacked had its default: the option was added after it.

    Raises:
        UserError: the folder holds a search with other settings.
    """
    wanted = plan.facts()
    known = study.facts().get(SETTINGS)
    if known is None:
        study.set_fact(FITTED, find_unset(plan.given))
        study.set_fact(SETTINGS, wanted)
        return
    before = {**PRETRAIN_DEFAULTS, **known}
    names = sorted((known.keys() | wanted.keys()) - set(UNSHARED))
    changed = [name for name in names if before.get(name) != wanted.get(name)]
    changes = ", ".join(f"{name} {before.get(name)}, now {wanted.get(name)}" for name in changed)
    require(
        not changed,
        f"{study.folder} holds a search with other settings ({changes}). Give another --exp-name.",
    )
