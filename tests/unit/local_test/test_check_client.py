"""Whatever becomes of a connection, a check hears of an answer or of none."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from local_test.simulator.checks.client import HalfSent, NoAnswerError, ask

# SO_LINGER of no seconds: closing sends a reset.
_RESET = struct.pack("ii", 1, 0)


@contextmanager
def server(answer: bytes, *, reset: bool = False, read: bool = True) -> Iterator[str]:
    """Answers one connection with these bytes, and ends it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            if read:
                connection.recv(65536)
            connection.sendall(answer)
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join()
        listener.close()


def test_an_answer_is_read() -> None:
    with server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nhi") as address:
        answer = ask(address, "GET", "/ping", timeout_s=10)

    assert (answer.status, answer.body, answer.header("content-type")) == (200, b"hi", "text/plain")


def test_an_answer_to_what_was_not_read_is_read() -> None:
    """A server that refuses a body by its size answers before it has read it."""
    with server(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n", read=False) as address:
        request = HalfSent(address, "/invocations", b"0123456789", {}, 10)
        answer = request.finish()

    assert answer.status == 413


@pytest.mark.parametrize(
    ("reset", "told"),
    [(True, "GET /ping: the connection was reset without an answer"), (False, "was closed without an answer")],
)
def test_a_connection_without_an_answer_says_how_it_ended(reset: bool, told: str) -> None:
    with server(b"", reset=reset) as address, pytest.raises(NoAnswerError, match=told):
        ask(address, "GET", "/ping", timeout_s=10)


def test_a_connection_that_nobody_accepts_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with pytest.raises(NoAnswerError, match="the connection was refused"):
        ask(f"http://127.0.0.1:{port}", "GET", "/ping", timeout_s=10)


def test_a_connection_that_is_reset_while_it_opens_has_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server does that stops listening just then; nothing has been sent, so nothing can be answered."""

    def resets(*_: object, **__: object) -> socket.socket:
        raise ConnectionResetError

    monkeypatch.setattr(socket, "create_connection", resets)

    with pytest.raises(NoAnswerError, match="the connection was reset without an answer"):
        ask("http://127.0.0.1:9", "POST", "/invocations", body=b"x", timeout_s=10)


def test_what_takes_too_long_says_how_long_was_waited() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"

        with pytest.raises(NoAnswerError, match=r"no answer within 0\.1 s"):
            ask(address, "GET", "/ping", timeout_s=0.1)
