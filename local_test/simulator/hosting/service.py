"""One endpoint from its start to its end: model, instances, gateway, and the file that tells of it.

Knows the order of events. What is asked for comes as one value, `Plan`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from local_test.simulator import state
from local_test.simulator.hosting import board, faults, launching, unpacking
from local_test.simulator.hosting.asynchronous import Output, Queue, Store
from local_test.simulator.hosting.door import Door
from local_test.simulator.hosting.endpoint import Endpoint, Reply, Request, Several
from local_test.simulator.hosting.events import Events
from local_test.simulator.hosting.faults import Fault
from local_test.simulator.hosting.fleet import Fleet
from local_test.simulator.hosting.gateway import Gateway
from local_test.simulator.hosting.headers import Operation
from local_test.simulator.hosting.launching import Launch
from local_test.simulator.hosting.models import CAPABILITY
from local_test.simulator.hosting.rules import ASYNC_INLINE_BYTES, Health, Invocations
from local_test.simulator.subjects import Limits, Subject, SubjectError

EVENTS = "events.jsonl"
_BIND_CAPABILITY = "com.amazonaws.sagemaker.capabilities.accept-bind-to-port"
_LAST_ANSWERS_S = 5.0
_TRUE = "true"


class PortError(Exception):
    """A port that was asked for cannot be used; the message names it and what to do."""


@dataclass(frozen=True)
class Asynchronous:
    """What an asynchronous endpoint has beside others.

    Args:
        store: folder that stands for S3.
        prefix: s3:// prefix below which answers and errors go.
        at_once: requests at one instance.
        answer_s: for one answer.
    """

    store: Path
    prefix: str
    at_once: int = 4
    answer_s: float = 900.0


@dataclass(frozen=True)
class Plan:
    """An endpoint that is asked for.

    Args:
        name: by which clients call it.
        subject: that serves.
        folder: of the endpoint, emptied at its start.
        model: model.tar.gz or a folder; None with several.
        several: tarballs of a multi-model endpoint.
        instances: to keep in service.
        environment: the user's variables.
        limits: of an instance.
        rules: for every request.
        health: of an instance.
        port: of the gateway; 0 for any.
        bind_to_port: that the subject is told to listen on.
        network_isolation: nothing outside can be reached.
        read_only_disk: tell what is written below /opt/ml.
        asynchronous: InvokeEndpointAsync instead of InvokeEndpoint.
        direct_port: whose connections go past the service to an instance; 0 for any, None for no such port.
    """

    name: str
    subject: Subject
    folder: Path
    model: Path | None = None
    several: Several | None = None
    instances: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    rules: Invocations = field(default_factory=Invocations)
    health: Health = field(default_factory=Health)
    port: int = 0
    bind_to_port: int | None = None
    network_isolation: bool = False
    read_only_disk: bool = False
    asynchronous: Asynchronous | None = None
    direct_port: int | None = None


class Service:
    """A running endpoint.

    Args:
        plan: what is asked for.
        events: are told of everything.

    Raises:
        PortError: one of the ports cannot be used.
    """

    def __init__(self, plan: Plan, events: Events) -> None:
        self._plan = plan
        self._events = events
        self.fleet = Fleet(_launch(plan), count=plan.instances, rules=plan.health, events=events)
        self._endpoint = Endpoint(plan.name, self.fleet, rules=plan.rules, events=events, several=plan.several)
        self._queue = _queue(plan, self._endpoint, events)
        with _asked_for(plan.port):
            self._gateway = Gateway(
                plan.name,
                payload_bytes=ASYNC_INLINE_BYTES if plan.asynchronous else plan.rules.payload_bytes,
                answer=self._answer,
                refused=self._refused,
                port=plan.port,
            )
        self._door: Door | None = None
        if plan.direct_port is not None:
            try:
                with _asked_for(plan.direct_port):
                    self._door = Door(plan.direct_port, self._idlest)
            except PortError:
                self._gateway.close()
                raise

    @property
    def address(self) -> str:
        """For boto3's ``endpoint_url``."""
        return self._gateway.address

    @property
    def direct_address(self) -> str | None:
        """Of the port that leads past the service, if there is one."""
        return None if self._door is None else self._door.address

    def table(self) -> list[tuple[str, ...]]:
        """Its instances and requests now; see `board`."""
        return board.rows(self.fleet.instances(), self._events.counts())

    def open(self, stop: threading.Event) -> bool:
        """Starts all of it, and returns when it is in service; False when ``stop`` came first.

        Raises:
            NotInServiceError: an instance did not come into service.
            SubjectError: the subject cannot be started.
        """
        self._write("Creating")
        self._gateway.open()
        if self._door is not None:
            self._door.open()
        self.fleet.open()
        if not self.fleet.wait_until_in_service(stop):
            return False
        self._write("InService")
        return True

    def close(self, status: str = "Deleted") -> None:
        """Takes no more requests, ends the instances, waits for the last answers."""
        self._gateway.close()
        self._endpoint.close()
        if self._queue is not None:
            self._queue.close()
        self.fleet.close()
        self._gateway.wait_for_answers(_LAST_ANSWERS_S)
        if self._door is not None:
            self._door.close()
        self._write(status, ended=True)

    def _idlest(self) -> str | None:
        there = self.fleet.in_service()
        return min(there, key=lambda one: one.outstanding).address if there else None

    def _write(self, status: str, **more: object) -> None:
        state.write(
            self._plan.folder,
            kind="endpoint",
            name=self._plan.name,
            status=status,
            url=self.address,
            direct_url=self.direct_address,
            subject=self._plan.subject.title,
            instances=self._plan.instances,
            **more,
        )

    def _refused(self, request_id: str, fault: Fault) -> None:
        self._events.request(
            request_id, fault.kind or str(fault.status), instance="", seconds=0.0, sent=0, got=0, told=str(fault)
        )

    def _answer(self, request: Request) -> Reply:
        if (request.operation is Operation.ASYNC) != (self._queue is not None):
            kind, call = ("asynchronous", "Async") if self._queue is not None else ("not asynchronous", "")
            fault = faults.validation(f"Endpoint {self._plan.name} is {kind}; call InvokeEndpoint{call}.")
            self._refused(request.id, fault)
            raise fault
        if self._queue is not None:
            try:
                return self._queue.accept(request)
            except Fault as fault:
                self._refused(request.id, fault)
                raise
        if request.operation is Operation.STREAM:
            return self._endpoint.stream(request)
        return self._endpoint.invoke(request)


@contextmanager
def _asked_for(port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PortError(f"port {port} cannot be used ({error.strerror}); give another, or 0 for any") from error


def prepare(plan: Plan) -> None:
    """Empties the endpoint's folder and puts the model into it; says what the subject cannot do.

    Raises:
        unpacking.ArchiveError: the model cannot be put in place.
        SubjectError: the subject's labels do not allow what is asked for, or the folder cannot be emptied.
    """
    labels = plan.subject.labels
    # Labels are the image's promise; a bare program has none to make.
    if labels and plan.several is not None and labels.get(CAPABILITY) != _TRUE:
        raise SubjectError(f"{plan.subject.title} has no LABEL {CAPABILITY}=true, so SageMaker gives it one model only")
    if labels and plan.bind_to_port is not None and labels.get(_BIND_CAPABILITY) != _TRUE:
        raise SubjectError(f"{plan.subject.title} has no LABEL {_BIND_CAPABILITY}=true; leave --bind-to-port out")
    launching.empty(plan.folder)
    if plan.model is not None:
        unpacking.put_model(plan.model, plan.folder / "model")


def _launch(plan: Plan) -> Launch:
    environment = dict(plan.environment)
    if plan.several is not None:
        environment["SAGEMAKER_MULTI_MODEL"] = _TRUE
    return Launch(
        plan.subject,
        plan.folder,
        plan.folder / "model" if plan.several is None else None,
        environment=environment,
        limits=plan.limits,
        port=plan.bind_to_port,
        network_isolation=plan.network_isolation,
        read_only_disk=plan.read_only_disk,
    )


def _queue(plan: Plan, endpoint: Endpoint, events: Events) -> Queue | None:
    options = plan.asynchronous
    if options is None:
        return None
    prefix = options.prefix.rstrip("/")

    def tell(request_id: str, location: str, succeeded: bool) -> None:
        events.tell(
            "async", f"request {request_id[:8]} is in {location}", good=None if succeeded else False, location=location
        )

    return Queue(
        endpoint,
        Store(options.store),
        Output(prefix, f"{prefix}/failures"),
        workers=options.at_once * plan.instances,
        answer_s=options.answer_s,
        tell=tell,
    )
