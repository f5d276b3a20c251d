"""One call's items, worked on by whoever is free."""

import threading

import pytest

from dogbreed.serving.sharing import Helpers


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("items", [0, 1, 2, 7])
def test_results_are_in_order(count, items):
    assert Helpers(count).map(lambda item: item * item, range(items)) == [item * item for item in range(items)]


def test_a_helper_works_at_the_same_time_as_who_calls():
    both = threading.Barrier(2, timeout=5)
    threads = Helpers(1).map(lambda _: (both.wait(), threading.get_ident())[1], range(2))
    assert len(set(threads)) == 2
    assert threading.get_ident() in threads


def test_who_calls_does_not_wait_for_a_helper_that_is_busy():
    helpers, held, begun = Helpers(1), threading.Event(), threading.Event()

    def hold(item):
        if threading.current_thread() is not busy:
            begun.set()
            held.wait(5)
        return item

    busy = threading.Thread(target=helpers.map, args=(hold, range(2)))
    busy.start()
    assert begun.wait(5)
    assert helpers.map(lambda _: threading.get_ident(), range(3)) == [threading.get_ident()] * 3
    held.set()
    busy.join(5)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_first_item_that_fails_is_the_one_that_is_told_of(count):
    def fail_from_three_on(item):
        if item >= 3:
            raise ValueError(item)

    with pytest.raises(ValueError, match=r"^3$"):
        Helpers(count).map(fail_from_three_on, range(100))


def test_after_a_failure_nothing_more_is_begun():
    begun = []

    def fail(item):
        begun.append(item)
        raise ValueError(item)

    with pytest.raises(ValueError, match="0"):
        Helpers(1).map(fail, range(100))
    assert len(begun) <= 2
