"""Requests and answers in HTTP/1.1's plainest form: what clients of an endpoint send nearly always.

A POST about whose end there is no doubt becomes a WSGI environment in fewer calls than by a parser of all of HTTP, and
an answer of known length leaves in one piece. No parser: whatever is not that plain is left to
gunicorn's. Knows bytes and sockets; not what is asked for.

Sources: RFC 9112, 2.1 and 5 (heads), 6.3 (where a body ends); RFC 9110, 5.6.2 (tokens); PEP 3333 (WSGI).
"""

from __future__ import annotations

import io
import re
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gunicorn import SERVER
from gunicorn.util import http_date

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

READ_BYTES = 8192
"""Of a head that are looked at, at once; more than gunicorn lets a first line have."""

_FIRST_LINE = re.compile(rb"\S+ \S+ HTTP/\d\.\d")
# No underscores in names, which WSGI could not tell from hyphens; no obsolete folding, no bytes beyond ASCII.
_PLAIN = re.compile(
    rb"POST (?P<path>/[-./0-9A-Z_a-z]*) HTTP/1\.1\r\n"
    rb"(?P<headers>(?:[-!#$%&'*+.^`|~0-9A-Za-z]+:[\t -~]*\r\n)+)\r\n"
)
_LENGTH = re.compile(r"[0-9]{1,12}")
# Each says that the body, or the connection, is not what it seems.
_NOT_PLAIN = frozenset({"HTTP_EXPECT", "HTTP_TRANSFER_ENCODING", "HTTP_UPGRADE", "HTTP_TRAILER", "HTTP_HTTP2_SETTINGS"})


@dataclass(frozen=True, slots=True)
class PlainPost:
    """A POST about whose end there is no doubt.

    Attributes:
        path: without a query.
        headers: named as in WSGI: `HTTP_X_REQUEST_ID`, `CONTENT_TYPE`.
        head_bytes: of request line and headers.
        body_bytes: behind them.
        keeps: the client means to go on with the connection.
    """

    path: str
    headers: dict[str, str]
    head_bytes: int
    body_bytes: int
    keeps: bool


def is_whole(head: bytes) -> bool:
    """Whether these first bytes of a request are a whole head, or one that will be refused."""
    head = head.removeprefix(b"\r\n")  # an empty line before a request is none of its own (RFC 9112, 2.2)
    first_line, ended, _ = head.partition(b"\r\n")
    if not ended:
        return len(head) >= READ_BYTES
    return b"\r\n\r\n" in head or _FIRST_LINE.fullmatch(first_line) is None


def read_plain_post(arrived: bytes) -> PlainPost | None:
    """The request that begins with these bytes; None for all that is not a POST in HTTP/1.1's plainest form.

    Plain is: no query, a host, no header twice, and a body whose length is said and which is sent without being asked
    for.
    """
    found = _PLAIN.match(arrived)
    if found is None:
        return None
    headers: dict[str, str] = {}
    for line in found["headers"].decode("ascii").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name = "HTTP_" + name.upper().replace("-", "_")
        if name in headers or name in _NOT_PLAIN:
            return None
        headers[name] = value.strip(" \t")
    length, connection = headers.pop("HTTP_CONTENT_LENGTH", ""), headers.get("HTTP_CONNECTION", "").lower()
    if _LENGTH.fullmatch(length) is None or connection not in ("", "keep-alive", "close") or "HTTP_HOST" not in headers:
        return None
    headers["CONTENT_LENGTH"] = length
    if "HTTP_CONTENT_TYPE" in headers:
        headers["CONTENT_TYPE"] = headers.pop("HTTP_CONTENT_TYPE")
    return PlainPost(found["path"].decode("ascii"), headers, found.end(), int(length), connection != "close")


class Body(io.RawIOBase):
    """A body of known length, still on its socket.

    Attributes:
        left: bytes that have not been read.
    """

    def __init__(self, connection: socket.socket, length: int) -> None:
        super().__init__()
        self._connection = connection
        self.left = length

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  any buffer
        """Fills the buffer, or as much of it as there is body; less where the client ends before it.

        Raises:
            OSError: the connection broke, or stalled for longer than its timeout.
        """
        room = memoryview(buffer)[: self.left]
        filled = 0
        while filled < len(room):
            arrived = self._connection.recv_into(room[filled:], 0, socket.MSG_WAITALL)
            if not arrived:
                break
            filled += arrived
        self.left -= filled
        return filled


def answer(
    app: WSGIApplication, request: PlainPost, connection: socket.socket, client: tuple[str, int], *, keeps: bool
) -> tuple[bytes, bool]:
    """Asks a WSGI application whose answer is known to have a length.

    Args:
        app: is asked.
        request: whose head has been taken off the connection.
        connection: with the body.
        client: its address.
        keeps: whether the connection may go on.

    Returns:
        The whole answer, and whether the connection goes on; it does not where the app left a part of the body.
    """
    body = Body(connection, request.body_bytes)
    environ: WSGIEnvironment = {
        **request.headers,
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path,
        "QUERY_STRING": "",
        "SERVER_NAME": request.headers["HTTP_HOST"].partition(":")[0],
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": client[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": body,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,  # perhaps
        "wsgi.run_once": False,
        "gunicorn.socket": connection,
    }
    begun: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], _error: object = None) -> Any:  # noqa: ANN401
        begun.append((status, headers))

    parts = app(environ, start_response)
    try:
        content = b"".join(parts)
    finally:
        if hasattr(parts, "close"):
            parts.close()
    status, headers = begun[-1]
    keeps = keeps and not body.left
    return frame(status, headers, content, keeps=keeps), keeps


def frame(status: str, headers: Iterable[tuple[str, str]], content: bytes, *, keeps: bool) -> bytes:
    """A whole answer, as gunicorn would write it.

    Args:
        status: as WSGI has it, `200 OK`.
        headers: with the content's length; trusted to be fit for a head.
        content: the body.
        keeps: tell the client that the connection goes on.
    """
    head = [
        f"HTTP/1.1 {status}\r\nServer: {SERVER}\r\nDate: {http_date()}\r\n"
        f"Connection: {'keep-alive' if keeps else 'close'}\r\n"
    ]
    head += [f"{name}: {value}\r\n" for name, value in headers]
    head.append("\r\n")
    return "".join(head).encode("latin-1") + content
