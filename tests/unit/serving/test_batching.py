"""What waits is computed together, in order, and nobody is left waiting or pays for another's fault."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.unit.serving.test_admission import until

from dogbreed.serving.batching import Batcher


class Computer:
    """Doubles numbers; notes the batches; can be held, and can be made to fail."""

    def __init__(self):
        self.batches = []
        self.go_on = threading.Event()
        self.inside = threading.Semaphore(0)
        self.fails = lambda items: False

    def __call__(self, items):
        self.batches.append(list(items))
        self.inside.release()
        assert self.go_on.wait(10)
        if self.fails(items):
            raise MemoryError(f"{len(items)} are too many")
        return [2 * item for item in items]


@pytest.fixture
def computer():
    return Computer()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as threads:
        yield threads


def submit(pool, batcher, *calls):
    """One after the other, so that their order is known."""
    futures = []
    for call in calls:
        waiting = len(batcher._queue)
        futures.append(pool.submit(batcher, call))
        until(lambda waiting=waiting: len(batcher._queue) > waiting)
    return futures


def start(pool, batcher, computer, call):
    first = pool.submit(batcher, call)
    assert computer.inside.acquire(timeout=10)
    return first


def test_a_call_alone_is_computed_at_once(computer):
    computer.go_on.set()
    assert Batcher(computer, cap=4)([1, 2]) == [2, 4]
    assert computer.batches == [[1, 2]]


def test_what_waits_goes_together_up_to_the_cap_and_in_order(pool, computer):
    batcher = Batcher(computer, cap=4)
    first = start(pool, batcher, computer, [0])
    others = submit(pool, batcher, [1], [2, 3], [4, 5], [6])
    computer.go_on.set()
    assert [future.result(10) for future in (first, *others)] == [[0], [2], [4, 6], [8, 10], [12]]
    assert computer.batches == [[0], [1, 2, 3], [4, 5, 6]]


def test_a_call_larger_than_the_cap_is_computed_alone(pool, computer):
    batcher = Batcher(computer, cap=2)
    first = start(pool, batcher, computer, [0])
    others = submit(pool, batcher, [1, 2, 3], [4])
    computer.go_on.set()
    assert [future.result(10) for future in (first, *others)] == [[0], [2, 4, 6], [8]]
    assert computer.batches == [[0], [1, 2, 3], [4]]


def test_lanes_compute_side_by_side(pool, computer):
    batcher = Batcher(computer, cap=4, lanes=2)
    calls = [start(pool, batcher, computer, [number]) for number in (1, 2)]
    assert computer.batches == [[1], [2]]
    computer.go_on.set()
    assert [call.result(10) for call in calls] == [[2], [4]]


def test_a_batch_that_is_too_large_is_tried_in_parts(pool, computer):
    batcher = Batcher(computer, cap=8)
    computer.fails = lambda items: len(items) > 2
    first = start(pool, batcher, computer, [0])
    others = submit(pool, batcher, [1, 2], [3], [4])
    computer.go_on.set()
    assert [future.result(10) for future in (first, *others)] == [[0], [2, 4], [6], [8]]
    assert computer.batches == [[0], [1, 2, 3, 4], [1, 2], [3, 4]]


def test_a_fault_reaches_only_the_call_that_it_is_of(pool, computer):
    batcher = Batcher(computer, cap=8)
    computer.fails = lambda items: 3 in items
    first = start(pool, batcher, computer, [0])
    before, at_fault, behind = submit(pool, batcher, [1, 2], [3], [4])
    computer.go_on.set()
    assert [future.result(10) for future in (first, before, behind)] == [[0], [2, 4], [8]]
    with pytest.raises(MemoryError, match="1 are too many"):
        at_fault.result(10)


def test_many_threads_all_get_their_own(pool):
    batcher = Batcher(lambda items: [2 * item for item in items], cap=5, lanes=2)
    assert list(pool.map(lambda number: batcher([number, -number]), range(500))) == [
        [2 * number, -2 * number] for number in range(500)
    ]


@pytest.mark.parametrize(("cap", "lanes"), [(0, 1), (1, 0)])
def test_nothing_at_once_is_refused(cap, lanes):
    with pytest.raises(ValueError, match="at least 1"):
        Batcher(list, cap=cap, lanes=lanes)
