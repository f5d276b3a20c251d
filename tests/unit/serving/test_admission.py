"""The gate lets so many run, so many wait in order, and refuses the rest at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dogbreed.errors import ClientGoneError, ServerBusyError, WaitedTooLongError
from dogbreed.serving.admission import Budget, Gate


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as threads:
        yield threads


def enter(gate, log, name, leave):
    with gate:
        log.append(name)
        assert leave.wait(10)


def until(condition):
    """Lets other threads run until the condition holds; a thread that never gets there fails the test."""
    pause = threading.Event()
    for _ in range(20_000):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("it never came to that")


def test_a_call_leaves_its_slot_even_when_it_fails():
    gate = Gate(slots=1, waiting=0)
    with pytest.raises(ZeroDivisionError), gate:
        raise ZeroDivisionError
    with gate:
        assert gate.running == 1
    assert (gate.running, gate.waiting, gate.refused) == (0, 0, 0)


def test_the_call_beyond_slots_and_queue_is_refused_at_once(pool):
    gate, leave, log = Gate(slots=2, waiting=1), threading.Event(), []
    calls = [pool.submit(enter, gate, log, name, leave) for name in "abc"]
    until(lambda: gate.running == 2 and gate.waiting == 1)
    with pytest.raises(ServerBusyError, match="2 requests run and 1 wait") as caught, gate:
        pytest.fail("the gate was full")
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
    assert gate.refused == 1
    leave.set()
    for call in calls:
        call.result(10)
    assert (len(log), gate.running, gate.waiting) == (3, 0, 0)


def test_those_who_wait_are_let_in_in_the_order_of_their_coming(pool):
    gate, log = Gate(slots=1, waiting=5), []
    leave = [threading.Event() for _ in range(5)]
    calls = []
    for name in range(5):
        calls.append(pool.submit(enter, gate, log, name, leave[name]))
        until(lambda name=name: gate.running == 1 and gate.waiting == name)
    for name in range(5):
        until(lambda name=name: log[-1:] == [name])
        leave[name].set()
    for call in calls:
        call.result(10)
    assert log == [0, 1, 2, 3, 4]


def test_never_more_than_the_slots_run(pool):
    gate, seen = Gate(slots=3, waiting=100), []

    def call():
        with gate:
            seen.append(gate.running)

    for done in [pool.submit(call) for _ in range(200)]:
        done.result(10)
    assert max(seen) <= 3
    assert (gate.running, gate.waiting, gate.refused) == (0, 0, 0)


def test_a_call_whose_turn_comes_too_late_is_refused_and_the_next_gets_it(pool):
    clock = Clock()
    gate, leave, log = Gate(slots=1, waiting=2, patience_s=60, clock=clock), threading.Event(), []
    first = pool.submit(enter, gate, log, "first", leave)
    until(lambda: gate.running == 1)
    late = pool.submit(enter, gate, log, "late", leave)
    until(lambda: gate.waiting == 1)
    clock.now = 50.0
    patient = pool.submit(enter, gate, log, "patient", leave)
    until(lambda: gate.waiting == 2)
    clock.now = 70.0
    leave.set()
    first.result(10)
    with pytest.raises(WaitedTooLongError, match="no turn within 70 seconds") as caught:
        late.result(10)
    assert caught.value.status == 504
    patient.result(10)
    assert log == ["first", "patient"]
    assert (gate.running, gate.waiting, gate.refused) == (0, 0, 1)


def test_a_call_does_not_wait_beyond_its_patience_for_a_slot_that_never_comes_free(pool):
    gate, leave, log = Gate(slots=1, waiting=1, patience_s=0.01), threading.Event(), []
    first = pool.submit(enter, gate, log, "first", leave)
    until(lambda: gate.running == 1)
    with pytest.raises(WaitedTooLongError, match="no turn within"), gate:
        pytest.fail("the slot was taken")
    assert gate.waiting == 0
    leave.set()
    first.result(10)


def test_a_call_that_nobody_wants_any_more_is_dropped_when_its_turn_comes(pool):
    gate, leave, log = Gate(slots=1, waiting=2), threading.Event(), []
    first = pool.submit(enter, gate, log, "first", leave)
    until(lambda: gate.running == 1)
    there = [True]

    def wait():
        with gate.turn(lambda: there[0]):
            log.append("left")

    gone = pool.submit(wait)
    until(lambda: gate.waiting == 1)
    there[0] = False
    leave.set()
    with pytest.raises(ClientGoneError):
        gone.result(10)
    first.result(10)
    assert log == ["first"]
    with gate.turn():  # the slot is free again
        assert gate.running == 1


def test_a_widened_gate_lets_those_in_who_wait(pool):
    gate, leave, log = Gate(slots=1, waiting=2), threading.Event(), []
    calls = [pool.submit(enter, gate, log, name, leave) for name in "abc"]
    until(lambda: gate.running == 1 and gate.waiting == 2)
    gate.widen(3)
    until(lambda: gate.running == 3)
    gate.widen(1)  # never narrower
    leave.set()
    for call in calls:
        call.result(10)
    assert sorted(log) == ["a", "b", "c"]


@pytest.mark.parametrize(("slots", "waiting"), [(0, 1), (1, -1)])
def test_a_gate_that_lets_nobody_in_is_refused(slots, waiting):
    with pytest.raises(ValueError, match="slots="):
        Gate(slots, waiting)


def test_a_gate_is_full_when_the_next_call_would_be_refused(pool):
    gate, leave = Gate(slots=1, waiting=1), threading.Event()
    assert not gate.is_full()
    assert gate.is_full(coming=2)
    first = pool.submit(enter, gate, [], "first", leave)
    until(lambda: gate.running == 1)
    assert not gate.is_full()
    assert gate.is_full(coming=1)
    second = pool.submit(enter, gate, [], "second", leave)
    until(lambda: gate.waiting == 1)
    assert gate.is_full()
    leave.set()
    first.result(10)
    second.result(10)
    assert not gate.is_full()


def test_who_is_turned_away_at_the_door_is_told_the_same_and_counted():
    gate = Gate(slots=1, waiting=0)
    with gate:
        with pytest.raises(ServerBusyError) as refused:
            gate.__enter__()
        assert str(gate.turn_away()) == str(refused.value)
    assert gate.refused == 2


def test_a_budget_is_shared_in_order():
    budget, order = Budget(10), []
    first, second = budget.take(6), budget.take(4)
    first.__enter__()
    second.__enter__()

    def take(name, amount):
        with budget.take(amount):
            order.append(name)

    waiting = []
    for name, amount in (("large", 99), ("small", 1)):  # what is more than all is all
        waiting.append(threading.Thread(target=take, args=(name, amount)))
        waiting[-1].start()
        time.sleep(0.05)
    first.__exit__(None, None, None)
    time.sleep(0.05)
    assert order == []
    second.__exit__(None, None, None)
    for thread in waiting:
        thread.join(30)
    assert order == ["large", "small"]


def test_what_was_taken_of_a_budget_comes_back_when_a_call_fails():
    budget = Budget(1)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"), budget.take(1):
            raise ValueError("no")
