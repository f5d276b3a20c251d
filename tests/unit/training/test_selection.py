from __future__ import annotations

import math

import pytest

from dogbreed.training.selection import Selection


def run(
    values: list[float], *, maximise: bool = True, patience: int = 2, delta: float = 0.0, least: int = 0
) -> Selection:
    selection = Selection(maximise=maximise, patience=patience, min_delta=delta, min_epochs=least)
    for value in values:
        selection.update(value)
    return selection


@pytest.mark.parametrize(("maximise", "values"), [(True, [0.1, 0.5, 0.3]), (False, [0.9, 0.2, 0.4])])
def test_the_best_epoch_is_the_best_objective(maximise: bool, values: list[float]) -> None:
    selection = run(values, maximise=maximise)
    assert (selection.best_epoch, selection.best) == (2, values[1])


def test_an_equal_objective_is_not_better_so_the_earlier_epoch_stays() -> None:
    assert run([0.5, 0.5]).best_epoch == 1


def test_stopping_is_due_after_patience_epochs_without_a_better_one() -> None:
    assert not run([0.5, 0.4]).exhausted
    assert run([0.5, 0.4, 0.4]).exhausted
    assert not run([0.5, 0.4, 0.6]).exhausted


def test_patience_zero_never_stops() -> None:
    assert not run([0.5] * 50, patience=0).exhausted


def test_min_epochs_run_in_any_case() -> None:
    assert not run([0.5] * 4, least=5).exhausted
    assert run([0.5] * 5, least=5).exhausted


def test_min_delta_decides_what_resets_patience_and_not_what_is_best() -> None:
    selection = run([0.50, 0.505, 0.509], delta=0.01)
    assert selection.exhausted
    assert selection.best_epoch == 3
    assert not run([0.50, 0.505, 0.515], delta=0.01).exhausted


def test_nan_is_never_better() -> None:
    assert run([math.nan, 0.1, math.nan]).best_epoch == 2
    assert run([math.nan]).best_epoch == 0
