"""Instances that are made up: what they answer to a ping, and when they end, is the test's own doing."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from local_test.simulator.hosting.events import Events
from local_test.simulator.hosting.fleet import AllBusyError, Fleet, Launched, NotInServiceError
from local_test.simulator.hosting.health import Ping
from local_test.simulator.hosting.rules import Health
from local_test.simulator.subjects import SubjectError

PATIENCE_S = 30.0
RULES = Health(start_s=0.0, every_s=0.01, failures=2, grace_s=0.01)


@dataclass
class Made:
    """A subject that runs until it is told to end."""

    name: str
    hears: bool = True
    code: int | None = None
    signals: list[str] = field(default_factory=list)
    closed: bool = False

    @property
    def address(self) -> str:
        return self.name

    def exit_code(self) -> int | None:
        return self.code

    def wait(self, timeout_s: float) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.signals.append("TERM")
        if self.hears:
            self.code = 0

    def kill(self) -> None:
        self.signals.append("KILL")
        self.code = 137

    def memory_bytes(self) -> int | None:
        return None

    def processes(self) -> Sequence[int]:
        return []

    def written(self) -> Sequence[str]:
        return []

    def close(self) -> None:
        self.closed = True


class World:
    """Starts made-up instances, and answers their pings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[Made] = []
        self.ill: set[str] = set()
        self.hears = True
        self.error: Exception | None = None
        self.fleet = Fleet(
            self.launch, count=2, rules=RULES, events=Events(folder / "events", io.StringIO()), ping=self.ping
        )

    def launch(self, name: str) -> Launched:
        if self.error is not None:
            raise self.error
        made = Made(name, self.hears)
        self.made.append(made)
        log = self.folder / f"{name}.log"
        log.write_text(f"{name} says something\n")
        return Launched(made, self.folder, log)

    def ping(self, address: str, rules: Health) -> Ping:
        return Ping(address not in self.ill, "503")

    def names(self) -> set[str]:
        return {one.name for one in self.fleet.in_service()}

    def open(self) -> None:
        self.fleet.open()
        assert self.fleet.wait_until_in_service(threading.Event())


def eventually(condition: Callable[[], bool]) -> None:
    turn = threading.Event()
    for _ in range(int(PATIENCE_S / 0.01)):
        if condition():
            return
        turn.wait(0.01)
    raise AssertionError("it never came to that")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_all_are_in_service_and_all_are_ended(world: World) -> None:
    world.open()
    assert world.names() == {"i-0001", "i-0002"}
    world.fleet.close()
    assert [one.signals for one in world.made] == [["TERM"], ["TERM"]]
    assert all(one.closed for one in world.made)


def test_one_that_does_not_hear_is_killed(world: World) -> None:
    world.hears = False
    world.open()
    world.fleet.close()
    assert [one.signals for one in world.made] == [["TERM", "KILL"]] * 2


def test_one_that_is_ill_is_replaced(world: World) -> None:
    world.open()
    world.ill.add("i-0001")
    eventually(lambda: world.names() == {"i-0002", "i-0003"})
    world.fleet.close()
    assert all(one.closed for one in world.made)


def test_one_that_ended_leaves_as_soon_as_somebody_doubts_it(world: World) -> None:
    world.open()
    with world.fleet.borrow() as instance:
        instance.launched.running.kill()
        world.fleet.doubt(instance)
        assert instance.name not in world.names()
    eventually(lambda: len(world.names()) == 2)
    world.fleet.close()


def test_an_endpoint_that_never_is_healthy_says_why(world: World) -> None:
    world.ill = {"i-0001", "i-0002"}
    world.fleet.open()
    with pytest.raises(NotInServiceError, match=r"no 200 of /ping within 0 s; the last: 503(?s:.*)says something"):
        world.fleet.wait_until_in_service(threading.Event())
    world.fleet.close()
    assert all(one.closed for one in world.made)


def test_a_subject_that_cannot_be_started_is_an_error_at_first_and_tried_again_later(world: World) -> None:
    world.error = SubjectError("there is no image")
    world.fleet.open()
    with pytest.raises(SubjectError, match="there is no image"):
        world.fleet.wait_until_in_service(threading.Event())
    world.fleet.close()


def test_requests_go_round_and_are_counted(world: World) -> None:
    world.open()
    with world.fleet.borrow() as first, world.fleet.borrow() as second:
        assert first.name != second.name
        assert (first.outstanding, second.outstanding) == (1, 1)
        with pytest.raises(AllBusyError, match="2 of 2 instances in service"), world.fleet.borrow(at_most=1):
            pass
    assert (first.outstanding, second.outstanding) == (0, 0)
    world.fleet.close()


def test_a_request_may_wait_for_an_instance(world: World) -> None:
    world.open()
    with world.fleet.borrow() as first, world.fleet.borrow():
        got: list[str] = []

        def wait() -> None:
            with world.fleet.borrow(at_most=1, wait_s=PATIENCE_S) as instance:
                got.append(instance.name)

        waiting = threading.Thread(target=wait)
        waiting.start()
    waiting.join(PATIENCE_S)
    assert got
    assert first.outstanding == 0
    world.fleet.close()


def test_a_session_stays_until_it_is_closed(world: World) -> None:
    world.open()
    with world.fleet.borrow() as instance:
        world.fleet.open_session("s", instance)
    for _ in range(3):
        with world.fleet.borrow(session="s") as again:
            assert again is instance
    world.fleet.close_session("s")
    with world.fleet.borrow(session="s") as other:
        assert other is not instance
    world.fleet.close()


def test_a_stop_ends_the_wait_for_the_start(world: World) -> None:
    stop = threading.Event()
    stop.set()
    assert not world.fleet.wait_until_in_service(stop)
