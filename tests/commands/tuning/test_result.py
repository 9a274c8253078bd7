"""What a search prints about its trials and its files."""

import shlex
from pathlib import Path

from tests.commands.search_stub import start_search


def test_lines_are_true_of_short_trials_and_of_paths_with_spaces(tmp_path: Path) -> None:
    folder = tmp_path / "my runs"
    folder.mkdir()
    process = start_search(folder, "--trials", "1", "--trial-epochs", "2")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    # The trials end where they would be compared.
    assert "2 of the planned 8 epochs\n" in out and "are stopped" not in out
    journal = shlex.split(out.splitlines()[-1])[-1]
    assert Path(journal) == folder / "study" / "journal.log"
