"""Workers see who else is ready, over process borders."""

import contextlib
import os
import socket
import threading
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from gunicorn.config import Config
from gunicorn.workers.gthread import TConn, ThreadWorker

from dogbreed.serving import worker as module
from dogbreed.serving.board import Board
from dogbreed.serving.worker import Worker


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
POST = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
BODY = b"0123456789"


class App:
    """As much of an app as a worker knows: it may be full, and answers with the body it was sent."""

    def __init__(self):
        self.full = False
        self.turned_away = []

    def is_full(self, coming=0):
        return self.full

    def turn_away(self, path, headers):
        if path != "/invocations":
            return None
        self.turned_away.append(headers)
        return "503 BUSY", [("Content-Length", "4")], b"full"

    def refuse(self, status, message):
        return f"{status} REFUSED", [("Content-Length", str(len(message)))], message.encode()

    def answers_in_one_piece(self, path, headers):
        return path == "/invocations"

    def __call__(self, environ, start_response):
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]


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
    worker.wsgi = App()
    worker.method_queue.init()
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
    worker.method_queue.close()
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


@pytest.mark.parametrize("start", [b"\r", b"\r\n", b"\r\nGET /x HTTP/1.1\r\nA:"])
def test_an_empty_line_before_a_request_makes_no_head_whole(loop, start):
    loop.client.send(start)
    loop.worker.enqueue_req(loop.conn)
    loop.go()
    assert loop.given == []
    loop.go(21)
    assert loop.worker.nr_conns == 0
    assert b"did not come within 20 s" in loop.client.recv(1000)


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


def test_all_connections_that_wait_are_taken_in_one_pass(loop, waiting, monkeypatch):
    """One in each pass would wait for all that the loop does in a pass, and those behind it for as many passes."""
    loop.worker.cfg.set("workers", 1)
    loop.worker.worker_connections = 1000
    coming = 5

    def accept(self, listener):
        if len(waiting) < coming:  # then nobody waits any more
            waiting.append(listener)
            self.nr_conns += 1

    monkeypatch.setattr(ThreadWorker, "accept", accept)
    loop.worker.accept("listener")
    assert len(waiting) == coming
    coming = 1000
    loop.worker.accept("listener")
    assert len(waiting) == 5 + 64, "the loop has other things to do"


@pytest.fixture
def crowd(loop):
    """As many connections as may be, the first of them idle longest; what their clients hold, in the same order."""
    loop.worker.worker_connections = 3
    pairs = [(loop.client, loop.conn)]
    for _ in range(2):
        client, server = socket.socketpair()
        client.settimeout(5)
        pairs.append((client, TConn(loop.worker.cfg, server, ("127.0.0.1", 1), ("127.0.0.1", 2))))
    for _, conn in pairs:
        loop.worker.enqueue_req(conn)
    loop.worker.nr_conns = len(pairs)
    yield [client for client, _ in pairs]
    for client, conn in pairs[1:]:
        client.close()
        conn.sock.close()


def is_open(client):
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True


def test_where_no_more_may_be_the_connection_that_is_idle_longest_makes_room(loop, crowd):
    loop.worker.notify()
    assert [is_open(client) for client in crowd] == [False, True, True]
    loop.worker.notify()
    assert loop.worker.nr_conns == 2, "one place is enough"
    loop.go()
    assert loop.given == []


def test_a_connection_that_was_answered_makes_room_first(loop, crowd):
    conn = loop.worker.pending_conns.pop()
    loop.worker.poller.unregister(conn.sock)
    loop.worker._keep(conn)
    loop.worker.notify()
    assert [is_open(client) for client in crowd] == [True, True, False]


def test_a_connection_whose_request_has_just_come_is_left(loop, crowd):
    crowd[0].send(HEAD)
    crowd[1].send(HEAD[:3])
    loop.worker.notify()
    assert [is_open(client) for client in crowd] == [True, True, False]
    crowd[0].send(b"")
    loop.go()
    assert len(loop.given) == 1


def test_without_a_descriptor_for_a_connection_one_is_made_free(loop, crowd, monkeypatch):
    def refuse(self, listener):
        raise OSError(module.errno.EMFILE, "too many open files")

    monkeypatch.setattr(ThreadWorker, "accept", refuse)
    loop.worker.accept("listener")
    assert [is_open(client) for client in crowd] == [False, True, True]


def fill(sock):
    """Until nothing more goes into a connection."""
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while sock.send(b"x" * 65536):
            pass


def test_a_client_that_does_not_read_its_answers_gets_no_thread(loop):
    fill(loop.conn.sock)
    loop.client.send(HEAD)
    loop.worker.enqueue_req(loop.conn)
    loop.go()
    assert loop.given == []
    while loop.client.recv(1_000_000):  # now it reads
        loop.go()
        if loop.given:
            break
    assert loop.given == [loop.conn]
    assert not loop.worker.pending_conns


def test_a_client_that_never_reads_its_answers_is_ended(loop):
    fill(loop.conn.sock)
    loop.client.send(HEAD)
    loop.worker.enqueue_req(loop.conn)
    loop.go(21)
    assert loop.worker.nr_conns == 0


def parsed(loop, request):
    """A connection whose request gunicorn's parser has read, and whose answer says that it goes on."""
    loop.client.send(request)
    loop.conn.sock.setblocking(True)
    loop.conn.init()
    next(loop.conn.parser)


def finished(loop):
    """What the thread and then the loop do after an answer."""
    done = Future()
    done.set_result(loop.worker._keepalive_after(loop.conn, True))
    loop.worker.finish_request(loop.conn, done)
    return done.result()


GET_WITH_BODY = HEAD.replace(b"Host: x", b"Host: x\r\nContent-Length: 10")


def test_no_thread_waits_for_a_body_that_nobody_reads(loop):
    loop.worker.cfg.set("keepalive", 75)
    parsed(loop, GET_WITH_BODY + BODY[:4])
    finished(loop)  # would wait for five seconds
    loop.client.send(BODY[4:] + HEAD)
    loop.go()
    loop.go()
    assert loop.given == [loop.conn]
    assert loop.conn.sock.recv(100, socket.MSG_DONTWAIT) == HEAD


def test_a_body_that_has_come_with_its_head_is_skipped_and_the_next_request_is_not(loop):
    loop.worker.cfg.set("keepalive", 75)
    parsed(loop, GET_WITH_BODY + BODY + HEAD)
    assert finished(loop) is True
    assert loop.given == [loop.conn]
    assert loop.conn.parser.unreader.take_buffered() == HEAD


def test_a_body_that_never_comes_ends_the_connection(loop):
    parsed(loop, GET_WITH_BODY)
    finished(loop)
    loop.go(21)
    assert loop.worker.nr_conns == 0


def test_behind_chunks_that_nobody_reads_a_connection_does_not_go_on(loop):
    parsed(loop, HEAD.replace(b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked"))
    assert finished(loop) is False
    assert loop.client.recv(100) == b""


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (module.LimitRequestLine(9000, 4094), b"414", b"cannot be read: Request Line is too large"),
        (module.UnsupportedTransferCoding("gzip"), b"501", b"gzip"),
        (module.ParseException("no"), b"400", b"cannot be read: no"),
        (ZeroDivisionError("secret"), b"500", b"the server's log tells more"),
    ],
)
def test_what_is_no_request_is_refused_like_all_else(loop, error, status, told):
    loop.worker.log = SimpleNamespace(warning=lambda *_: None, error=lambda *_, **__: None)
    loop.worker.handle_error(None, loop.conn.sock, ("127.0.0.1", 1), error)
    answer = loop.client.recv(1000)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert told in answer
    assert b"secret" not in answer
    assert b"html" not in answer


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


@pytest.fixture
def staying(loop, answering):
    """A thread that has answered one request and stays with the connection, which is asked nothing yet."""
    loop.worker._stopped, loop.worker._stops = socket.socketpair()
    thread = threading.Thread(target=loop.worker.handle, args=(loop.conn,))
    thread.start()
    wait_until(lambda: loop.worker._staying == 1)
    yield SimpleNamespace(thread=thread, answering=answering)
    loop.worker._stops.close()
    thread.join(5)
    loop.worker._stopped.close()


def wait_until(condition):
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("it never came to that")


def test_a_thread_stays_with_its_client_for_a_while(loop, staying):
    threading.Event().wait(0.05)  # ten times the moment that any thread waits
    assert staying.thread.is_alive()
    loop.client.send(HEAD)
    wait_until(lambda: staying.answering == [HEAD] * 2)
    assert loop.given == [loop.conn], "the loop did not see the second"


def test_a_thread_that_stays_ends_at_once_when_the_worker_stops(loop, staying, monkeypatch):
    monkeypatch.setattr(module, "_STAYS_MS", 60_000)
    loop.client.send(HEAD)  # what it waits for now is a minute
    wait_until(lambda: staying.answering == [HEAD] * 2 and loop.worker._staying == 1)
    loop.worker.alive = False
    loop.worker._cap_keepalive(0.0)
    staying.thread.join(5)
    assert not staying.thread.is_alive()


def test_a_thread_that_stays_leaves_refusing_to_the_loop(loop, staying):
    loop.worker.wsgi.full = True
    loop.client.send(HEAD)
    staying.thread.join(5)
    assert not staying.thread.is_alive()
    assert staying.answering == [HEAD]
    loop.conn.sock.setblocking(False)
    assert loop.conn.sock.recv(100) == HEAD, "where the loop will find it"


def test_no_more_threads_stay_than_may(loop, answering, monkeypatch):
    monkeypatch.setattr(module, "STAYING_THREADS", 0)
    monkeypatch.setattr(module, "_STAYS_MS", 60_000)
    loop.worker._stopped, loop.worker._stops = socket.socketpair()
    assert loop.worker.handle(loop.conn) is True
    loop.worker._stopped.close()
    loop.worker._stops.close()


@pytest.fixture
def full(loop):
    """The same, with an app that is full and a client that may go on after an answer."""
    loop.worker.cfg.set("keepalive", 75)
    loop.worker.wsgi.full = True
    return loop


def is_refused(loop, *, goes_on=True):
    answer = loop.client.recv(1000)
    connection = b"keep-alive" if goes_on else b"close"
    return answer.startswith(b"HTTP/1.1 503 BUSY\r\n") and b"Connection: " + connection in answer


def test_when_the_app_is_full_a_request_is_refused_without_a_thread(full):
    full.client.send(POST + BODY)
    full.worker.enqueue_req(full.conn)
    assert is_refused(full)
    assert full.given == []
    assert full.worker.wsgi.turned_away == [{"HTTP_HOST": "x", "CONTENT_LENGTH": "10"}]
    full.client.send(POST + BODY)
    full.go()
    assert is_refused(full), "on the same connection"
    full.worker.wsgi.full = False
    full.client.send(HEAD)
    full.go()
    assert full.given == [full.conn]
    assert full.conn.sock.recv(100) == HEAD, "the bodies are gone, and no more"
    assert full.worker.nr_conns == 1


def test_the_body_of_a_refused_request_may_come_later_and_in_pieces(full):
    full.client.send(POST)
    full.worker.enqueue_req(full.conn)
    assert is_refused(full)
    for byte in BODY:
        full.client.send(bytes([byte]))
        full.go()
    full.client.send(POST)
    full.go()
    assert is_refused(full)
    assert full.given == []


def test_the_body_of_a_refused_request_is_not_waited_for_for_ever(full):
    full.client.send(POST + BODY[:9])
    full.worker.enqueue_req(full.conn)
    full.go(19)
    assert full.worker.nr_conns == 1
    full.go(2)
    assert full.worker.nr_conns == 0
    assert is_refused(full)
    assert full.client.recv(100) == b"", "closed, and nothing said once more"


def test_a_client_that_goes_with_its_body_half_sent_is_closed(full):
    full.client.send(POST + BODY[:9])
    full.worker.enqueue_req(full.conn)
    full.client.close()
    full.go()
    assert full.worker.nr_conns == 0


def test_a_refused_client_that_wants_to_end_gets_its_answer_and_the_end(full):
    full.client.send(POST.replace(b"Host: x", b"Host: x\r\nConnection: close") + BODY)
    full.worker.enqueue_req(full.conn)
    assert is_refused(full, goes_on=False)
    assert full.client.recv(100) == b""
    full.client.close()
    full.go()
    assert full.worker.nr_conns == 0


def test_a_client_that_reads_no_answers_costs_its_connection_and_not_the_loop(full):
    fill(full.conn.sock)
    full.client.send(POST + BODY)
    full.worker.enqueue_req(full.conn)
    assert full.given == []
    full.go(21)
    assert full.worker.nr_conns == 0


@pytest.mark.parametrize(
    "request_",
    [HEAD, POST.replace(b"invocations", b"models"), POST.replace(b"Host: x", b"Host: x\r\nExpect: 100-continue")],
    ids=["ping", "another path", "not plain"],
)
def test_what_the_loop_cannot_refuse_gets_a_thread_though_the_app_is_full(full, request_):
    full.client.send(request_)
    full.worker.enqueue_req(full.conn)
    assert full.given == [full.conn]


def test_a_worker_that_stops_leaves_refusing_to_threads(full):
    full.worker.alive = False
    full.client.send(POST + BODY)
    full.worker.enqueue_req(full.conn)
    assert full.given == [full.conn]


def test_a_client_that_keeps_an_ended_connection_open_holds_nobody_up(loop):
    done = Future()
    done.set_result(False)
    loop.conn.sock.setblocking(True)
    loop.worker.finish_request(loop.conn, done)
    assert loop.client.recv(100) == b"", "told of the end"
    loop.client.send(b"x" * 10_000)
    loop.go(1.9)
    assert loop.worker.nr_conns == 1
    loop.go(0.2)
    assert loop.worker.nr_conns == 0


def test_a_connection_that_was_ended_is_closed_when_its_client_has(loop):
    done = Future()
    done.set_result(False)
    loop.worker.finish_request(loop.conn, done)
    loop.client.close()
    loop.go()
    assert loop.worker.nr_conns == 0


def test_a_thread_answers_a_plain_request_without_gunicorns_parser(loop, monkeypatch):
    monkeypatch.setattr(ThreadWorker, "handle", lambda *_: pytest.fail("given to gunicorn"))
    loop.worker.cfg.set("keepalive", 75)
    loop.client.send(POST + BODY + POST + BODY)
    loop.worker.enqueue_req(loop.conn)
    assert loop.worker.handle(loop.conn) is True
    answers = loop.client.recv(10_000)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert answers.endswith(b"\r\n\r\n" + BODY)


def test_a_worker_that_stops_ends_the_connection_with_the_answer(loop):
    loop.worker.alive = False
    loop.client.send(POST + BODY)
    loop.worker.enqueue_req(loop.conn)
    assert loop.worker.handle(loop.conn) is False
    assert b"Connection: close\r\n" in loop.client.recv(10_000)


def test_a_fault_between_app_and_client_is_a_500_and_not_silence(loop, monkeypatch):
    monkeypatch.setattr(module.plain, "answer", lambda *_, **__: 1 / 0)
    loop.worker.log.error = lambda *_, **__: None
    loop.client.send(POST + BODY)
    loop.worker.enqueue_req(loop.conn)
    assert loop.worker.handle(loop.conn) is False
    assert loop.client.recv(10_000).startswith(b"HTTP/1.1 500 ")


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux only")
def test_threads_of_a_worker_leave_the_cores_to_those_that_compute(loop, monkeypatch):
    found = []
    monkeypatch.setattr(ThreadWorker, "init_process", lambda _: found.append(os.sched_getscheduler(0)))
    thread = threading.Thread(target=loop.worker.init_process)  # the policy is of one thread, and of those it starts
    thread.start()
    thread.join()
    assert found == [os.SCHED_BATCH]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    loop.worker._stopped.close()
    loop.worker._stops.close()
