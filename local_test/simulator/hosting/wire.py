"""Requests to a subject's server, within a time that holds for the whole answer and not only for its silences.

Every request has a connection of its own. Pooled ones would save a fraction of a millisecond on this machine, and
bring errors that have nothing to do with the subject: a server may close a waiting connection at any moment.

Knows HTTP/1.1 and time; nothing of SageMaker.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO
from urllib.parse import urlsplit

Body = bytes | IO[bytes] | Iterable[bytes]
"""A body: of known length, a file, or parts that are sent in chunks."""

_CONNECT_S = 5.0
_PART_BYTES = 64 * 1024


class NoAnswerError(Exception):
    """The server did not answer as HTTP has it; the message says how far it came."""


class NotAcceptedError(NoAnswerError):
    """The connection was not made: nobody listens, or it took too long. Nothing was sent."""


class TooLateError(NoAnswerError):
    """The answer was not complete in time."""


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    Args:
        status: of HTTP.
        headers: names in lower case.
        body: without any transfer encoding.
        seconds: from the connection's first step to the last byte.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


class Opened:
    """An answer whose body is still to come.

    Attributes:
        status: of HTTP.
        headers: names in lower case.
    """

    def __init__(self, response: http.client.HTTPResponse, deadline: _Deadline) -> None:
        self._response = response
        self._deadline = deadline
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.headers.items()}

    def parts(self) -> Iterator[bytes]:
        """The body as it comes.

        Raises:
            NoAnswerError: it broke off; TooLateError for one that took too long.
        """
        while True:
            try:
                part = self._response.read1(_PART_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise self._deadline.error("the answer broke off", error) from error
            if not part:
                # A body that ends with its connection looks whole when the deadline cut it.
                if self._deadline.passed or (self._response.length or 0) > 0:
                    raise self._deadline.error("the answer broke off", None)
                return
            yield part

    def read(self) -> bytes:
        """All of the body."""
        return b"".join(self.parts())


class _Deadline:
    """Ends a connection from outside when its time is over, whatever it is doing."""

    def __init__(self, connected: socket.socket, within_s: float, of_s: float) -> None:
        self.passed = False
        self._connected = connected
        self._of_s = of_s
        self._timer = threading.Timer(within_s, self._pass)
        self._timer.daemon = True
        self._timer.start()

    def error(self, what: str, cause: Exception | None) -> NoAnswerError:
        """What to raise for a connection that failed."""
        if self.passed:
            return TooLateError(f"no whole answer within {self._of_s:g} s")
        return NoAnswerError(f"{what}: {cause!r}" if cause else what)

    def cancel(self) -> None:
        self._timer.cancel()

    def _pass(self) -> None:
        self.passed = True
        with contextlib.suppress(OSError):
            self._connected.shutdown(socket.SHUT_RDWR)


@contextmanager
def opened(
    address: str,
    method: str,
    path: str,
    *,
    body: Body | None = None,
    headers: Mapping[str, str] | None = None,
    within_s: float,
    accept_s: float = _CONNECT_S,
) -> Iterator[Opened]:
    """Sends a request and waits for the head of its answer.

    Args:
        address: ``http://127.0.0.1:8080``.
        method: of HTTP.
        path: with its query.
        body: None for a request without; parts of unknown length go in chunks.
        headers: beside Host, Content-Length and Transfer-Encoding.
        within_s: for all of it, from the connection to the end of the block.
        accept_s: for the connection alone.

    Raises:
        NotAcceptedError: nothing was sent.
        TooLateError: the time was over.
        NoAnswerError: the connection broke, or what came is not HTTP.
    """
    began_s = time.monotonic()
    url = urlsplit(address)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=min(accept_s, within_s))
    try:
        connection.connect()
    except OSError as error:
        connection.close()
        why = f"within {accept_s:g} s" if isinstance(error, TimeoutError) else f"({error.strerror or error})"
        raise NotAcceptedError(f"no connection to {url.netloc} {why}") from error
    connected: socket.socket = connection.sock
    connected.settimeout(None)  # the deadline ends it
    deadline = _Deadline(connected, max(within_s - (time.monotonic() - began_s), 0.001), within_s)
    response = None
    try:
        try:
            response = _exchange(connection, method, path, body, headers or {})
        except (OSError, http.client.HTTPException) as error:
            raise deadline.error("the connection ended before an answer", error) from error
        yield Opened(response, deadline)
    finally:
        deadline.cancel()
        if response is not None:
            response.close()
        connection.close()


def ask(
    address: str,
    method: str,
    path: str,
    *,
    body: Body | None = None,
    headers: Mapping[str, str] | None = None,
    within_s: float,
    accept_s: float = _CONNECT_S,
) -> Answer:
    """Sends a request and reads the whole answer; arguments and errors are those of `opened`."""
    began_s = time.monotonic()
    with opened(address, method, path, body=body, headers=headers, within_s=within_s, accept_s=accept_s) as response:
        content = response.read()
        return Answer(response.status, response.headers, content, time.monotonic() - began_s)


def _exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: Body | None, headers: Mapping[str, str]
) -> http.client.HTTPResponse:
    # By hand, because request() adds headers that the platform does not send.
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.putheader("Connection", "close")
    length = _length(body)
    if length is not None:
        connection.putheader("Content-Length", str(length))
    elif body is not None:
        connection.putheader("Transfer-Encoding", "chunked")
    refused: OSError | None = None
    try:
        connection.endheaders(body, encode_chunked=body is not None and length is None)
    except (BrokenPipeError, ConnectionResetError) as error:
        # A server that refuses a body early has answered all the same.
        refused = error
    try:
        return connection.getresponse()
    except (OSError, http.client.HTTPException):
        if refused is not None:
            raise refused from None
        raise


def _length(body: Body | None) -> int | None:
    if isinstance(body, bytes):
        return len(body)
    if body is not None and hasattr(body, "seek"):
        file: IO[bytes] = body  # type: ignore[assignment]
        length = file.seek(0, 2)
        file.seek(0)
        return length
    return None
