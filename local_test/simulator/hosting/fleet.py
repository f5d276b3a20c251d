"""The instances of an endpoint: started, watched, replaced, and lent to requests.

Each instance has a thread that starts it, waits for its first 200 of /ping, pings it every few seconds, and starts
another in its place when it has ended or its pings fail. Requests borrow an instance; who asks a dead one says so, and
the instance leaves at once instead of at its next ping.

Knows instances and time; nothing of InvokeEndpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from local_test.simulator.hosting import health
from local_test.simulator.hosting.events import Events
from local_test.simulator.hosting.health import Course, Phase, Ping
from local_test.simulator.hosting.routing import choose
from local_test.simulator.hosting.rules import Health
from local_test.simulator.subjects import Running

# Between two looks at a process, and between two pings of one that starts.
_LOOK_S = 0.25
_STARTING_PING_S = 1.0
# Before a replacement that failed at once is tried again.
_BREATH_S = 2.0
_LOG_LINES = 15


class NotInServiceError(Exception):
    """The endpoint never came to be; the message holds the reason and the end of the log."""


class AllBusyError(Exception):
    """Every instance has as many requests as it may have, or there is none."""


@dataclass(frozen=True)
class Launched:
    """An instance that was started.

    Args:
        running: the subject.
        root: stands for its /opt/ml.
        log: what it writes.
        complaints: what is to be said of it at its end, beside its exit code.
    """

    running: Running
    root: Path
    log: Path
    complaints: Callable[[], Sequence[str]] = tuple


@dataclass
class Instance:
    """One of the endpoint's machines.

    Attributes:
        name: ``i-0001``, counted over the endpoint's life.
        launched: what runs.
        course: what its pings say.
        outstanding: requests under way.
        used: number of its last request, over all instances.
    """

    name: str
    launched: Launched
    course: Course = field(default_factory=Course)
    outstanding: int = 0
    used: int = 0

    @property
    def address(self) -> str:
        """Of its server."""
        return self.launched.running.address


class Fleet:
    """Keeps ``count`` instances in service.

    Args:
        launch: starts one, by name.
        count: to keep.
        rules: of their health.
        events: are told.
        ping: asks one address.
    """

    def __init__(
        self,
        launch: Callable[[str], Launched],
        *,
        count: int,
        rules: Health,
        events: Events,
        ping: Callable[[str, Health], Ping] = health.ping,
    ) -> None:
        self._launch = launch
        self._count = count
        self._rules = rules
        self._events = events
        self._ping = ping
        self._changed = threading.Condition()
        self._ending = threading.Event()
        self._instances: dict[str, Instance] = {}
        self._sessions: dict[str, str] = {}
        self._started = 0
        self._requests = 0
        self._failure: Exception | None = None
        self._threads: list[threading.Thread] = []
        self._farewells: list[threading.Thread] = []

    def open(self) -> None:
        """Starts the instances; returns at once."""
        for _ in range(self._count):
            thread = threading.Thread(target=self._keep, daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait_until_in_service(self, stop: threading.Event) -> bool:
        """Waits for all of them.

        Args:
            stop: ends the wait.

        Returns:
            Whether all are in service; False after ``stop``.

        Raises:
            NotInServiceError: one did not come into service.
            SubjectError: one could not be started.
        """
        while not stop.is_set():
            with self._changed:
                # A signal's handler may not take the lock, and so cannot notify.
                self._changed.wait(_LOOK_S)
                if self._failure is not None:
                    raise self._failure
                if len(self._in_service()) >= self._count:
                    return True
        return False

    def instances(self) -> list[Instance]:
        """All that are there, in the order of their starts."""
        with self._changed:
            return sorted(self._instances.values(), key=lambda one: one.name)

    def in_service(self) -> list[Instance]:
        """Those that take requests now."""
        with self._changed:
            return self._in_service()

    @contextmanager
    def borrow(
        self,
        *,
        session: str | None = None,
        preferred: Collection[str] = (),
        at_most: int | None = None,
        wait_s: float = 0.0,
    ) -> Iterator[Instance]:
        """Lends the instance that a request goes to, and counts the request as under way meanwhile.

        Args:
            session: id of the session that it belongs to.
            preferred: names that are taken before others.
            at_most: requests at one instance.
            wait_s: for an instance to come free or into service.

        Raises:
            AllBusyError: there is none.
        """
        chosen: Instance | None = None
        with self._changed:

            def look() -> bool:
                nonlocal chosen
                chosen = self._choose(session, preferred, at_most)
                return chosen is not None or self._ending.is_set()

            self._changed.wait_for(look, timeout=wait_s)
            if chosen is None:
                raise AllBusyError(f"{len(self._in_service())} of {self._count} instances in service")
            self._requests += 1
            chosen.used = self._requests
            chosen.outstanding += 1
        try:
            yield chosen
        finally:
            with self._changed:
                chosen.outstanding -= 1
                self._changed.notify_all()

    def open_session(self, session: str, instance: Instance) -> None:
        """From now on a session's requests go to this instance."""
        with self._changed:
            self._sessions[session] = instance.name

    def close_session(self, session: str) -> None:
        """Forgets a session."""
        with self._changed:
            self._sessions.pop(session, None)

    def doubt(self, instance: Instance) -> None:
        """Looks at once whether an instance has ended, after a connection to it failed."""
        # The kernel closes a dead process's sockets a moment before its parent hears of its end.
        code = instance.launched.running.wait(_LOOK_S)
        if code is not None:
            self._ended(instance, code)

    def close(self) -> None:
        """Ends every instance: SIGTERM to all, SIGKILL to those that remain after the grace."""
        with self._changed:
            self._ending.set()
            self._changed.notify_all()
        for thread in [*self._threads, *self._farewells]:
            thread.join()

    def _in_service(self) -> list[Instance]:
        return [one for one in self._instances.values() if one.course.phase is Phase.IN_SERVICE]

    def _choose(self, session: str | None, preferred: Collection[str], at_most: int | None) -> Instance | None:
        there = self._in_service()
        name = choose(
            {one.name: one.outstanding for one in there},
            own=self._sessions.get(session) if session else None,
            preferred=preferred,
            at_most=at_most,
            last=[one.name for one in sorted(there, key=lambda one: one.used)],
        )
        return self._instances[name] if name is not None else None

    def _set(self, instance: Instance, change: Callable[[Course], Course]) -> Course:
        """Changes an instance's course, which pings and requests both do."""
        with self._changed:
            before = instance.course
            course = instance.course = change(before)
            self._changed.notify_all()
        if course.phase is Phase.IN_SERVICE and course.failures > before.failures:
            self._tell(instance, "ping_failed", f"failed ping {course.failures}: {course.told}", good=False)
        return course

    def _tell(self, instance: Instance, event: str, text: str, *, good: bool | None = None) -> None:
        self._events.tell(event, f"{instance.name} {text}", good=good, instance=instance.name)

    def _keep(self) -> None:
        """The life of one place in the fleet."""
        while not self._ending.is_set():
            try:
                instance = self._begin()
            except Exception as error:
                if self._replacing():
                    self._events.tell("failed", f"no instance can be started: {error}", good=False)
                    self._ending.wait(_BREATH_S)
                    continue
                self._fail(error)  # whoever waits for the endpoint raises it
                return
            was_in_service = self._watch(instance)
            with self._changed:
                self._instances.pop(instance.name, None)
                ending = self._ending.is_set()
            if ending:
                self._end(instance)
                return
            self._tell(instance, "failed", f"failed: {instance.course.told}", good=False)
            if not was_in_service and not self._replacing():
                self._fail(NotInServiceError(self._reason(instance)))
                self._end(instance)
                return
            # The next one need not wait for the grace of this one.
            farewell = threading.Thread(target=self._end, args=(instance,), daemon=True)
            self._farewells.append(farewell)
            farewell.start()
            self._tell(instance, "replaced", "is replaced")
            if not was_in_service:
                self._ending.wait(_BREATH_S)

    def _begin(self) -> Instance:
        with self._changed:
            self._started += 1
            name = f"i-{self._started:04d}"
        instance = Instance(name, self._launch(name))
        with self._changed:
            self._instances[name] = instance
        self._tell(instance, "starting", f"starts as {instance.launched.running.name}")
        return instance

    def _watch(self, instance: Instance) -> bool:
        """Pings until the instance failed or all is to end; returns whether it ever was in service."""
        began_s = time.monotonic()
        was_in_service = False
        next_ping_s = began_s
        while not self._ending.is_set() and instance.course.phase is not Phase.FAILED:
            code = instance.launched.running.exit_code()
            if code is not None:
                self._ended(instance, code)
                break
            now_s = time.monotonic()
            if now_s >= next_ping_s:
                starting = instance.course.phase is Phase.STARTING
                course = self._observe(instance, now_s - began_s)
                if starting and course.phase is Phase.IN_SERVICE:
                    was_in_service = True
                    self._tell(instance, "in_service", f"InService after {time.monotonic() - began_s:.1f} s", good=True)
                next_ping_s = now_s + (
                    self._rules.every_s
                    if course.phase is Phase.IN_SERVICE
                    else min(_STARTING_PING_S, self._rules.every_s)
                )
            self._ending.wait(min(_LOOK_S, max(next_ping_s - time.monotonic(), 0.0)))
        return was_in_service

    def _ended(self, instance: Instance, code: int) -> None:
        self._set(instance, lambda course: course.ended(code))

    def _observe(self, instance: Instance, age_s: float) -> Course:
        result = self._ping(instance.address, self._rules)
        return self._set(instance, lambda course: course.after(result, age_s, self._rules))

    def _replacing(self) -> bool:
        """Whether the endpoint was once in service, so that a failed start is tried again."""
        return self._events.happened("in_service") >= self._count

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def _reason(self, instance: Instance) -> str:
        text = (
            instance.launched.log.read_text(encoding="utf-8", errors="replace")
            if instance.launched.log.exists()
            else ""
        )
        lines = text.splitlines()[-_LOG_LINES:]
        quoted = "\n".join(f"  | {line}" for line in lines) or "  | (nothing)"
        return (
            f"{instance.name} did not pass the ping health check: {instance.course.told}\nthe end of its log:\n{quoted}"
        )

    def _end(self, instance: Instance) -> None:
        running = instance.launched.running
        began_s = time.monotonic()
        if running.exit_code() is None:
            running.terminate()
            if running.wait(self._rules.grace_s) is None:
                running.kill()
                running.wait(self._rules.grace_s)
                self._tell(
                    instance, "killed", f"still ran {self._rules.grace_s:g} s after SIGTERM and got SIGKILL", good=False
                )
        code = running.exit_code()
        for complaint in instance.launched.complaints():
            self._tell(instance, "complaint", complaint, good=False)
        running.close()
        self._tell(instance, "ended", f"ended with exit code {code} after {time.monotonic() - began_s:.1f} s")
