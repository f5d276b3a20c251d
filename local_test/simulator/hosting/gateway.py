"""InvokeEndpoint on a port of this machine, in the wire format that boto3's sagemaker-runtime client speaks.

Signatures are not looked at. Knows HTTP and the paths; what a request means is the endpoint's affair.
"""

from __future__ import annotations

import re
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from local_test.simulator.hosting import faults
from local_test.simulator.hosting.endpoint import Reply, Request
from local_test.simulator.hosting.faults import Fault
from local_test.simulator.hosting.headers import Operation

_ROUTE = re.compile(r"^/endpoints/([^/]+)/([a-z-]+)$")
_IDLE_S = 75
_PART_BYTES = 64 * 1024
_OPERATIONS = {operation.value: operation for operation in Operation}


class Gateway:
    """A server for one endpoint.

    Args:
        name: of the endpoint; all others are not found.
        payload_bytes: of a body; a longer one is not kept.
        answer: makes a request a reply, or raises the service's `Fault`.
        refused: is told of what came to no endpoint, by request id.
        port: on 127.0.0.1; 0 for any.
    """

    def __init__(
        self,
        name: str,
        *,
        payload_bytes: int,
        answer: Callable[[Request], Reply],
        refused: Callable[[str, Fault], None],
        port: int = 0,
    ) -> None:
        class Handler(_Handler):
            endpoint = name
            limit_bytes = payload_bytes

            def answer(self, request: Request) -> Reply:
                return answer(request)

            def refuse(self, request_id: str, fault: Fault) -> Reply:
                refused(request_id, fault)
                return _reply(fault)

        self._server = _Server(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    @property
    def address(self) -> str:
        """For boto3's ``endpoint_url``."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def open(self) -> None:
        """Takes requests; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """Takes no more connections. Requests under way are answered."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()

    def wait_for_answers(self, within_s: float) -> None:
        """Waits until the requests under way are answered."""
        self._server.idle(within_s)


class _Server(ThreadingHTTPServer):
    # Clients keep connections open, and would keep the threads.
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._changed = threading.Condition()
        self._under_way = 0

    def begin(self) -> None:
        with self._changed:
            self._under_way += 1

    def end(self) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def idle(self, within_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0, timeout=within_s)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that left is no news."""


class _BadBodyError(Exception):
    """The body's length cannot be told; the connection is of no further use."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S
    disable_nagle_algorithm = True
    server: _Server
    endpoint = ""
    limit_bytes = 0

    def answer(self, request: Request) -> Reply:
        raise NotImplementedError

    def refuse(self, request_id: str, fault: Fault) -> Reply:
        raise NotImplementedError

    def version_string(self) -> str:
        """Of the header Server."""
        return "local-platform"

    def do_POST(self) -> None:
        """The only method of the service."""
        self.server.begin()
        try:
            self._post()
        finally:
            self.server.end()

    def do_GET(self) -> None:
        """Of people who look with a browser."""
        self._send("", self.refuse("", _unknown(self.path)))

    def log_message(self, format: str, *args: object) -> None:
        """Requests are told by the endpoint."""

    def _post(self) -> None:
        request_id = str(uuid.uuid4())
        try:
            reply = self._reply(request_id)
        except _BadBodyError as error:
            self.close_connection = True
            reply = self.refuse(request_id, faults.validation(str(error)))
        except Exception:  # a fault of this tool: the client hears of it, and the connection goes on
            traceback.print_exc()
            reply = _reply(faults.no_answer(request_id, "a fault of the local platform"))
        self._send(request_id, reply)

    def _reply(self, request_id: str) -> Reply:
        try:
            request = self._request(request_id, self._read())
        except Fault as fault:
            return self.refuse(request_id, fault)
        try:
            return self.answer(request)
        except Fault as fault:  # the endpoint has told of it
            return _reply(fault)

    def _request(self, request_id: str, body: bytes | None) -> Request:
        found = _ROUTE.match(urlsplit(self.path).path)
        operation = _OPERATIONS.get(found[2]) if found else None
        if found is None or operation is None:
            raise _unknown(self.path)
        name = unquote(found[1])
        if name != self.endpoint:
            raise faults.no_endpoint(name)
        if body is None:
            raise faults.too_large(self.limit_bytes)
        given = {header.lower(): value for header, value in self.headers.items()}
        return Request(request_id, operation, given, body)

    def _read(self) -> bytes | None:
        """The body; None for one over the limit, which is read to its end all the same: its client listens then."""
        kept: list[bytes] | None = []
        size = 0
        for part in self._parts():
            size += len(part)
            if size > self.limit_bytes:
                kept = None
            elif kept is not None:
                kept.append(part)
        return None if kept is None else b"".join(kept)

    def _parts(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while length := self._chunk_length():
                yield from self._exactly(length)
                self.rfile.readline()
            while self.rfile.readline().strip():
                """Trailers, of which none matters."""
            return
        given = self.headers.get("Content-Length", "0")
        if not given.isdigit():
            raise _BadBodyError(f"Content-Length {given!r} is no number of bytes")
        yield from self._exactly(int(given))

    def _chunk_length(self) -> int:
        line = self.rfile.readline(100).split(b";")[0].strip()
        try:
            return int(line, 16)
        except ValueError as error:
            raise _BadBodyError(f"a chunk begins with {line!r}, which is no length") from error

    def _exactly(self, length: int) -> Iterator[bytes]:
        while length:
            part = self.rfile.read(min(length, _PART_BYTES))
            if not part:
                raise _BadBodyError("the body ended too early")
            length -= len(part)
            yield part

    def _send(self, request_id: str, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("x-amzn-RequestId", request_id)
        self._send_headers(reply.headers)
        if isinstance(reply.body, bytes):
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for part in reply.body:
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        finally:
            close = getattr(reply.body, "close", None)
            if close is not None:  # a client that left ends what still comes
                close()

    def _send_headers(self, headers: Mapping[str, str]) -> None:
        for name, value in headers.items():
            self.send_header(name, value)


def _unknown(path: str) -> Fault:
    message = f"{path!r} is no operation of sagemaker-runtime; POST /endpoints/NAME/invocations is one"
    return Fault(404, "UnknownOperationException", message)


def _reply(fault: Fault) -> Reply:
    return Reply(fault.status, fault.headers, fault.body)
