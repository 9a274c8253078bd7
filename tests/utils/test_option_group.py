"""utils/option_group.py: a misspelt name is an error that names the nearest one, in every group."""

import dataclasses
import pickle
from typing import Any, get_type_hints

import pytest

from simsiam import ViewsDataModule
from simsiam.augment import Policy
from simsiam.config.commands import COMMANDS

GROUPS = {
    group
    for command in COMMANDS.values()
    for group in get_type_hints(command).values()
    if dataclasses.is_dataclass(group)
}


@pytest.mark.parametrize("group", sorted(GROUPS, key=lambda group: group.__name__))
def test_a_group_refuses_a_misspelt_name(group: Any) -> None:
    name = dataclasses.fields(group)[0].name
    with pytest.raises(
        TypeError, match=f"{group.__name__} has no argument '{name}s'; did you mean '{name}'"
    ):
        group(**{f"{name}s": 1})


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("train_image", "train_images"), ("batch_sise", "batch_size"), ("seeds", "seed")],
)
def test_the_datamodule_refuses_a_misspelt_name(misspelt: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"no argument {misspelt!r}; did you mean {meant!r}"):
        ViewsDataModule("patterns", **{misspelt: 5})


def test_a_name_like_no_other_is_refused_too() -> None:
    with pytest.raises(TypeError, match=r"AugmentOptions has no argument 'zzz'$"):
        Policy(zzz=1)  # pyright: ignore[reportCallIssue]


def test_a_group_stays_a_frozen_dataclass() -> None:
    policy = Policy(0.1, flip=0.0)
    assert dataclasses.replace(policy, flip=0.5) == Policy(crop_scale=0.1)
    assert pickle.loads(pickle.dumps(policy)) == policy
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.flip = 1.0  # pyright: ignore[reportAttributeAccessIssue]
