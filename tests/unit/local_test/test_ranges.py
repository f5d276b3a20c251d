from __future__ import annotations

import itertools

import pytest
from local_test.simulator.channels import RequestError
from local_test.simulator.ranges import drawn, grid, is_hopeless, parse


def test_values_are_strings_inside_their_ranges():
    ranges = parse({"lr": "1e-4..1e-1:log", "mix": "0..1"}, {"epochs": "1..3"}, {"optimizer": "adam,sgd"})
    draws = list(itertools.islice(drawn(ranges, seed=5), 200))
    assert draws == list(itertools.islice(drawn(ranges, seed=5), 200))
    assert {draw["optimizer"] for draw in draws} == {"adam", "sgd"}
    assert {draw["epochs"] for draw in draws} == {"1", "2", "3"}
    rates = sorted(float(draw["lr"]) for draw in draws)
    assert 1e-4 <= rates[0] <= rates[-1] <= 1e-1
    assert rates[100] == pytest.approx(10**-2.5, rel=1), "half of them below the middle of the logarithm"


def test_a_grid_is_every_combination():
    ranges = parse({"lr": "1..4:log"}, {"epochs": "1..2"}, {"optimizer": "adam,sgd"})
    values = grid(ranges)
    assert len(values) == 3 * 2 * 2
    assert {one["epochs"] for one in values} == {"1", "2"}
    assert sorted({round(float(one["lr"]), 6) for one in values}) == [1, 2, 4]


@pytest.mark.parametrize(
    ("floats", "integers", "choices", "sentence"),
    [
        ({"lr": "0.1"}, {}, {}, r"--float lr='0.1': write LOW..HIGH"),
        ({"lr": "2..1"}, {}, {}, "the lower one first"),
        ({"lr": "0..1:log"}, {}, {}, "begins above 0"),
        ({}, {"epochs": "1..2.5"}, {}, r"--int epochs='1..2.5': .*whole numbers"),
        ({}, {}, {"a": "x,x"}, "1 to 30 different values"),
        ({}, {}, {}, "0 ranges; a search has 1 to 30"),
    ],
)
def test_ranges_that_the_service_refuses(floats, integers, choices, sentence):
    with pytest.raises(RequestError, match=sentence):
        parse(floats, integers, choices)


@pytest.mark.parametrize(
    ("values", "others", "maximize", "expected"),
    [
        ([], [[1.0]], True, False),
        ([0.1], [], True, False),
        ([0.1], [[0.5, 0.9]], True, True),
        ([0.1], [[0.5, 0.9]], False, False),
        ([0.9, 0.6], [[0.5, 0.9], [0.2, 0.4], [0.9, 0.9]], True, True),
        ([0.1, 0.8], [[0.5, 0.9], [0.2, 0.4], [0.9, 0.9]], True, False),
        ([0.1, 0.1], [[0.5]], True, False),
    ],
)
def test_the_median_rule(values, others, maximize, expected):
    assert is_hopeless(values, others, maximize=maximize) is expected
