"""HTTP as a check needs it: one request a connection, exact headers, and every way of not answering told apart."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit


class NoAnswerError(Exception):
    """No HTTP answer came; the message says how it ended."""


@dataclass(frozen=True)
class Answer:
    """One HTTP answer.

    Args:
        status: of HTTP.
        headers: in the order in which they came.
        body: as it came.
        seconds: from connecting to the last byte.
    """

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes
    seconds: float

    def header(self, name: str) -> str | None:
        """The first header of this name, whatever its case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def text(self) -> str:
        """The beginning of the body, on one line, for evidence."""
        return " ".join(self.body[:400].decode("utf-8", "replace").split())[:160]

    def __str__(self) -> str:
        return f"{self.status} {self.text!r}"


def ask(
    address: str,
    method: str,
    path: str,
    *,
    body: bytes | Iterable[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> Answer:
    """One request; of what HTTP does not demand only the given headers are sent.

    Args:
        address: base URL.
        method: GET, POST, DELETE.
        path: with a slash at its beginning.
        body: an iterable of parts is sent chunked.
        headers: names and values.
        timeout_s: of each step.

    Raises:
        NoAnswerError: the connection was refused, reset or closed, or nothing came in time.
    """
    began = time.monotonic()
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=timeout_s)
    chunked = body is not None and not isinstance(body, bytes)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        elif isinstance(body, bytes):
            connection.putheader("Content-Length", str(len(body)))
        connection.connect()
        # What is refused early breaks the pipe; the answer may be there all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.endheaders(body, encode_chunked=chunked)
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswerError(f"{method} {path}: {_reason(error, timeout_s)}") from error
    finally:
        connection.close()
    return Answer(response.status, response.getheaders(), content, time.monotonic() - began)


def connect_seconds(address: str, timeout_s: float) -> float:
    """How long a connection takes to be accepted; infinite where it is not."""
    parts = urlsplit(address)
    began = time.monotonic()
    try:
        socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), timeout_s).close()
    except OSError:
        return float("inf")
    return time.monotonic() - began


class HalfSent:
    """A request whose head and half of its body are sent, so that it is in hand for certain.

    Args:
        address: base URL.
        path: to POST to.
        body: all of it.
        headers: names and values.
        timeout_s: of each step.

    Raises:
        NoAnswerError: it cannot be sent.
    """

    def __init__(self, address: str, path: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> None:
        parts = urlsplit(address)
        self._timeout_s = timeout_s
        self._rest = body[len(body) // 2 :]
        head = f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(body)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        try:
            self._socket = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), timeout_s)
            self._socket.sendall(head.encode("latin-1") + b"Connection: close\r\n\r\n" + body[: len(body) // 2])
        except OSError as error:
            raise NoAnswerError(f"POST {path}: {_reason(error, timeout_s)}") from error

    def finish(self) -> Answer:
        """Sends the rest and reads the answer.

        Raises:
            NoAnswerError: there is none.
        """
        began = time.monotonic()
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._socket.sendall(self._rest)
            response = http.client.HTTPResponse(self._socket, method="POST")
            response.begin()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswerError(_reason(error, self._timeout_s)) from error
        finally:
            self._socket.close()
        return Answer(response.status, response.getheaders(), content, time.monotonic() - began)


def _reason(error: Exception, timeout_s: float) -> str:
    match error:
        case TimeoutError():
            return f"no answer within {timeout_s:g} s"
        case ConnectionRefusedError():
            return "the connection was refused"
        case http.client.RemoteDisconnected() | http.client.IncompleteRead():
            return "the connection was closed without an answer"
        # RemoteDisconnected is one of them to Python, which is why it stands before.
        case ConnectionResetError() | BrokenPipeError():
            return "the connection was reset without an answer"
        case _:
            return f"{type(error).__name__}: {error}"
