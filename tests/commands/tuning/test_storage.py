"""The journal of a search, after a full disk or a power cut."""

from pathlib import Path

import pytest

from simsiam.commands.tuning.space import Range, Space
from simsiam.commands.tuning.study import Study
from utils.errors import UserError

SPACE: Space = {"weight_decay": Range(low=1e-5, high=1e-2, log=True)}


@pytest.mark.parametrize("is_open", [False, True])
def test_half_a_line_at_the_end_of_the_journal_is_cut_off(is_open: bool, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    study = Study(folder, None, 0)
    before = study.claim(SPACE, None)
    assert before is not None
    with (folder / "journal.log").open("a") as file:
        file.write('{"op_code":8,"tri')
    if not is_open:  # another process was writing when the disk was full
        study = Study(folder, None, 0)
    assert study.claim(SPACE, None) is not None
    again = Study(folder, None, 0)
    assert [trial.params for trial in again.trials()] == [trial.params for trial in study.trials()]
    assert again.trials()[0].params == before.trial.params and len(again.trials()) == 2


def test_damaged_journal_is_named_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    for _ in range(2):
        Study(folder, None, 0)
    journal = folder / "journal.log"
    journal.write_text('{"op_code":8,"tri' + journal.read_text())
    damaged = journal.read_bytes()
    with pytest.raises(UserError, match=f"{journal} is damaged"):
        Study(folder, None, 0)
    assert journal.read_bytes() == damaged
