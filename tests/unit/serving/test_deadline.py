"""A request is gone on with as long as it has time and a client."""

import pytest

from dogbreed.errors import ClientGoneError, TookTooLongError
from dogbreed.serving.deadline import Deadline, unlimited


def test_a_request_has_its_time_and_no_more_until_it_is_renewed():
    now = [100.0]
    deadline = Deadline(60, lambda: True, clock=lambda: now[0])
    deadline.check()
    now[0] = 159.9
    deadline.check()
    now[0] = 160.0
    with pytest.raises(TookTooLongError, match="not computed within 60 seconds; send fewer") as caught:
        deadline.check()
    assert (caught.value.status, caught.value.retry_after_s) == (504, None)
    deadline.renew()
    now[0] = 219.9
    deadline.check()


def test_nothing_is_computed_for_a_client_that_has_gone():
    there = [True]
    deadline = Deadline(60, lambda: there[0])
    deadline.check()
    there[0] = False
    with pytest.raises(ClientGoneError, match="closed its connection"):
        deadline.check()


def test_without_a_client_nothing_objects():
    unlimited()
