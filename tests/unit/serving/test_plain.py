"""Plain requests are read as gunicorn reads them, and nothing else is taken for one."""

import io
import socket
from wsgiref.validate import validator

import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser
from hypothesis import given
from hypothesis import strategies as st

from dogbreed.serving import plain

HEAD = (
    b"POST /invocations HTTP/1.1\r\nHost: dogs:8080\r\nContent-Type: image/jpeg\r\nContent-Length: 5\r\n"
    b"X-Amzn-SageMaker-Custom-Attributes:  top_k=3 \r\n\r\n"
)


def head(*lines, first="POST /invocations HTTP/1.1"):
    return "\r\n".join([first, *lines, "", ""]).encode("latin-1")


def test_a_plain_post_is_read():
    assert plain.read_plain_post(HEAD + b"12345next") == plain.PlainPost(
        path="/invocations",
        headers={
            "HTTP_HOST": "dogs:8080",
            "CONTENT_TYPE": "image/jpeg",
            "CONTENT_LENGTH": "5",
            "HTTP_X_AMZN_SAGEMAKER_CUSTOM_ATTRIBUTES": "top_k=3",
        },
        head_bytes=len(HEAD),
        body_bytes=5,
        keeps=True,
    )


@pytest.mark.parametrize(("value", "keeps"), [("keep-alive", True), ("Close", False)])
def test_the_client_says_whether_the_connection_goes_on(value, keeps):
    assert plain.read_plain_post(head("Host: x", "Content-Length: 5", f"Connection: {value}")).keeps is keeps


@pytest.mark.parametrize(
    "arrived",
    [
        HEAD[:-1],
        head("Host: x", "Content-Length: 5", first="GET /invocations HTTP/1.1"),
        head("Host: x", "Content-Length: 5", first="POST /invocations HTTP/1.0"),
        head("Host: x", "Content-Length: 5", first="POST /invocations?return=heatmap HTTP/1.1"),
        head("Host: x", "Content-Length: 5", first="POST /models/a%20b/invoke HTTP/1.1"),
        head("Host: x", "Content-Length: 5", first="POST http://x/invocations HTTP/1.1"),
        head("Host: x", "Content-Length: 5", first="POST  /invocations HTTP/1.1"),
        head("Content-Length: 5"),
        head("Host: x"),
        head("Host: x", "Content-Length: -5"),
        head("Host: x", "Content-Length: 5, 5"),
        head("Host: x", "Content-Length: 0x5"),
        head("Host: x", "Content-Length: \u00b2"),
        head("Host: x", "Content-Length: 5", "Content-Length: 5"),
        head("Host: x", "Host: y", "Content-Length: 5"),
        head("Host: x", "Content-Length: 5", "Transfer-Encoding: chunked"),
        head("Host: x", "Content-Length: 5", "Expect: 100-continue"),
        head("Host: x", "Content-Length: 5", "Upgrade: h2c"),
        head("Host: x", "Content-Length: 5", "Connection: upgrade"),
        head("Host: x", "Content-Length: 5", "X-Long: a", " folded"),
        head("Host: x", "Content-Length : 5"),
        head("Host: x", "Content_Length: 6", "Content-Length: 5"),
        head("Host: x", "Content-Length: 5", "X-Umlaut: \u00e4"),
        head("Host: x", "Content-Length: 5", "X-Bell: \a"),
        head("Host: x", "Content-Length: 5", "X: a\rb"),
        head("Host: x", "Content-Length: 5").replace(b"\r\n", b"\n"),
        head("Host: x\nContent-Length: 5", "Content-Length: 6"),
    ],
)
def test_what_is_not_beyond_doubt_is_not_plain(arrived):
    assert plain.read_plain_post(arrived) is None


NAMES = ["Host", "Content-Length", "content-length", "X-A", "Connection", "Transfer-Encoding", "Accept"]
VALUES = ["5", "17", "close", "keep-alive", "chunked", "a", ",", ";", "_"]
BETWEEN = [":", ": ", " ", "\t", "\r\n", "\r\n", "\n", "\r", "\x00", "\u00ff"]
PIECES = st.sampled_from([*NAMES, *VALUES, *BETWEEN])


@given(st.lists(PIECES, max_size=12), st.booleans())
def test_gunicorn_reads_the_same_in_all_that_counts_as_plain(pieces, sound):
    lines = ["Host: x", "Content-Length: 5"] if sound else []
    arrived = head(*lines, "".join(pieces)) + b"1234567890"
    found = plain.read_plain_post(arrived)
    if found is None:
        return
    request = next(get_parser(Config(), iter([arrived]), ("127.0.0.1", 1)))
    names = {name.removeprefix("HTTP_"): value for name, value in found.headers.items()}
    assert names == {name.replace("-", "_"): value for name, value in request.headers}
    assert (request.method, request.path, request.query) == ("POST", found.path, "")
    assert found.keeps is not request.should_close()
    assert request.body.read() == arrived[found.head_bytes :][: found.body_bytes]


@pytest.fixture
def connection():
    client, server = socket.socketpair()
    client.settimeout(5)
    server.settimeout(5)
    yield client, server
    client.close()
    server.close()


def ask(app, connection, body, *, keeps=True, length=5):
    client, server = connection
    client.sendall(body)
    request = plain.read_plain_post(HEAD.replace(b"Length: 5", b"Length: %d" % length))
    return plain.answer(app, request, server, ("127.0.0.1", 7), keeps=keeps)


def test_an_application_is_asked_as_wsgi_has_it(connection):
    seen = {}

    def app(environ, start_response):
        seen.update(environ, body=environ["wsgi.input"].read(5))
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
        return [b"go", b"od"]

    answer, keeps = ask(validator(app), connection, b"12345")
    assert (keeps, seen["body"]) == (True, b"12345")
    assert (seen["CONTENT_TYPE"], seen["CONTENT_LENGTH"], seen["PATH_INFO"]) == ("image/jpeg", "5", "/invocations")
    first, *headers = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert first == b"HTTP/1.1 200 OK"
    assert {b"Connection: keep-alive", b"Content-Length: 4", b"Server: gunicorn"} <= set(headers)
    assert answer.endswith(b"\r\n\r\ngood")


def leaves(environ, start_response):
    start_response("413 Payload Too Large", [("Content-Length", "0")])
    return []


def test_a_connection_ends_where_a_part_of_the_body_is_left(connection):
    answer, keeps = ask(leaves, connection, b"12345")
    assert not keeps
    assert b"Connection: close\r\n" in answer


def reads(environ, start_response):
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def test_a_client_that_wants_the_end_gets_it(connection):
    answer, keeps = ask(reads, connection, b"12345", keeps=False)
    assert not keeps
    assert b"Connection: close\r\n" in answer


def test_what_is_behind_a_body_stays_for_the_next_request(connection):
    answer, keeps = ask(reads, connection, b"12345POST")
    assert (answer[-5:], keeps) == (b"12345", True)
    assert connection[1].recv(10) == b"POST"


def test_a_body_that_breaks_off_is_as_short_as_it_is(connection):
    connection[0].sendall(b"123")
    connection[0].shutdown(socket.SHUT_WR)
    body = plain.Body(connection[1], 5)
    assert (body.read(5), body.left) == (b"123", 2)


def test_a_body_that_stalls_is_an_error(connection):
    connection[0].sendall(b"123")
    connection[1].settimeout(0.05)
    with pytest.raises(TimeoutError):
        plain.Body(connection[1], 5).read(5)


def test_a_body_comes_in_pieces_of_any_size(connection):
    body = plain.Body(connection[1], 6)
    connection[0].sendall(b"12345678")
    assert [body.read(4), body.read(4), body.read(4)] == [b"1234", b"56", b""]
    assert io.BufferedReader(plain.Body(connection[1], 2)).readline() == b"78"
