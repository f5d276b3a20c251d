"""InvokeEndpointAsync: requests wait in a queue, bodies and answers are objects of a folder that stands for S3.

``s3://BUCKET/KEY`` is the file FOLDER/BUCKET/KEY. Sources: boto3 API model InvokeEndpointAsync (128,000 bytes inline, 1
to 3,600 s for an answer, 60 to 21,600 s in the queue), AWS docs: async-inference.

Knows the queue and its files; the container is asked by the endpoint.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from local_test.simulator.hosting import faults, headers
from local_test.simulator.hosting.endpoint import Endpoint, Reply, Request
from local_test.simulator.hosting.faults import Fault
from local_test.simulator.hosting.rules import ASYNC_INLINE_BYTES

_LONGEST_ANSWER_S = 3600
_LONGEST_TTL_S = 21600
_SHORTEST_TTL_S = 60


class Store:
    """A folder as S3.

    Args:
        folder: holds a folder for each bucket.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def file(self, location: str) -> Path:
        """Where an object is, whether it exists or not.

        Raises:
            ValueError: it is no s3:// address, or points out of its bucket.
        """
        url = urlsplit(location)
        parts = PurePosixPath(url.path.lstrip("/")).parts
        if url.scheme != "s3" or not url.netloc or url.netloc.startswith(".") or not parts or ".." in parts:
            raise ValueError(f"{location!r} is not of the form s3://BUCKET/KEY")
        return self._folder / url.netloc / Path(*parts)

    def write(self, location: str, content: bytes) -> None:
        """Puts an object, which appears whole."""
        file = self.file(location)
        file.parent.mkdir(parents=True, exist_ok=True)
        growing = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        growing.write_bytes(content)
        growing.replace(file)


@dataclass(frozen=True)
class Output:
    """Where answers go.

    Args:
        success: s3:// prefix for answers.
        failure: s3:// prefix for errors.
    """

    success: str
    failure: str


class Queue:
    """The requests of one asynchronous endpoint.

    Args:
        endpoint: answers them.
        store: of bodies and answers.
        output: names of answers.
        workers: requests at once, over all instances.
        answer_s: for one answer, unless the request says otherwise.
        tell: is told of what came out, by request id and location.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        store: Store,
        output: Output,
        *,
        workers: int,
        answer_s: float,
        tell: Callable[[str, str, bool], None],
    ) -> None:
        self._endpoint = endpoint
        self._store = store
        self._output = output
        self._answer_s = answer_s
        self._tell = tell
        self._ending = threading.Event()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="async")

    def accept(self, request: Request) -> Reply:
        """Takes a request into the queue.

        Raises:
            Fault: it cannot be meant so, or its input is not there.
        """
        inference = request.header(headers.INFERENCE_ID) or str(uuid.uuid4())
        answer_s = _seconds(request, headers.INVOCATION_TIMEOUT, 1, _LONGEST_ANSWER_S, self._answer_s)
        ttl_s = _seconds(request, headers.REQUEST_TTL, _SHORTEST_TTL_S, _LONGEST_TTL_S, _LONGEST_TTL_S)
        file = self._input(request)
        success, failure = self._locations(request)
        self._pool.submit(self._answer, request, file, (success, failure), answer_s, time.monotonic() + ttl_s)
        told = {
            "Content-Type": "application/json",
            "X-Amzn-SageMaker-OutputLocation": success,
            "X-Amzn-SageMaker-FailureLocation": failure,
        }
        return Reply(202, told, json.dumps({"InferenceId": inference}).encode())

    def close(self) -> None:
        """Drops what waits; what is under way is answered."""
        self._ending.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _locations(self, request: Request) -> tuple[str, str]:
        """Of the answer, and of the error that comes in its place."""
        extension = request.header(headers.OUTPUT_EXTENSION)
        prefix = self._output.success if extension is None else f"{self._output.success}/{extension.strip('/')}"
        # Not the id that the client gave: two requests may have the same.
        generated = uuid.uuid4().hex
        success = f"{prefix}/{request.header(headers.FILENAME) or f'{generated}.out'}"
        try:
            self._store.file(success)
        except ValueError as error:
            raise faults.validation(f"S3OutputPathExtension and Filename make {error}") from error
        return success, f"{self._output.failure}/{generated}-error.out"

    def _input(self, request: Request) -> Path | None:
        location = request.header(headers.INPUT_LOCATION)
        if location is not None and request.size:
            raise faults.validation("InputLocation and Body exclude each other; give one of them.")
        if location is None:
            if request.size == 0:
                raise faults.validation("Give an InputLocation or a Body.")
            if request.size > ASYNC_INLINE_BYTES:
                raise faults.too_large(ASYNC_INLINE_BYTES)
            return None
        try:
            file = self._store.file(location)
        except ValueError as error:
            raise faults.validation(f"InputLocation {error}") from error
        if not file.is_file():
            raise faults.validation(f"InputLocation {location} is not there; put the file at {file}")
        return file

    def _answer(
        self, request: Request, file: Path | None, locations: tuple[str, str], answer_s: float, expires_s: float
    ) -> None:
        success, failure = locations
        try:
            left_s = expires_s - time.monotonic()
            if left_s <= 0:
                raise faults.validation("The request expired in the queue.")
            self._store.write(success, self._ask(request, file, answer_s, left_s))
        except Fault as fault:
            self._store.write(failure, fault.body)
            self._tell(request.id, failure, False)
        except OSError as error:
            self._tell(request.id, f"nowhere ({error})", False)
        else:
            self._tell(request.id, success, True)

    def _ask(self, request: Request, file: Path | None, answer_s: float, left_s: float) -> bytes:
        if file is None:
            reply = self._endpoint.invoke(request, within_s=answer_s, wait_s=left_s)
        else:
            with file.open("rb") as body:
                sent = Request(request.id, request.operation, request.headers, body)
                reply = self._endpoint.invoke(sent, within_s=answer_s, wait_s=left_s)
        if not isinstance(reply.body, bytes):
            raise AssertionError("an answer in parts to a request for a whole one")
        return reply.body


def _seconds(request: Request, name: str, least: int, most: int, default: float) -> float:
    text = request.header(name)
    if text is None:
        return default
    if not text.isdigit() or not least <= int(text) <= most:
        raise faults.validation(f"{name} is {text!r}; it is a whole number of seconds from {least} to {most}")
    return float(text)
