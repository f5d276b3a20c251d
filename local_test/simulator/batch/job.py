"""A transform job: every object of a folder through the container, an answer for each beside it.

An object that fails gets no answer and makes the job fail at its end; the others go on (AWS docs:
batch-transform-errors). Several instances share the requests, the fewest under way first.

Knows the order of events; how instances live is the fleet's affair.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from local_test.simulator.batch import parameters, records
from local_test.simulator.batch.parameters import Asked, Assemble, Parameters, Split
from local_test.simulator.batch.records import Payload
from local_test.simulator.hosting import wire
from local_test.simulator.hosting.events import Events
from local_test.simulator.hosting.fleet import AllBusyError, Fleet

JOB = "job.json"
_ASK_S = 60.0
_QUOTED_CHARACTERS = 300
_CHUNK_BYTES = 1024 * 1024
# Bodies that are read ahead of those under way.
_AHEAD = 4


@dataclass(frozen=True)
class Plan:
    """A job that is asked for.

    Args:
        name: of the job.
        source: folder of objects.
        output: folder of answers.
        content_type: of every object.
        accept: of every answer; None leaves it to the container.
        asked: by the job, of the container's parameters.
        split: an object into records.
        assemble: answers into an output.
        answer_s: for one answer.
        retries: of one request that failed and was not the client's fault.
        instance_s: to wait for an instance in service.
        pause_s: before the first retry; doubled before the next.
    """

    name: str
    source: Path
    output: Path
    content_type: str
    accept: str | None = None
    asked: Asked = field(default_factory=Asked)
    split: Split = Split.NONE
    assemble: Assemble = Assemble.NONE
    answer_s: float = parameters.DEFAULT_TIMEOUT_S
    retries: int = parameters.MOST_RETRIES
    instance_s: float = 480.0
    pause_s: float = 1.0


@dataclass
class Object:
    """What became of one object.

    Attributes:
        key: its path below the source.
        bytes: of its content.
        requests: that it took, without retries.
        retries: beside them.
        seconds: of all its requests together.
        output: of its answers, relative to the output folder; None for one that failed.
        error: why it failed; None for one that did not.
    """

    key: str
    bytes: int
    requests: int = 0
    retries: int = 0
    seconds: float = 0.0
    output: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Result:
    """A job at its end.

    Args:
        status: Completed, Failed or Stopped.
        reason: of a failure.
        parameters: that held.
        objects: in key order.
        seconds: from the first request to the last answer.
    """

    status: str
    reason: str
    parameters: Parameters
    objects: list[Object]
    seconds: float


@dataclass(frozen=True)
class _Answered:
    """What became of one request."""

    content: bytes = b""
    error: str | None = None
    retries: int = 0
    seconds: float = 0.0


class Transform:
    """Runs a job on instances in service.

    Args:
        plan: what is asked for.
        fleet: its instances.
        instances: how many they are.
        events: are told of every object.
        sleep: waits before a retry.
    """

    def __init__(
        self, plan: Plan, fleet: Fleet, *, instances: int, events: Events, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._plan = plan
        self._fleet = fleet
        self._instances = instances
        self._events = events
        self._sleep = sleep

    def run(self, stop: threading.Event) -> Result:
        """Sends everything; ``stop`` ends it after what is under way.

        Raises:
            ParametersError: the job and the container together ask for more than the platform allows.
        """
        settled = parameters.settle(self._plan.asked, self._container_asks())
        self._events.tell(
            "parameters",
            f"BatchStrategy {settled.strategy}, MaxConcurrentTransforms {settled.at_once}, "
            f"MaxPayloadInMB {settled.payload_mb}, SplitType {self._plan.split}",
        )
        began_s = time.monotonic()
        objects = self._send_all(settled, stop)
        failed = sum(one.error is not None for one in objects)
        status, reason = ("Failed", f"ClientError: {failed} of {len(objects)} objects failed") if failed else ("", "")
        if not objects:
            status, reason = "Failed", f"ClientError: no objects below {self._plan.source}"
        if stop.is_set():
            status, reason = "Stopped", ""
        return Result(status or "Completed", reason, settled, objects, time.monotonic() - began_s)

    def _container_asks(self) -> Asked:
        """What /execution-parameters says; one that cannot be read is told, and is as none."""
        try:
            with self._fleet.borrow(wait_s=self._plan.instance_s) as instance:
                answer = wire.ask(instance.address, "GET", "/execution-parameters", within_s=_ASK_S)
            return parameters.read(answer.status, answer.body)
        except (wire.NoAnswerError, parameters.ParametersError, AllBusyError) as error:
            self._events.tell("complaint", str(error), good=False)
            return Asked()

    def _send_all(self, settled: Parameters, stop: threading.Event) -> list[Object]:
        done: list[Object] = []
        at_once = settled.at_once * self._instances
        waiting: deque[tuple[_Growing, Future[_Answered] | None]] = deque()

        def take() -> None:
            growing, future = waiting.popleft()
            if future is not None:
                growing.take(future.result())
            else:
                done.append(growing.finish())
                self._told(done[-1])

        with ThreadPoolExecutor(at_once, thread_name_prefix="transform") as pool:
            for key in keys(self._plan.source):
                if stop.is_set():
                    break
                growing = _Growing(key, self._plan)
                for payload in growing.bodies(settled):
                    waiting.append((growing, pool.submit(self._ask, payload, settled)))
                    while len(waiting) > _AHEAD * at_once:
                        take()
                    if growing.object.error is not None or stop.is_set():
                        break
                if stop.is_set():
                    growing.give_up("the job was stopped")
                waiting.append((growing, None))
            while waiting:
                take()
        return done

    def _told(self, one: Object) -> None:
        text = f"{one.key} {one.error or one.output}, {one.seconds:.2f} s" + (
            f", {one.retries} retries" if one.retries else ""
        )
        self._events.tell("object", text, good=False if one.error else None, **asdict(one))

    def _ask(self, payload: Payload, settled: Parameters) -> _Answered:
        """One request, with its retries."""
        began_s = time.monotonic()
        answered = _Answered()
        for attempt in range(self._plan.retries + 1):
            if attempt:
                self._sleep(self._plan.pause_s * 2 ** (attempt - 1))
            content, error, again = self._try(payload, settled)
            answered = _Answered(content, error, attempt, time.monotonic() - began_s)
            if not again:
                break
        return answered

    def _try(self, payload: Payload, settled: Parameters) -> tuple[bytes, str | None, bool]:
        """One request: the answer, or an error and whether it is worth another try."""
        headers = {"Content-Type": self._plan.content_type}
        if self._plan.accept is not None:
            headers["Accept"] = self._plan.accept
        try:
            with self._fleet.borrow(at_most=settled.at_once, wait_s=self._plan.instance_s) as instance:
                try:
                    answer = _post(instance.address, payload, headers, settled, self._plan.answer_s)
                except wire.TooLateError as error:
                    return b"", f"{error} (at {instance.name})", True
                except wire.NoAnswerError as error:
                    self._fleet.doubt(instance)
                    return b"", f"{error} (at {instance.name})", True
        except AllBusyError as error:
            return b"", f"no instance in service: {error}", False
        except OSError as error:
            return b"", f"the object cannot be read: {error.strerror}", False
        if answer.status < 300:
            return answer.body, None, False
        text = " ".join(answer.body.decode(errors="replace").split())[:_QUOTED_CHARACTERS]
        return b"", f"{answer.status} {text}", answer.status >= 500


class _Growing:
    """An object on its way, and the file that its answers grow into, which appears whole."""

    def __init__(self, key: str, plan: Plan) -> None:
        self._plan = plan
        self._source = plan.source / key
        self._target = plan.output / f"{key}.out"
        self._part = self._target.with_name(f".{self._target.name}.part")
        self.object = Object(key, 0)

    def bodies(self, settled: Parameters) -> Iterator[Payload]:
        """Of its requests; one that cannot be made is the object's error."""
        try:
            self.object.bytes = self._source.stat().st_size
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._target.unlink(missing_ok=True)  # of an earlier job, where this object may fail
            self._part.write_bytes(b"")
            yield from records.bodies(self._source, self._plan.split, settled)
        except records.TooLargeError as error:
            self.give_up(str(error))
        except OSError as error:
            self.give_up(f"the object cannot be read: {error.strerror}")

    def give_up(self, error: str) -> None:
        """The first error counts."""
        self.object.error = self.object.error or error

    def take(self, answered: _Answered) -> None:
        """The next answer."""
        self.object.requests += 1
        self.object.retries += answered.retries
        self.object.seconds += answered.seconds
        if answered.error is not None:
            self.give_up(answered.error)
        elif self.object.error is None:
            with self._part.open("ab") as file:
                file.write(records.assemble(answered.content, self._plan.assemble))

    def finish(self) -> Object:
        """Puts the output in place, or takes it away."""
        if self.object.error is not None:
            self._part.unlink(missing_ok=True)
        else:
            self._part.replace(self._target)
            self.object.output = str(self._target.relative_to(self._plan.output))
        return self.object


def keys(source: Path) -> list[str]:
    """Paths of all files below a folder, hidden and stray ones too, in the order in which S3 lists keys."""
    found = []
    for folder, _, names in os.walk(source):
        found += [(Path(folder) / name).relative_to(source).as_posix() for name in names]
    return sorted(found, key=os.fsencode)


def write(result: Result, plan: Plan, file: Path) -> None:
    """Writes job.json: the job as DescribeTransformJob has it, and what became of every object."""
    held = result.parameters
    document = {
        "TransformJobName": plan.name,
        "TransformJobStatus": result.status,
        "FailureReason": result.reason,
        "BatchStrategy": "MultiRecord" if held.strategy is parameters.Strategy.MULTI else "SingleRecord",
        "MaxConcurrentTransforms": held.at_once,
        "MaxPayloadInMB": held.payload_mb,
        "SplitType": plan.split,
        "AssembleWith": plan.assemble,
        "ContentType": plan.content_type,
        "Seconds": round(result.seconds, 3),
        "Objects": [asdict(one) for one in result.objects],
    }
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _post(address: str, payload: Payload, headers: dict[str, str], settled: Parameters, within_s: float) -> wire.Answer:
    if isinstance(payload, bytes):
        return wire.ask(address, "POST", "/invocations", body=payload, headers=headers, within_s=within_s)
    with payload.open("rb") as file:
        # Without a limit an object goes in chunks.
        body: wire.Body = file if settled.payload_bytes else iter(lambda: file.read(_CHUNK_BYTES), b"")
        return wire.ask(address, "POST", "/invocations", body=body, headers=headers, within_s=within_s)
