"""The port that leads past the service."""

from __future__ import annotations

import socket
import socketserver
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from local_test.simulator.hosting.door import Door
from local_test.simulator.processes import free_port

WITHIN_S = 60


class Backwards(socketserver.StreamRequestHandler):
    """Says every line backwards, and goodbye when no more comes."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.strip()[::-1] + b"\n")
        self.wfile.write(b"goodbye\n")


@pytest.fixture
def inside() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Backwards) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def opened(address: str | None) -> Iterator[Door]:
    with closing(Door(0, lambda: address)) as door:
        door.open()
        yield door


def connected(door: Door) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(door.address.rpartition(":")[2])), timeout=WITHIN_S)


def test_bytes_go_both_ways_until_both_sides_are_done(inside):
    with opened(inside) as door, connected(door) as connection, connection.makefile("rb") as answers:
        for word in (b"one", b"two"):
            connection.sendall(word + b"\n")
            assert answers.readline() == word[::-1] + b"\n"
        connection.shutdown(socket.SHUT_WR)
        assert answers.readline() == b"goodbye\n"
        assert answers.read() == b""


def test_its_end_is_the_end_of_its_connections(inside):
    with opened(inside) as door, connected(door) as connection, connection.makefile("rb") as answers:
        connection.sendall(b"one\n")
        assert answers.readline() == b"eno\n"
        door.close()
        assert answers.read() in (b"", b"goodbye\n")


@pytest.mark.parametrize("address", [None, "unused"])
def test_nobody_inside_is_a_503(address):
    with opened(f"http://127.0.0.1:{free_port()}" if address else None) as door:
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            urllib.request.urlopen(f"{door.address}/ping", timeout=WITHIN_S)
        with caught.value as error:
            assert b"no instance is in service" in error.read()
