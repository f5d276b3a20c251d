"""Workers see who else is ready, over process borders."""

import os

from dogbreed.serving.worker import ReadyBoard


def test_a_worker_sees_the_others_and_not_itself():
    board = ReadyBoard()
    assert not board.other_is_ready(1)
    board.write(1, True)
    assert not board.other_is_ready(1)
    assert board.other_is_ready(2)
    board.write(1, False)
    assert not board.other_is_ready(2)


def test_what_a_forked_process_writes_is_seen_here():
    board = ReadyBoard()
    child = os.fork()
    if child == 0:
        board.write(5000, True)  # gunicorn's numbers grow for as long as it runs
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert board.other_is_ready(1)
    assert not board.other_is_ready(5000)
