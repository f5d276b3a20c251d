"""A body is read whole, in time, and beside not too many others."""

import contextlib
import io
import socket
import threading

import pytest
from werkzeug.test import EnvironBuilder

from dogbreed.errors import RequestError, ServerBusyError, SlowClientError
from dogbreed.serving.bodies import Bodies

PATIENCE_S = 30


@pytest.fixture(params=[False, True], ids=["counted", "terminated"])
def terminated(request):
    """Whether the server calls its stream terminated, as gunicorn does; Werkzeug does not count then."""
    return request.param


def read(bodies, stream, length, connection=None, *, terminated=False):
    environ = {"wsgi.input": stream, "CONTENT_LENGTH": str(length)}
    if terminated:  # Werkzeug looks whether it is there
        environ["wsgi.input_terminated"] = True
    if connection is not None:
        environ["gunicorn.socket"] = connection
    return bodies.read(EnvironBuilder(method="POST", environ_overrides=environ).get_environ())


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE_S)
    with ours, theirs:
        yield ours, theirs


def test_a_body_that_arrives_is_read_in_spite_of_the_watch(pair):
    ours, theirs = pair
    bodies = Bodies(1000, patience_s=PATIENCE_S, tick_s=0.01)
    theirs.sendall(b"hello")
    with ours.makefile("rb") as stream:
        assert read(bodies, stream, 5, ours) == b"hello"
    assert bodies._read == {}


def test_a_client_that_sends_a_byte_now_and_then_is_ended_by_the_deadline(pair, terminated):
    ours, theirs = pair
    bodies = Bodies(1000, patience_s=0.2, tick_s=0.02)
    done = threading.Event()

    def drip():
        while not done.wait(0.02):
            with contextlib.suppress(BrokenPipeError):
                theirs.send(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        with ours.makefile("rb") as stream, pytest.raises(SlowClientError, match=r"within 0\.2 seconds") as caught:
            read(bodies, stream, 1000, ours, terminated=terminated)
    finally:
        done.set()
        thread.join(PATIENCE_S)
    assert caught.value.status == 408
    ours.sendall(b"an answer can still be sent")
    assert theirs.recv(100) == b"an answer can still be sent"
    assert bodies._read == {}
    assert bodies._late == set()


def test_a_client_that_leaves_is_not_called_slow(pair, terminated):
    ours, theirs = pair
    theirs.sendall(b"x")
    theirs.shutdown(socket.SHUT_WR)
    with ours.makefile("rb") as stream, pytest.raises(RequestError, match="broke off") as caught:
        read(Bodies(1000, patience_s=PATIENCE_S), stream, 10, ours, terminated=terminated)
    assert caught.value.status == 400


def test_only_so_many_are_read_at_once():
    bodies = Bodies(1000, at_once=1)
    refusals = []

    class Stream(io.BytesIO):
        """Another request comes while this one is read."""

        def readinto(self, buffer):
            if not refusals:
                with pytest.raises(ServerBusyError) as caught:
                    read(bodies, io.BytesIO(b"other"), 5)
                refusals.append(str(caught.value))
            return super().readinto(buffer)

        def read(self, size=-1):
            self.readinto(bytearray())
            return super().read(size)

    assert read(bodies, Stream(b"hello"), 5) == b"hello"
    assert refusals == ["1 requests are still being received; try again later"]
    assert read(bodies, io.BytesIO(b"other"), 5) == b"other"
