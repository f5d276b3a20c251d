"""A client that has left is noticed, and one that is there is not disturbed."""

import socket

import pytest

from dogbreed.serving import connection


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_client_that_waits_is_there(pair):
    assert connection.is_open({"gunicorn.socket": pair[0]})


def test_what_it_has_sent_meanwhile_stays_to_be_read(pair):
    ours, theirs = pair
    theirs.sendall(b"next")
    assert connection.is_open({"gunicorn.socket": ours})
    assert ours.recv(10) == b"next"


def test_a_client_that_has_left_is_gone(pair):
    ours, theirs = pair
    theirs.close()
    assert not connection.is_open({"gunicorn.socket": ours})


def test_our_own_closed_socket_has_no_client(pair):
    pair[0].close()
    assert not connection.is_open({"gunicorn.socket": pair[0]})


def test_where_the_server_shows_no_socket_the_client_counts_as_there():
    assert connection.is_open({})
