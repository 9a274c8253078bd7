"""The score of a trial."""

import pytest

from simsiam.commands.tuning.objective import score_rows, standard_error

Row = dict[str, float]


def make_row(**changes: float) -> Row:
    healthy = {"train_loss": -0.8, "z_std": 0.9, "rankme": 60.0, "kNN_accuracy": 40.0}
    return healthy | changes


COLLAPSED = make_row(train_loss=-1.0, z_std=0.01, rankme=2.0)


def test_score_with_labels_is_knn_accuracy() -> None:
    assert score_rows([make_row(), make_row(kNN_accuracy=45.5)], "knn") == 45.5


def test_score_without_labels_is_the_rank_of_a_healthy_run() -> None:
    assert score_rows([make_row(), make_row(rankme=70)], "rankme") == 70


def test_epoch_without_a_measurement_has_no_score() -> None:
    row = {"train_loss": -0.8, "z_std": 0.9}
    assert score_rows([row], "knn") is None
    assert score_rows([row], "rankme") is None


@pytest.mark.parametrize("kind", ["knn", "rankme"])
def test_collapsed_run_has_the_lowest_score(kind: str) -> None:
    kind = "knn" if kind == "knn" else "rankme"
    assert score_rows([make_row(), COLLAPSED, COLLAPSED], kind) == 0
    # In the first epoch a healthy run may look like this.
    first = score_rows([COLLAPSED], kind)
    assert first is not None and first > 0


def test_high_rank_counts_less_if_projections_hardly_differ() -> None:
    flat = make_row(z_std=0.25, rankme=60)
    assert score_rows([flat], "rankme") == pytest.approx(30)


def test_high_rank_counts_less_if_the_views_do_not_agree() -> None:
    untrained = make_row(train_loss=-0.05)
    assert score_rows([untrained], "rankme") == pytest.approx(6)


def test_loss_is_smoothed_over_epochs() -> None:
    jump = score_rows([make_row(train_loss=-0.4), make_row(train_loss=0.0)], "rankme")
    assert jump == pytest.approx(60 * 0.2 / 0.5)


def test_standard_error_of_an_accuracy() -> None:
    assert standard_error(50, 100) == pytest.approx(5)
    assert standard_error(0, 100) == 0
