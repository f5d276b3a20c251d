"""Reading a request's body, whatever the client and the WSGI server do meanwhile.

A thread that reads waits for its client. The socket's own timeout ends a client that sends nothing; one that sends a
byte a second is ended by a deadline for the whole body, and no more bodies are read at once than leave threads for
`/ping`. Source: RFC 9110, 15.5.9 (408).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.utils import get_content_length
from werkzeug.wsgi import get_input_stream

from dogbreed.errors import RequestError, ServerBusyError, SlowClientError
from dogbreed.serving import documents

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# gunicorn's name for the connection; elsewhere there is none, and the deadline is the server's affair.
_SOCKET = "gunicorn.socket"
_TICK_S = 1.0


class Bodies:
    """Reads bodies. Thread-safe.

    Args:
        limit_bytes: longer ones are refused.
        patience_s: for one whole body.
        at_once: that may be read at the same time; None is any number.
        tick_s: between two looks at who is late.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        limit_bytes: int,
        *,
        patience_s: float = float("inf"),
        at_once: int | None = None,
        tick_s: float = _TICK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit_bytes = limit_bytes
        self._patience_s = patience_s
        self._at_once = at_once
        self._tick_s = tick_s
        self._clock = clock
        self._lock = threading.Lock()
        self._read: dict[object, tuple[float, socket.socket | None]] = {}
        self._late: set[object] = set()
        self._watch: threading.Thread | None = None

    def read(self, environ: WSGIEnvironment) -> bytes:
        """The body of a request.

        Args:
            environ: of the request (PEP 3333).

        Raises:
            RequestEntityTooLarge: it is longer than the limit.
            ServerBusyError: too many are being read.
            SlowClientError: it took too long.
            RequestError: it cannot be read.
        """
        key = self._begin(environ.get(_SOCKET))
        try:
            return self._receive(environ)
        except RequestError as error:
            if key in self._late:
                raise SlowClientError(f"the body did not arrive within {self._patience_s:g} seconds") from error
            raise
        finally:
            with self._lock:
                del self._read[key]
                self._late.discard(key)

    def read_strings(self, environ: WSGIEnvironment, *names: str) -> list[str]:
        """Named strings of the JSON object in the body; raises as `read` does, and RequestError for anything else."""
        try:
            document = documents.read(self.read(environ))
        except ValueError as error:
            raise RequestError(f"the body is not JSON: {error}") from error
        if not isinstance(document, dict) or not all(isinstance(document.get(name), str) for name in names):
            raise RequestError(f"the body must be a JSON object with the strings {', '.join(names)}")
        return [document[name] for name in names]

    def _receive(self, environ: WSGIEnvironment) -> bytes:
        length = get_content_length(environ.get("CONTENT_LENGTH"), environ.get("HTTP_TRANSFER_ENCODING"))
        try:
            if not length:  # of a chunked body there is none
                return self._receive_chunked(environ)
            if length > self._limit_bytes:
                raise RequestEntityTooLarge
            body: bytes = environ["wsgi.input"].read(length)
        except RequestEntityTooLarge:
            raise
        except Exception as error:  # each WSGI server has exceptions of its own for these
            raise RequestError("the body cannot be read: it is malformed, broke off or stalled") from error
        if len(body) < length:
            raise RequestError(f"the body broke off after {len(body)} of {length} bytes")
        return body

    def _receive_chunked(self, environ: WSGIEnvironment) -> bytes:
        body = get_input_stream(environ, max_content_length=self._limit_bytes).read()
        # Of a chunked body over the limit, Werkzeug 3.1 returns the first bytes as if they were all.
        if len(body) == self._limit_bytes and environ["wsgi.input"].read(1):
            raise RequestEntityTooLarge
        return body

    def _begin(self, connection: socket.socket | None) -> object:
        key = object()
        with self._lock:
            if self._at_once is not None and len(self._read) >= self._at_once:
                raise ServerBusyError(f"{len(self._read)} requests are still being received; try again later")
            self._read[key] = (self._clock() + self._patience_s, connection)
            # Not in the constructor: a process that forks would leave the thread behind.
            if self._watch is None and connection is not None:
                self._watch = threading.Thread(target=self._look, name="slow-clients", daemon=True)
                self._watch.start()
        return key

    def _look(self) -> None:
        while True:
            time.sleep(self._tick_s)
            with self._lock:
                for key, (deadline_s, connection) in self._read.items():
                    if deadline_s > self._clock():  # the others began later
                        break
                    if connection is not None and key not in self._late:
                        self._late.add(key)
                        # The thread that waits in recv gets an end of file; an answer can still be sent.
                        with contextlib.suppress(OSError):
                            connection.shutdown(socket.SHUT_RD)
