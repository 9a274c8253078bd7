"""The command `search`, with real processes that are killed. Trials are mostly a stub."""

import os
import signal
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from simsiam.commands.tuning.storage import SILENCE_SECONDS
from tests.commands.search_stub import (
    epochs_of,
    go_on,
    pause,
    search_flags,
    start_search,
    starts,
)
from tests.helpers import Program, read_rows
from tests.processes import start, wait_for


def load_study(tmp_path: Path, url: str | None = None) -> optuna.Study:
    storage: str | optuna.storages.BaseStorage
    if url is None:
        journal = JournalFileBackend(str(tmp_path / "study" / "journal.log"))
        storage = optuna.storages.JournalStorage(journal)
    else:
        storage = url
    return optuna.load_study(study_name="study", storage=storage)


def outcomes(study: optuna.Study) -> list[str]:
    """Return the outcomes of the trials that have ended, without those that were handed on."""
    attributes = [trial.user_attrs for trial in study.trials]
    return [attribute["outcome"] for attribute in attributes if "outcome" in attribute]


def test_first_trial_has_the_settings_of_the_flags(tmp_path: Path) -> None:
    process = start_search(tmp_path, "--trials", "1", "--weight-decay", "0.0003")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    (trial,) = load_study(tmp_path).trials
    assert trial.params["weight_decay"] == 0.0003
    assert trial.params["base_learning_rate"] == pytest.approx(0.06 * 256 / 50)
    assert trial.state == TrialState.COMPLETE and trial.user_attrs["start"]
    # The planned run has the flags as they were given.
    assert "--weight-decay=0.0003" in out and "--epochs=8" in out
    assert "among 100 train images" in out and "--held-out-images" not in out


def test_trials_end_in_all_ways_and_the_page_says_so(tmp_path: Path) -> None:
    process = start_search(tmp_path, "--trials", "14")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    study = load_study(tmp_path)
    assert len(outcomes(study)) == 14
    assert {"finished", "stopped", "collapsed"} == set(outcomes(study))
    for trial in study.trials:
        outcome = trial.user_attrs["outcome"]
        rows = epochs_of(tmp_path, trial.user_attrs["run"])
        assert rows  # a stopped trial keeps its rows
        if outcome == "collapsed":
            assert trial.value == 0.0
            assert trial.params["weight_decay"] > 2e-3
        else:
            assert trial.params["weight_decay"] <= 2e-3
    assert study.best_trial.user_attrs["outcome"] == "finished"
    assert f"The best trial is number {study.best_trial.number}" in out
    assert "collapsed or diverged." in out and "14 of 14 trials" in out
    page = (tmp_path / "study" / "study.html").read_text()
    assert "Which settings collapse" in page and "collapsed or diverged." in page


def test_killed_search_continues_with_the_same_command(tmp_path: Path) -> None:
    pause(tmp_path)
    killed = start_search(tmp_path, "--trials", "3")
    wait_for(killed, lambda: epochs_of(tmp_path, "trial_0000") == [1])
    killed.kill()
    killed.communicate()
    go_on(tmp_path)

    process = start_search(tmp_path, "--trials", "3")
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    first, second, *_ = starts(tmp_path)
    assert first == ("trial_0000", killed.pid, 0)
    assert second == ("trial_0000", process.pid, 1)  # it resumes after the row that it has
    assert epochs_of(tmp_path, "trial_0000") == [1, 2, 3, 4]
    assert len(outcomes(load_study(tmp_path))) == 3
    assert load_study(tmp_path).trials[0].state == TrialState.FAIL  # it was handed on


@pytest.mark.parametrize("database", [False, True])
def test_two_workers_never_train_the_same_trial(database: bool, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/search.db" if database else None
    flags = ["--trials", "6"] if url is None else ["--trials", "6", "--storage", url]
    pause(tmp_path)
    workers = [start_search(tmp_path, *flags) for _ in range(2)]
    # Both are training before either may end a trial.
    wait_for(workers[0], lambda: len(starts(tmp_path)) == 2)
    go_on(tmp_path)
    for worker in workers:
        _, err = worker.communicate()
        assert (worker.returncode, err) == (0, "")
    names = [name for name, _, _ in starts(tmp_path)]
    assert sorted(names) == [f"trial_{number:04}" for number in range(6)]
    study = load_study(tmp_path, url)
    assert len(outcomes(study)) == 6
    assert len({str(trial.params) for trial in study.trials}) == 6


def test_two_machines_that_start_at_once_share_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/search.db"
    folders = [tmp_path / "first", tmp_path / "second"]  # no shared folder
    for folder in folders:
        folder.mkdir()
    flags = ["--trials", "6", "--storage", url]
    workers = [start_search(folder, *flags) for folder in folders]
    for worker in workers:
        _, err = worker.communicate()
        assert (worker.returncode, err) == (0, "")
    names = [name for folder in folders for name, _, _ in starts(folder)]
    assert sorted(names) == [f"trial_{number:04}" for number in range(6)]
    # Both may ask for the last trial. One of them gives its trial up, which then has no outcome.
    trials = [trial for trial in load_study(tmp_path, url).trials if "outcome" in trial.user_attrs]
    assert len({str(trial.params) for trial in trials}) == 6
    assert [trial.user_attrs.get("start") for trial in trials] == [True] + 5 * [None]


def test_trial_of_a_dead_worker_is_taken_up_by_another(tmp_path: Path) -> None:
    pause(tmp_path)
    workers = [start_search(tmp_path, "--trials", "4") for _ in range(2)]
    wait_for(workers[0], lambda: len(starts(tmp_path)) == 2)
    (name, killed_pid, _), (_, other_pid, _) = starts(tmp_path)
    killed, other = sorted(workers, key=lambda worker: worker.pid != killed_pid)
    wait_for(killed, lambda: epochs_of(tmp_path, name) == [1])
    killed.kill()
    killed.communicate()
    go_on(tmp_path)
    _, err = other.communicate()
    assert (other.returncode, err) == (0, "")
    assert (name, other_pid, 1) in starts(tmp_path)
    assert epochs_of(tmp_path, name)[:2] == [1, 2]
    assert len(outcomes(load_study(tmp_path))) == 4


def test_worker_that_finds_all_trials_taken_names_them(tmp_path: Path) -> None:
    pause(tmp_path)
    first = start_search(tmp_path, "--trials", "1")
    wait_for(first, lambda: len(starts(tmp_path)) == 1)
    out, err = start_search(tmp_path, "--trials", "1").communicate()
    assert err == "" and "Other processes still train 1 trial." in out
    go_on(tmp_path)
    assert "Other processes" not in first.communicate()[0]


def test_trial_of_another_machine_is_taken_up_after_a_silence(tmp_path: Path) -> None:
    pause(tmp_path)
    killed = start_search(tmp_path, "--trials", "1")
    wait_for(killed, lambda: epochs_of(tmp_path, "trial_0000") == [1])
    killed.kill()
    killed.communicate()
    go_on(tmp_path)
    lock_file = tmp_path / "study" / "locks" / "trial_0000"
    lock_file.write_text("another-machine")

    out, _ = start_search(tmp_path, "--trials", "1").communicate()
    assert "Other processes still train 1 trial." in out and len(starts(tmp_path)) == 1
    long_ago = time.time() - SILENCE_SECONDS - 1
    os.utime(lock_file, (long_ago, long_ago))
    start_search(tmp_path, "--trials", "1").communicate()
    assert epochs_of(tmp_path, "trial_0000") == [1, 2, 3, 4]
    assert outcomes(load_study(tmp_path)) == ["finished"]


def test_worker_drops_a_trial_that_a_user_has_ended(tmp_path: Path) -> None:
    pause(tmp_path)
    process = start_search(tmp_path, "--trials", "2")
    wait_for(process, lambda: epochs_of(tmp_path, "trial_0000") == [1])
    load_study(tmp_path).tell(0, 12.0)
    go_on(tmp_path)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.count("trial 0 was ended from elsewhere") == 1
    assert outcomes(load_study(tmp_path)) == ["finished"]
    again = start_search(tmp_path, "--trials", "2")
    again.communicate()
    assert again.returncode == 0 and len(starts(tmp_path)) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_hands_the_trial_back(number: signal.Signals, tmp_path: Path) -> None:
    pause(tmp_path)
    process = start_search(tmp_path, "--trials", "2")
    wait_for(process, lambda: epochs_of(tmp_path, "trial_0000") == [1])
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 128 + number
    advice = "the same command continues the search"
    assert err == f"main.py: stopped by {number.name}; {advice}\n"
    states = [trial.state for trial in load_study(tmp_path).trials]
    assert states == [TrialState.FAIL, TrialState.WAITING]


def test_time_that_is_used_up_ends_the_search(tmp_path: Path) -> None:
    pause(tmp_path)
    process = start_search(tmp_path, "--minutes", "0.05")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "The time is used up." in out and "there is no answer yet" in out
    go_on(tmp_path)
    again = start_search(tmp_path, "--minutes", "0.05")  # what is used up counts
    assert "trial_0000" not in again.communicate()[0] and len(starts(tmp_path)) == 1


def test_runs_that_all_fail_end_the_search_with_their_reason(tmp_path: Path) -> None:
    pause(tmp_path)
    (tmp_path / "study" / "fail").touch()
    process = start_search(tmp_path, "--trials", "9")
    _, err = process.communicate()
    assert process.returncode == 2 and err.count("\n") == 1
    assert "3 runs in a row have failed" in err and "it does not work" in err
    assert len(starts(tmp_path)) == 3


def test_search_with_other_settings_is_refused(tmp_path: Path) -> None:
    start_search(tmp_path, "--trials", "1").communicate()
    process = start_search(tmp_path, "--trials", "2", "--momentum", "0.8")
    _, err = process.communicate()
    assert process.returncode == 2
    assert err.startswith(f"main.py: {tmp_path}/study holds a search with other settings (mom")
    assert len(starts(tmp_path)) == 1


@pytest.mark.slow("three starts of Python with torch; the tests above kill searches of stubs")
def test_real_trial_of_a_killed_search_equals_an_uninterrupted_run(
    tmp_path: Path, program: Program
) -> None:
    # Without labels, so that no image is held out.
    flags = [*search_flags(tmp_path, "--objective", "rankme"), "--precision", "32"]
    killed = start(*flags, "--trials", "1")
    wait_for(killed, lambda: len(epochs_of(tmp_path, "trial_0000")) > 0)
    killed.kill()
    killed.communicate()

    process = start(*flags, "--trials", "1")
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    trial = tmp_path / "study" / "trial_0000"
    config = ["--config", str(trial / "config.yaml"), "--save-dir", str(tmp_path / "runs")]
    assert program(*config, "--exp-name", "uninterrupted")[0] == 0
    assert read_rows(trial) == read_rows(tmp_path / "runs" / "uninterrupted")
    assert len(outcomes(load_study(tmp_path))) == 1


# ---------------------------------------------------------------- errors before anything is written


def test_missing_optuna_is_named(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, _, err = program(*search_flags(tmp_path))
    assert (status, err.count("\n")) == (2, 1) and "pip install optuna" in err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--seeds 0 1", "--seeds: not for a search"),
        ("--overwrite", "--overwrite: not for a search"),
        ("--trial-epochs 9", "--trial-epochs 9: must not be more than --epochs 8"),
        ("--vary speed", "--vary speed: not among the settings"),
        ("--storage search.db", "--storage search.db: must be the URL of a database"),
        ("--space none.yaml", "--space none.yaml cannot be read: No such file or directory"),
        ("--storage foo://x", "--storage foo://x cannot be used"),
        ("--storage mysql://me:pw@h/x", "mysql://me:***@h/x cannot be used: the package MySQLdb"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(
    flags: str, message: str, tmp_path: Path, program: Program
) -> None:
    status, _, err = program(*search_flags(tmp_path, *flags.split()))
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


def test_folder_of_something_else_is_left_alone(tmp_path: Path, program: Program) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "mine.txt").touch()
    status, _, err = program(*search_flags(tmp_path))
    assert status == 2 and "holds something that is not a search" in err
    assert [file.name for file in (tmp_path / "study").iterdir()] == ["mine.txt"]
