"""A second port, whose connections go straight on to an instance: pages, /ping, and /invocations without the service.

SageMaker has no such door. It is for people who look at what they serve. Knows TCP and addresses, and of HTTP only how
to say that nobody is there.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

_CONNECT_S = 5.0
_PART_BYTES = 64 * 1024
_NOBODY = b"no instance is in service; its log tells more\n"
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_NOBODY), _NOBODY)
)


class Door:
    """Passes connections on, bytes as they are.

    Args:
        port: on 127.0.0.1; 0 for any.
        choose: base URL of an instance for a new connection; None when there is none.

    Raises:
        OSError: the port cannot be used.
    """

    def __init__(self, port: int, choose: Callable[[], str | None]) -> None:
        self._server = _Server(port, choose)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    @property
    def address(self) -> str:
        """For a browser."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def open(self) -> None:
        """Takes connections; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """Takes no more connections, and ends those that are open."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
        self._server.end_all()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, choose: Callable[[], str | None]) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.choose = choose
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

    def begin(self, *both: socket.socket) -> None:
        with self._lock:
            self._open.update(both)

    def end(self, *both: socket.socket) -> None:
        with self._lock:
            self._open.difference_update(both)

    def end_all(self) -> None:
        with self._lock:
            for one in self._open:
                _shut(one, socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Either side that left is no news."""


class _Connection(socketserver.BaseRequestHandler):
    server: _Server
    request: socket.socket

    def handle(self) -> None:
        """Until both sides have said all."""
        address = self.server.choose()
        try:
            if address is None:
                raise ConnectionRefusedError
            where = urlsplit(address)
            inside = socket.create_connection((where.hostname or "", where.port or 80), timeout=_CONNECT_S)
        except OSError:
            # What came is read, so that the answer is not lost with a reset.
            self.request.recv(_PART_BYTES)
            self.request.sendall(_REFUSAL)
            return
        inside.settimeout(None)
        with inside:
            self.server.begin(self.request, inside)
            back = threading.Thread(target=_pass_on, args=(inside, self.request), daemon=True)
            back.start()
            _pass_on(self.request, inside)
            back.join()
            self.server.end(self.request, inside)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Until the source ends; then the target is told that nothing more comes."""
    with contextlib.suppress(OSError):
        while part := source.recv(_PART_BYTES):
            target.sendall(part)
    _shut(target, socket.SHUT_WR)


def _shut(one: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(how)
