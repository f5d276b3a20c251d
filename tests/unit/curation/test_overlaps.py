from __future__ import annotations

import numpy as np
import pytest

from dogbreed.curation import overlaps


def answers(*rows: tuple[int, tuple[float, ...], int]) -> tuple[np.ndarray, np.ndarray]:
    """From (given class, probabilities, how often)."""
    given = [label for label, _, times in rows for _ in range(times)]
    return np.array([shares for _, shares, times in rows for _ in range(times)]), np.array(given)


def test_two_names_of_one_class_are_to_be_merged() -> None:
    one, other, third = (0.5, 0.4, 0.1), (0.4, 0.5, 0.1), (0.0, 0.1, 0.9)
    found = overlaps.find(*answers((0, one, 12), (0, other, 8), (1, one, 10), (1, other, 10), (2, third, 20)))
    (pair,) = found
    assert (pair.first, pair.second, pair.images, pair.wrong) == (0, 1, (20, 20), (8, 10))
    assert pair.error == pytest.approx(0.45)
    assert pair.interval.low < 0.45 < 0.5 < pair.interval.high
    assert pair.inseparable
    assert pair.accuracy == pytest.approx(42 / 60)
    assert pair.accuracy_merged == 1.0


def test_classes_that_are_mostly_told_apart_are_looked_at_but_not_merged() -> None:
    one, other = (0.6, 0.4), (0.4, 0.6)
    (pair,) = overlaps.find(*answers((0, one, 30), (0, other, 10), (1, one, 10), (1, other, 30)))
    assert pair.error == 0.25
    assert not pair.inseparable


def test_few_images_do_not_make_a_pair_inseparable() -> None:
    """Three of ten: the interval holds one half."""
    one, other = (0.6, 0.4), (0.4, 0.6)
    (pair,) = overlaps.find(*answers((0, one, 7), (0, other, 3), (1, one, 3), (1, other, 7)))
    assert pair.interval.high > 0.5
    assert not pair.inseparable


@pytest.mark.parametrize(
    "rows",
    [
        [(0, (0.6, 0.4), 10), (0, (0.4, 0.6), 10), (1, (0.4, 0.6), 20)],
        [(0, (0.6, 0.4), 4), (0, (0.4, 0.6), 5), (1, (0.4, 0.6), 4), (1, (0.6, 0.4), 5)],
        [(0, (0.9, 0.1), 19), (0, (0.4, 0.6), 1), (1, (0.1, 0.9), 19), (1, (0.6, 0.4), 1)],
    ],
    ids=["one way only", "few images", "seldom"],
)
def test_other_confusions_are_not_told(rows: list) -> None:
    assert overlaps.find(*answers(*rows)) == []


def test_only_the_choice_between_the_two_counts() -> None:
    """A third class that is answered most often does not make them alike."""
    first, second = (0.3, 0.1, 0.6), (0.1, 0.3, 0.6)
    confused = [(0, (0.3, 0.4, 0.3), 2), (1, (0.4, 0.3, 0.3), 2)]
    assert overlaps.find(*answers((0, first, 18), (1, second, 18), *confused)) == []
