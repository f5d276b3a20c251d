"""What InvokeEndpoint does between its client and the container: limits, headers, routing, errors.

Knows the service's rules; the gateway in front of it knows HTTP, the fleet behind it knows instances.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from local_test.simulator.hosting import eventstream, faults, headers, unpacking, wire
from local_test.simulator.hosting.events import Events
from local_test.simulator.hosting.faults import Fault
from local_test.simulator.hosting.fleet import AllBusyError, Fleet, Instance
from local_test.simulator.hosting.headers import Operation
from local_test.simulator.hosting.models import LoadingError, Models, NoSuchModelError, StillLoadingError
from local_test.simulator.hosting.rules import Invocations

VARIANT = "AllTraffic"

_GONE = 404
_NO_MEMORY = 507
_LOOK_S = 5.0


@dataclass(frozen=True)
class Request:
    """A client's request.

    Args:
        id: told to the client and in the log.
        operation: that it called.
        headers: names in lower case.
        body: whole, or a file.
    """

    id: str
    operation: Operation
    headers: Mapping[str, str]
    body: bytes | IO[bytes]

    @property
    def size(self) -> int:
        """Of the body, in bytes."""
        return len(self.body) if isinstance(self.body, bytes) else Path(self.body.name).stat().st_size

    def header(self, name: str) -> str | None:
        """Its value, by the name as the API model writes it."""
        return self.headers.get(name.lower())


@dataclass(frozen=True)
class Reply:
    """An answer to a client.

    Args:
        status: of HTTP.
        headers: beside those of every answer.
        body: whole, or parts that come one after the other.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes | Iterator[bytes]


@dataclass(frozen=True)
class Several:
    """The models of a multi-model endpoint.

    Args:
        archives: folder of tarballs.
        inside: where the container sees its /opt/ml; None for where this machine sees it.
        limit_bytes: of an instance's memory.
    """

    archives: Path
    inside: str | None = None
    limit_bytes: int | None = None


@dataclass
class _Course:
    """One request on its way.

    Attributes:
        request: the client's.
        stack: gives back the instance, the model and the connection.
        began_s: when its time began.
        instance: that it went to.
        got: bytes of the answer.
    """

    request: Request
    stack: ExitStack = field(default_factory=ExitStack)
    began_s: float = field(default_factory=time.monotonic)
    instance: Instance | None = None
    got: int = 0

    @property
    def at(self) -> str:
        return self.instance.name if self.instance is not None else ""

    def left_s(self, within_s: float) -> float:
        return max(within_s - (time.monotonic() - self.began_s), 0.001)


class Endpoint:
    """One endpoint with one variant.

    Args:
        name: by which clients call it.
        fleet: its instances.
        rules: for every request.
        events: are told of every request.
        several: for a multi-model endpoint.
    """

    def __init__(
        self, name: str, fleet: Fleet, *, rules: Invocations, events: Events, several: Several | None = None
    ) -> None:
        self.name = name
        self.rules = rules
        self._fleet = fleet
        self._events = events
        self._several = several
        self._models: dict[str, Models] = {}

    def invoke(self, request: Request, *, within_s: float | None = None, wait_s: float = 0.0) -> Reply:
        """Answers a request whole.

        Args:
            request: the client's.
            within_s: instead of the time that the rules give it.
            wait_s: for an instance to come free, before that time begins.

        Raises:
            Fault: the service's error.
        """
        course = _Course(request)
        try:
            with course.stack:
                opened, variant_headers = self._ask(course, within_s or self.rules.answer_s, wait_s)
                body = self._read(opened, course)
                reply = Reply(200, variant_headers, body)
        except Fault as fault:
            self._told(course, fault)
            raise
        course.got = len(body)
        self._told(course, None)
        return reply

    def stream(self, request: Request) -> Reply:
        """Answers a request in parts, as they come from the container.

        Raises:
            Fault: the service's error, when it is known before the first part.
        """
        course = _Course(request)
        try:
            opened, variant_headers = self._ask(course, self.rules.stream_s)
        except Fault as fault:
            course.stack.close()
            self._told(course, fault)
            raise
        except BaseException:
            course.stack.close()
            raise
        passed = {"Content-Type": eventstream.CONTENT_TYPE, **variant_headers}
        return Reply(200, passed, self._parts(opened, course))

    def close(self) -> None:
        """Stops loading models."""
        for models in self._models.values():
            models.close()

    def _ask(self, course: _Course, within_s: float, wait_s: float = 0.0) -> tuple[wire.Opened, dict[str, str]]:
        """Sends a request on; the answer's head is there, and is a success."""
        request = course.request
        self._check(request)
        try:
            passed = headers.to_container(request.operation, request.headers)
        except headers.HeaderError as error:
            raise faults.validation(str(error)) from error
        instance = self._borrow(course, wait_s)
        if wait_s:
            course.began_s = time.monotonic()
        course.instance = instance
        log_stream = faults.log_stream(self.name, VARIANT, instance.name)
        try:
            opened = self._send(course, instance, passed, within_s)
            if opened.status >= 300:
                text = opened.read().decode(errors="replace")
                raise faults.model_error(opened.status, text, log_stream)
        except LoadingError as error:
            raise faults.model_error(error.status, error.text, log_stream) from error
        except wire.NoAnswerError as error:
            raise self._broken(course, error) from error
        self._keep_session(opened, instance)
        return opened, headers.to_client(request.operation, opened.headers, VARIANT)

    def _check(self, request: Request) -> None:
        if request.size > self.rules.payload_bytes:
            raise faults.too_large(self.rules.payload_bytes)
        variant = request.header(headers.TARGET_VARIANT) or VARIANT
        if variant != VARIANT:
            raise faults.validation(f"Variant {variant} was not found; this endpoint has {VARIANT} alone.")
        for name, what in ((headers.COMPONENT, "inference components"), (headers.CONTAINER, "several containers")):
            if request.header(name) is not None:
                raise faults.validation(f"Endpoint {self.name} has no {what}.")
        target = request.header(headers.TARGET_MODEL)
        if target is not None and self._several is None:
            raise faults.validation(
                f"Endpoint {self.name} is not a multi-model endpoint and does not support target model header."
            )
        if target is None and self._several is not None:
            raise faults.validation(f"Endpoint {self.name} is a multi-model endpoint and needs a TargetModel.")

    def _borrow(self, course: _Course, wait_s: float) -> Instance:
        session = course.request.header(headers.SESSION_ID)
        target = course.request.header(headers.TARGET_MODEL)
        holders = [name for name, models in list(self._models.items()) if target in models.loaded()] if target else []
        at_most = self.rules.at_once
        try:
            return course.stack.enter_context(
                self._fleet.borrow(session=session, preferred=holders, at_most=at_most, wait_s=wait_s)
            )
        except AllBusyError as error:
            if at_most is not None:
                raise (faults.throttled() if self._fleet.in_service() else faults.provisioning()) from error
            raise faults.unavailable(str(error)) from error

    def _send(self, course: _Course, instance: Instance, passed: Mapping[str, str], within_s: float) -> wire.Opened:
        target = course.request.header(headers.TARGET_MODEL)
        if target is None or self._several is None:
            return self._post(course, instance, "/invocations", passed, within_s)
        models = self._models_of(instance, self._several)
        while True:
            try:
                key = course.stack.enter_context(models.use(target, course.left_s(within_s)))
            except NoSuchModelError as error:
                raise faults.validation(f"Failed to download model data: {error}.") from error
            except unpacking.ArchiveError as error:
                raise faults.validation(f"Failed to extract model data: {error}.") from error
            except StillLoadingError as error:
                raise faults.model_not_ready(target) from error
            opened = self._post(course, instance, f"/models/{key}/invoke", passed, within_s)
            # Another model may go to make room for this one; one that the container lost is loaded again.
            if opened.status == _NO_MEMORY and models.make_room(target):
                continue
            if opened.status == _GONE and not self._has(instance, key):
                models.forget(target)
                continue
            return opened

    @staticmethod
    def _has(instance: Instance, key: str) -> bool:
        return wire.ask(instance.address, "GET", f"/models/{key}", within_s=_LOOK_S).status == 200

    @staticmethod
    def _post(
        course: _Course, instance: Instance, path: str, passed: Mapping[str, str], within_s: float
    ) -> wire.Opened:
        left_s = course.left_s(within_s)
        return course.stack.enter_context(
            wire.opened(instance.address, "POST", path, body=course.request.body, headers=passed, within_s=left_s)
        )

    def _models_of(self, instance: Instance, several: Several) -> Models:
        if instance.name not in self._models:
            there = {one.name for one in self._fleet.in_service()}
            for name in [name for name in list(self._models) if name not in there]:
                self._models.pop(name).close()
            made = Models(
                several.archives,
                instance.launched.root,
                inside=several.inside or str(instance.launched.root),
                address=instance.address,
                loading_s=self.rules.loading_s,
                limit_bytes=several.limit_bytes,
                memory_bytes=instance.launched.running.memory_bytes,
                tell=lambda event, text: self._events.tell(event, f"{instance.name} {text}", instance=instance.name),
            )
            # Two first requests at once: one of the two is kept.
            return self._models.setdefault(instance.name, made)
        return self._models[instance.name]

    def _keep_session(self, opened: wire.Opened, instance: Instance) -> None:
        minted = opened.headers.get(headers.NEW_SESSION_ID.lower())
        if minted is not None:
            # "ID; Expires=2026-01-01T00:00:00Z"
            self._fleet.open_session(minted.partition(";")[0].strip(), instance)
        closed = opened.headers.get(headers.CLOSED_SESSION_ID.lower())
        if closed is not None:
            self._fleet.close_session(closed)

    def _read(self, opened: wire.Opened, course: _Course) -> bytes:
        try:
            return opened.read()
        except wire.NoAnswerError as error:
            raise self._broken(course, error) from error

    def _broken(self, course: _Course, error: wire.NoAnswerError) -> Fault:
        """What the client is told of a container that did not answer."""
        if isinstance(error, wire.TooLateError):
            return faults.timed_out(faults.log_stream(self.name, VARIANT, course.at))
        if course.instance is not None:
            self._fleet.doubt(course.instance)
        return faults.no_answer(course.request.id, str(error))

    def _parts(self, opened: wire.Opened, course: _Course) -> Iterator[bytes]:
        told: Fault | None = None
        with course.stack:
            try:
                for part in opened.parts():
                    course.got += len(part)
                    yield eventstream.payload_part(part)
            except wire.NoAnswerError as error:
                late = isinstance(error, wire.TooLateError)
                code = "MODEL_INVOCATION_TIME_EXCEEDED" if late else "STREAM_BROKEN"
                told = Fault(200, f"ModelStreamError({code})", str(error))
                yield eventstream.stream_error(code, str(error))
            finally:
                self._told(course, told)

    def _told(self, course: _Course, fault: Fault | None) -> None:
        self._events.request(
            course.request.id,
            _outcome(fault),
            instance=course.at,
            seconds=time.monotonic() - course.began_s,
            sent=course.request.size,
            got=course.got,
            told=_words(fault),
        )


def _outcome(fault: Fault | None) -> str:
    if fault is None:
        return "200"
    kind = fault.kind or str(fault.status)
    status = fault.fields.get("OriginalStatusCode")
    return kind if status is None else f"{kind}({status})"


def _words(fault: Fault | None) -> str:
    if fault is None:
        return ""
    return str(fault.fields.get("OriginalMessage", fault))
