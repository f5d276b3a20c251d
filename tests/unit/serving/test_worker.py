"""Workers see who else is ready, over process borders."""

import os
import socket
from types import SimpleNamespace

import pytest
from gunicorn.config import Config
from gunicorn.workers.gthread import TConn, ThreadWorker

from dogbreed.serving import worker as module
from dogbreed.serving.worker import Board, Worker


def test_a_worker_sees_the_others_and_not_itself():
    board = Board()
    assert not board.other_is_ready(1)
    board.write(1, True)
    assert not board.other_is_ready(1)
    assert board.other_is_ready(2)
    board.write(1, False)
    assert not board.other_is_ready(2)


def test_a_worker_sees_whether_another_has_fewer_connections():
    board = Board()
    board.write(1, True, 2)
    board.write(2, True, 3)
    assert board.other_is_ready(2, connections_below=3)
    assert not board.other_is_ready(2, connections_below=2)
    assert not board.other_is_ready(1, connections_below=2)
    board.write(1, False, 0)
    assert not board.other_is_ready(2, connections_below=3)
    board.write(1, True, 100_000)
    assert board.other_is_ready(2)


def test_what_a_forked_process_writes_is_seen_here():
    board = Board()
    child = os.fork()
    if child == 0:
        board.write(5000, True)  # gunicorn's numbers grow for as long as it runs
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert board.other_is_ready(1)
    assert not board.other_is_ready(5000)


HEAD = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def loop(monkeypatch):
    """gunicorn's loop without its processes: a worker, a client and what was given to threads."""
    given, now = [], [1000.0]
    monkeypatch.setattr(ThreadWorker, "enqueue_req", lambda self, conn: given.append(conn))
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    config = Config()
    worker = Worker(0, 1, [], None, 30, config, SimpleNamespace(debug=lambda *_: None))
    worker.poller = module.selectors.DefaultSelector()
    worker.app = SimpleNamespace(board=Board())
    client, server = socket.socketpair()
    client.settimeout(5)
    conn = TConn(config, server, ("127.0.0.1", 1), ("127.0.0.1", 2))
    worker.nr_conns = 1

    def go(seconds=0.0):
        now[0] += seconds
        worker.wait_for_and_dispatch_events(0)
        worker.murder_pending()

    yield SimpleNamespace(worker=worker, client=client, conn=conn, given=given, go=go)
    client.close()
    server.close()
    worker.poller.close()
    worker.tmp.close()


def test_a_connection_gets_a_thread_when_its_head_is_there(loop):
    loop.worker.enqueue_req(loop.conn)
    for byte in HEAD[:-1]:
        loop.client.send(bytes([byte]))
        loop.go()
        assert loop.given == []
    loop.client.send(HEAD[-1:])
    loop.go()
    assert loop.given == [loop.conn]
    assert not loop.worker.pending_conns
    held = b"" if loop.conn.parser is None else loop.conn.parser.unreader.take_buffered()
    loop.conn.sock.setblocking(False)
    assert held + loop.conn.sock.recv(100) == HEAD


def test_a_whole_head_is_left_in_the_socket(loop):
    loop.client.send(HEAD + b"body")
    loop.worker.enqueue_req(loop.conn)
    assert loop.given == [loop.conn]
    assert loop.conn.parser is None
    assert loop.conn.sock.recv(100) == HEAD + b"body"


@pytest.mark.parametrize(
    "start",
    [b"no HTTP at all\r\n", b"GET /\r\n", b"x" * 9000],
    ids=["another protocol", "HTTP/0.9", "a long first line"],
)
def test_what_is_no_head_is_for_gunicorn_to_refuse_at_once(loop, start):
    loop.client.send(start)
    loop.worker.enqueue_req(loop.conn)
    loop.go()
    assert loop.given == [loop.conn]


def test_a_client_that_goes_is_gunicorns_to_close(loop):
    loop.worker.enqueue_req(loop.conn)
    loop.client.shutdown(socket.SHUT_WR)
    loop.go()
    assert loop.given == [loop.conn]


def test_a_head_has_twenty_seconds_from_its_first_byte_on(loop):
    loop.worker.enqueue_req(loop.conn)
    loop.client.send(HEAD[:5])
    loop.go()
    loop.client.send(HEAD[5:10])
    loop.go(19)
    assert loop.worker.nr_conns == 1
    loop.go(1.5)
    assert loop.worker.nr_conns == 0
    assert loop.client.recv(100).startswith(b"HTTP/1.1 408 ")
    assert loop.given == []


def test_a_connection_without_a_byte_is_kept_like_one_between_two_requests(loop):
    loop.worker.cfg.set("keepalive", 75)
    loop.worker.enqueue_req(loop.conn)
    loop.go(74)
    assert loop.worker.nr_conns == 1
    loop.go(2)
    assert loop.worker.nr_conns == 0
    assert loop.client.recv(100) == b""


def test_a_head_without_end_is_refused_and_holds_64_kib_at_most(loop):
    loop.client.send(b"GET / HTTP/1.1\r\n")
    loop.worker.enqueue_req(loop.conn)
    for _ in range(20):
        if loop.worker.nr_conns:
            loop.client.send(b"X: " + b"x" * 4000 + b"\r\n")
            loop.go()
    assert loop.worker.nr_conns == 0
    assert loop.client.recv(100).startswith(b"HTTP/1.1 431 ")


def test_when_the_worker_stops_it_does_not_wait_for_requests_that_may_never_come(loop):
    loop.worker.enqueue_req(loop.conn)
    loop.worker._cap_keepalive(1002.0)
    loop.go(2.5)
    assert loop.worker.nr_conns == 0


@pytest.fixture
def waiting(loop, monkeypatch):
    """Of two workers the one with a connection more, and connections that wait to be taken."""
    taken = []
    monkeypatch.setattr(ThreadWorker, "accept", lambda self, listener: taken.append(listener))
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    loop.worker.cfg.set("workers", 2)
    loop.worker.age = 7
    loop.worker.app.board.write(8, True, 0)
    return taken


def test_a_connection_is_left_to_the_worker_with_fewer(loop, waiting):
    loop.worker.accept("first")
    assert waiting == []
    loop.worker.app.board.write(8, True, 1)
    loop.worker.accept("first")
    assert waiting == ["first"]


def test_a_connection_that_the_other_worker_does_not_take_is_taken_after_a_moment(loop, waiting):
    for _ in range(3):
        loop.worker.accept("first")
        loop.go(0.009)
    assert waiting == []
    loop.worker.accept("first")
    assert waiting == ["first"]
    loop.go(1)
    loop.worker.accept("second")
    assert waiting == ["first"], "the next one has its own moment"


def test_a_worker_that_is_not_ready_is_left_nothing(loop, waiting):
    loop.worker.app.board.write(8, False)
    loop.worker.accept("first")
    assert waiting == ["first"]


def test_the_only_worker_takes_all(loop, waiting):
    loop.worker.cfg.set("workers", 1)
    loop.worker.accept("first")
    assert waiting == ["first"]


@pytest.fixture
def answering(loop, monkeypatch):
    """What a thread does, with gunicorn's own handling in its place: it reads one request and keeps the connection."""
    read = []

    def handle(self, conn):
        conn.sock.setblocking(True)
        held = b"" if conn.parser is None else conn.parser.unreader.take_buffered()
        read.append(held or conn.sock.recv(len(HEAD)))
        return read[-1] != b""

    monkeypatch.setattr(ThreadWorker, "handle", handle)
    loop.worker.enqueue_req(loop.conn)
    loop.go()
    loop.client.send(HEAD)
    loop.go()
    assert loop.given == [loop.conn]
    return read


def test_a_thread_goes_on_with_the_clients_next_request(loop, answering):
    loop.client.send(HEAD + HEAD)
    assert loop.worker.handle(loop.conn) is True
    assert answering == [HEAD] * 3
    assert loop.given == [loop.conn], "the loop did not see the second and the third"


def test_a_thread_gives_the_connection_back_when_nothing_comes(loop, answering):
    assert loop.worker.handle(loop.conn) is True
    assert answering == [HEAD]


def test_a_thread_does_not_wait_for_the_rest_of_a_head(loop, answering):
    loop.client.send(HEAD[:9])
    assert loop.worker.handle(loop.conn) is True
    assert answering == [HEAD]
    assert loop.conn.parser.unreader.buf.getvalue() == HEAD[:9], "for the loop to go on with"


def test_a_thread_does_not_go_on_while_another_request_waits_for_one(loop, answering):
    client, server = socket.socketpair()
    client.send(HEAD)
    loop.worker.enqueue_req(TConn(loop.worker.cfg, server, ("127.0.0.1", 1), ("127.0.0.1", 2)))
    loop.client.send(HEAD)
    assert loop.worker.handle(loop.conn) is True
    assert answering == [HEAD]
    client.close()
    server.close()


def test_a_thread_does_not_go_on_when_the_worker_stops(loop, answering):
    loop.client.send(HEAD)
    loop.worker.alive = False
    assert loop.worker.handle(loop.conn) is True
    assert answering == [HEAD]
