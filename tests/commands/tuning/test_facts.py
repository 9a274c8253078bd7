"""A search that another version of the program has begun continues."""

from pathlib import Path

import pytest

from simsiam.commands.tuning.facts import check_facts, keep_fitted
from simsiam.commands.tuning.plan import Plan, make_plan
from simsiam.commands.tuning.study import Study
from simsiam.config.commands import Search
from utils.cli import parse
from utils.errors import UserError

DATA = "--dataset patterns --train-images 200 --test-images 50 --accelerator cpu --epochs 8"
NETWORK = "--backbone resnet10 --width 4 --out-dim 32 --h-dim 16"


def plan_with(folder: Path, *flags: str) -> Plan:
    flags = (*DATA.split(), *NETWORK.split(), "--save-dir", str(folder), *flags)
    return make_plan(parse(Search, list(flags), "test"))


def test_option_that_is_newer_than_a_search_had_its_default(tmp_path: Path) -> None:
    study = Study(tmp_path / "study", None, 0)
    settings = plan_with(tmp_path).facts()
    del settings["heavy_weight_in"], settings["momentum"]
    settings["cache_dir"] = "/an/option/that/was/shared/once"
    study.set_fact("settings", settings)
    check_facts(study, plan_with(tmp_path))
    with pytest.raises(UserError, match=r"other settings \(momentum 0.9, now 0.8\)"):
        check_facts(study, plan_with(tmp_path, "--momentum", "0.8"))


def test_search_of_an_earlier_version_keeps_its_batch_size_and_k(tmp_path: Path) -> None:
    study = Study(tmp_path / "study", None, 0)
    earlier = plan_with(tmp_path, "--batch-size", "16", "--knn-k", "7")
    study.set_fact("settings", earlier.facts())
    plan = plan_with(tmp_path)
    assert plan.base["batch_size"] != 16 and plan.base["knn_k"] != 7
    plan = keep_fitted(plan, study.facts())
    check_facts(study, plan)
    assert plan.facts() == earlier.facts() and plan.space == earlier.space
    trial = plan.make_trial({}, 4, "trial_0000")
    assert (trial.optimizer.batch_size, trial.monitor.knn_k) == (16, 7)
    with pytest.raises(UserError, match="batch_size 16, now 32"):
        check_facts(study, plan_with(tmp_path, "--batch-size", "32", "--knn-k", "7"))


def test_batch_size_of_a_flag_is_not_kept_without_the_flag(tmp_path: Path) -> None:
    study = Study(tmp_path / "study", None, 0)
    check_facts(study, plan_with(tmp_path, "--batch-size", "16"))
    plan = keep_fitted(plan_with(tmp_path), study.facts())
    with pytest.raises(UserError, match="batch_size 16, now"):
        check_facts(study, plan)
