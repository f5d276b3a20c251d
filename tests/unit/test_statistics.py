"""Statistics against figures worked out by hand or printed in the literature, and what must hold of all input."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dogbreed import statistics
from dogbreed.statistics import Interval


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        # (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with z² = 3.841459
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_wilson_intervals_are_those_of_the_literature(right, count, low, high):
    found = statistics.wilson(right, count)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_of_no_trial_nothing_is_known():
    assert statistics.wilson(0, 0) == Interval(0, 1)


@given(st.integers(1, 10**6).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_an_interval_holds_the_share_mirrors_and_stays_within_bounds(drawn):
    right, count = drawn
    found, mirrored = statistics.wilson(right, count), statistics.wilson(count - right, count)
    assert 0 <= found.low <= right / count <= found.high <= 1
    assert found.low == pytest.approx(1 - mirrored.high, abs=1e-12)
    assert found.high - found.low <= 2 * 1.96 / math.sqrt(count)


@pytest.mark.parametrize("counts", [(-1, 5), (6, 5)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="successes"):
        statistics.wilson(*counts)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (0, 0, 1.0),
        (0, 5, 2 / 32),  # 2 * C(5,0) / 2^5
        (1, 7, 2 * (1 + 8) / 256),
        (3, 3, 1.0),  # twice the half and the middle is more than 1
        (0, 6, 2 / 64),
    ],
)
def test_few_discordant_pairs_are_counted_exactly(only_first, only_second, p_value):
    found = statistics.mcnemar(only_first, only_second)
    assert found.exact
    assert found.p_value == pytest.approx(p_value)


def test_many_discordant_pairs_are_compared_with_chi_squared():
    # (|900 - 1100| - 1)² / 2000 = 19.80; P(chi² > 19.80, 1 degree of freedom) = 8.6e-6
    found = statistics.mcnemar(900, 1100)
    assert not found.exact
    assert found.p_value == pytest.approx(8.6e-6, rel=0.01)


def test_both_ways_agree_where_they_meet():
    exact, near = statistics.mcnemar(470, 530), statistics.mcnemar(470, 531)
    assert (exact.exact, near.exact) == (True, False)
    assert exact.p_value == pytest.approx(near.p_value, rel=0.08)


@given(st.integers(0, 800), st.integers(0, 800))
def test_a_test_is_symmetric_and_a_probability(first, second):
    found = statistics.mcnemar(first, second)
    assert found.p_value == statistics.mcnemar(second, first).p_value
    assert 0 <= found.p_value <= 1
    wider = statistics.mcnemar(first, first + abs(second - first) + 3)
    assert wider.p_value <= statistics.mcnemar(first, first).p_value


def test_a_paired_difference_is_that_of_the_formula():
    # b = 10.5, c = 20.5, N = 102: (20.5 - 10.5) / 102 ± 1.96 sqrt(31 - 100 / 102) / 102
    found = statistics.paired_difference(10, 20, 100)
    assert found.low == pytest.approx(10 / 102 - 1.959964 * math.sqrt(31 - 100 / 102) / 102)
    assert (round(found.low, 4), round(found.high, 4)) == (-0.0072, 0.2033)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_a_paired_difference_turns_round_with_its_sides(first, second, same):
    count = first + second + same
    if count == 0:
        with pytest.raises(ValueError, match="discordant"):
            statistics.paired_difference(0, 0, 0)
        return
    found, turned = (
        statistics.paired_difference(first, second, count),
        statistics.paired_difference(second, first, count),
    )
    assert (found.low, found.high) == pytest.approx((-turned.high, -turned.low))
    assert -1 <= found.low <= found.high <= 1


def test_bins_hold_what_lies_in_them():
    # Five bins of width 0.2: 0.2 belongs to the first, 1.0 to the last.
    bins = statistics.reliability([0.1, 0.2, 0.9, 1.0, 0.95, 0.0], [False, True, True, True, False, False], bins=5)
    assert [one.count for one in bins] == [3, 0, 0, 0, 3]
    assert bins[0].confidence == pytest.approx(0.1)
    assert bins[0].accuracy == pytest.approx(1 / 3)
    assert bins[4].confidence == pytest.approx(0.95)
    assert bins[4].accuracy == pytest.approx(2 / 3)
    assert math.isnan(bins[1].accuracy)
    # (3 * |1/3 - 0.1| + 3 * |2/3 - 0.95|) / 6
    assert statistics.expected_calibration_error(bins) == pytest.approx((7 / 30 + 17 / 60) / 2)


def test_without_answers_there_is_no_calibration_error():
    assert math.isnan(statistics.expected_calibration_error(statistics.reliability([], [])))


def test_a_probability_needs_its_answer():
    with pytest.raises(ValueError, match="1 probabilities and 2 answers"):
        statistics.reliability([0.5], [True, False])


@given(st.lists(st.tuples(st.floats(0, 1.0000001), st.booleans())), st.integers(1, 30))
def test_no_answer_is_lost_and_each_lies_between_its_edges(answers, bins):
    found = statistics.reliability([one for one, _ in answers], [hit for _, hit in answers], bins)
    assert sum(one.count for one in found) == len(answers)
    for one in found:
        if one.count:
            assert one.low - 1e-9 <= one.confidence <= one.high + 1e-6
    if answers:
        assert 0 <= statistics.expected_calibration_error(found) <= 1.0000001


@given(st.lists(st.floats(0, 1), min_size=1))
def test_one_bin_compares_the_means(probabilities):
    right = [index % 2 == 0 for index in range(len(probabilities))]
    mean = sum(probabilities) / len(right)
    error = statistics.expected_calibration_error(statistics.reliability(probabilities, right, bins=1))
    assert error == pytest.approx(abs(sum(right) / len(right) - mean))


def test_brier_scores_of_certainty_and_of_none():
    certain = [math.log(1), -math.inf]
    assert statistics.brier(certain, 0) == 0
    assert statistics.brier(certain, 1) == 2
    # (0.7 - 1)² + 0.2² + 0.1²
    assert statistics.brier([math.log(0.7), math.log(0.2), math.log(0.1)], 0) == pytest.approx(0.14)


def test_percentiles_are_values_that_occur():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [statistics.percentile(values, share) for share in (0.2, 0.5, 0.99, 1)] == [1, 3, 5, 5]
    assert statistics.percentile(range(1, 101), 0.99) == 99
    assert math.isnan(statistics.percentile([], 0.5))
    with pytest.raises(ValueError, match="share"):
        statistics.percentile(values, 50)


def test_classes_are_scored_by_rows_and_columns():
    cat, dog, fox = statistics.class_scores([[8, 2, 0], [4, 6, 0], [0, 0, 0]])
    assert (cat.support, cat.predicted, cat.right) == (10, 12, 8)
    assert cat.precision == pytest.approx(8 / 12)
    assert cat.recall == pytest.approx(0.8)
    assert cat.f1 == pytest.approx(2 * (8 / 12) * 0.8 / (8 / 12 + 0.8))
    assert dog.precision == pytest.approx(6 / 8)
    assert all(math.isnan(value) for value in (fox.precision, fox.recall, fox.f1))
