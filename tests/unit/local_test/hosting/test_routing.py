from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_test.simulator.hosting.routing import choose

COUNTS = st.dictionaries(st.sampled_from([f"i-{number}" for number in range(5)]), st.integers(0, 4))


@given(COUNTS)
def test_the_fewest_requests_under_way_win(outstanding: dict[str, int]) -> None:
    chosen = choose(outstanding)
    if not outstanding:
        assert chosen is None
    else:
        assert outstanding[chosen] == min(outstanding.values())


def test_idle_instances_take_turns() -> None:
    assert choose({"a": 0, "b": 0}, last=["b", "a"]) == "b"
    assert choose({"a": 0, "b": 0}, last=["a", "b"]) == "a"
    assert choose({"a": 0, "new": 0}, last=["a"]) == "new"


def test_a_session_stays_where_it_began() -> None:
    assert choose({"a": 0, "b": 3}, own="b") == "b"
    assert choose({"a": 0}, own="gone") == "a"


@pytest.mark.parametrize(("counts", "expected"), [({"a": 0, "b": 0}, "b"), ({"a": 0, "b": 2}, "a")])
def test_an_instance_that_holds_the_model_is_preferred_while_it_is_free(counts: dict[str, int], expected: str) -> None:
    assert choose(counts, preferred=["b"], at_most=2) == expected


def test_a_full_instance_gets_nothing() -> None:
    assert choose({"a": 1, "b": 1}, at_most=1) is None
    assert choose({"a": 1, "b": 0}, at_most=1) == "b"
    assert choose({"a": 1}, own="a", at_most=1) is None
