"""Calls that are alone, and whether they stay so."""

from dogbreed.engines.solitude import Solitude


def call(solitude, *, joined):
    """One that begins alone; another one comes while it is inside, or not."""
    alone = solitude.begin()
    assert alone
    if joined:
        second = solitude.begin()
        assert not second
        solitude.end(alone=alone)
        solitude.end(alone=second)
    else:
        solitude.end(alone=alone)


def test_the_first_call_is_alone_and_expected_to_stay_so():
    solitude = Solitude()
    assert solitude.lasts
    assert solitude.begin()
    assert solitude.lasts


def test_a_call_is_alone_again_when_all_others_have_left():
    solitude = Solitude()
    first, second = solitude.begin(), solitude.begin()
    solitude.end(alone=first)
    assert not solitude.begin()  # the second is still inside
    solitude.end(alone=second)
    solitude.end(alone=False)
    assert solitude.begin()


def test_calls_that_are_always_joined_are_not_expected_to_stay_alone():
    solitude = Solitude()
    for _ in range(10):
        call(solitude, joined=True)
    assert not solitude.lasts


def test_it_forgets_a_burst():
    solitude = Solitude()
    for _ in range(100):
        call(solitude, joined=True)
    for _ in range(10):
        call(solitude, joined=False)
    assert solitude.lasts


def test_one_in_three_that_is_joined_is_no_reason():
    solitude = Solitude()
    for number in range(60):
        call(solitude, joined=number % 3 == 0)
        assert solitude.lasts


def test_calls_that_begin_beside_another_say_nothing_of_solitude():
    solitude = Solitude()
    alone = solitude.begin()
    for _ in range(50):
        solitude.end(alone=solitude.begin())
    assert solitude.lasts  # they were not alone; the one call that was is still inside
    solitude.end(alone=alone)
    assert solitude.lasts
