"""A worker in this process, whose trials are the stub of tests/commands/search_stub.py."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from optuna.trial import TrialState

from simsiam.commands.tuning.judging import Judge
from simsiam.commands.tuning.plan import measure_epoch
from simsiam.commands.tuning.space import Range, Space
from simsiam.commands.tuning.study import Study
from simsiam.commands.tuning.trial import TrialRun
from simsiam.commands.tuning.worker import Worker
from simsiam.config import commands
from simsiam.config.commands import Pretrain, Search
from tests.commands.search_stub import SCRIPT, pause, search_flags
from utils.cli import parse
from utils.errors import RunError, UserError
from utils.settings import from_settings

SPACE: Space = {"base_learning_rate": Range(low=0.01, high=1.0, log=True)}
EPOCHS = 4


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Return a worker of a new search, whose trials have EPOCHS epochs."""
    script = tmp_path / "stub.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(commands, "MAIN", script)
    config = parse(Search, search_flags(tmp_path, "--trials", "9")[1:], "test")

    def make_trial(values: dict[str, Any], epochs: int, name: str) -> Pretrain:
        run = {"save_dir": str(config.run_dir), "exp_name": name, "epochs": epochs}
        return from_settings(Pretrain, {**values, **run, "learning_rate": "auto"})

    plan = SimpleNamespace(config=config, space=SPACE, judge=Judge("knn"), make_trial=make_trial)
    worker = Worker(cast(Any, plan), Study(config.run_dir, None, 0))
    worker.trial_epochs = EPOCHS
    return worker


def train_a_trial(worker: Worker) -> TrialRun:
    """Start a trial, and wait until its run has ended. The worker has not noticed that yet."""
    worker._fill_slots()
    (trial,) = worker.running.values()
    assert trial.process is not None
    trial.process.wait()
    return trial


@pytest.mark.parametrize("has_reported", [False, True])
def test_worker_drops_a_trial_that_was_ended_from_elsewhere(
    has_reported: bool, worker: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = train_a_trial(worker)
    if has_reported:
        trial.read_metrics()
    worker.study.optuna.tell(0, 12.0)
    for _ in range(2):
        if worker.running:
            worker._look_after(trial)
    assert worker.running == {}
    assert capsys.readouterr().out.count("trial 0 was ended from elsewhere") == 1
    assert [trial.state for trial in worker.study.trials()] == [TrialState.COMPLETE]


def test_trial_that_finishes_as_the_search_stops_is_recorded(worker: Worker) -> None:
    train_a_trial(worker)
    worker.stop(signal.SIGTERM)
    (trial,) = worker.study.trials()
    assert trial.user_attrs["outcome"] == "finished"
    assert trial.value == trial.intermediate_values[EPOCHS] > 0


def test_trial_that_falls_behind_as_the_search_stops_is_recorded(worker: Worker) -> None:
    pause(Path(worker.plan.config.run.save_dir))
    worker._fill_slots()
    (trial,) = worker.running.values()
    trial.stop("stopped", "behind the better half")
    worker.stop(signal.SIGTERM)
    (record,) = worker.study.trials()
    assert record.user_attrs["outcome"] == "stopped"
    assert trial.process is not None and trial.process.returncode == -signal.SIGTERM


def test_trial_that_is_stopped_in_its_middle_is_handed_back(worker: Worker) -> None:
    pause(Path(worker.plan.config.run.save_dir))
    worker._fill_slots()
    worker.stop(signal.SIGTERM)
    assert [trial.state for trial in worker.study.trials()] == [TrialState.WAITING]


def refuse_trials(worker: Worker, numbers: range) -> None:
    """Let the plan refuse the values of some trials."""
    make_trial = worker.plan.make_trial

    def refuse(values: dict[str, Any], epochs: int, name: str) -> Pretrain:
        if int(name.removeprefix("trial_")) in numbers:
            raise UserError("--heavy-views 4: must not be more than --views 2")
        return make_trial(values, epochs, name)

    worker.plan = cast(Any, SimpleNamespace(**{**vars(worker.plan), "make_trial": refuse}))


def test_values_that_do_not_go_together_fail_their_trial_alone(worker: Worker) -> None:
    refuse_trials(worker, range(2))
    trial = train_a_trial(worker)
    assert trial.claim.number == 2
    worker._look_after(trial)
    outcomes = [trial.user_attrs["outcome"] for trial in worker.study.trials()]
    assert outcomes == ["failed", "failed", "finished"]
    assert "--heavy-views 4" in worker.study.trials()[0].user_attrs["reason"]
    worker.stop(signal.SIGTERM)
    assert len(worker.study.trials()) == 3  # none waits to be tried again


def test_search_ends_if_no_values_go_together(worker: Worker) -> None:
    refuse_trials(worker, range(9))
    with pytest.raises(RunError, match=r"3 runs in a row have failed.*--heavy-views 4"):
        worker._fill_slots()
    assert worker.running == {} and len(worker.study.trials()) == 3


def test_time_left_is_estimated_from_the_trials_since_the_start(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = worker._started
    monkeypatch.setattr("simsiam.commands.tuning.worker.time.monotonic", lambda: now + 360)
    monkeypatch.setattr(worker, "_ended_before", 1)
    for ended, expected in ((1, ""), (4, "; about 10 min left"), (9, "")):  # of 9 trials
        monkeypatch.setattr(worker.study, "count_ended", lambda ended=ended: ended)
        assert worker.describe_time_left() == expected


def test_measurement_of_an_epoch_leaves_no_run_for_a_report(worker: Worker) -> None:
    folder = worker.plan.config.run_dir
    plan = SimpleNamespace(**vars(worker.plan), base={"epochs": 8}, start_of_space=dict)
    (folder / "probe").mkdir()  # of a measurement that was killed
    (folder / "probe" / "metrics.jsonl").write_text('{"epoch": 1, "seconds": 1000}\n')
    measure_epoch(cast(Any, plan), None)
    rows_found = (folder / "starts").read_text().split()[-1]
    assert rows_found == "0"
    assert not (folder / "probe").exists() and (folder / "probe.log").exists()
