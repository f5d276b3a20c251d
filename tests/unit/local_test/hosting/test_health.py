from __future__ import annotations

from local_test.simulator.hosting.health import Course, Phase, Ping
from local_test.simulator.hosting.rules import Health

RULES = Health(start_s=480, failures=3)
GOOD, BAD = Ping(True), Ping(False, "503 loading")


def after(*pings: Ping, age_s: float = 1.0) -> Course:
    course = Course()
    for ping in pings:
        course = course.after(ping, age_s, RULES)
    return course


def test_the_first_200_puts_an_instance_in_service() -> None:
    assert after(BAD, BAD, BAD, BAD, BAD).phase is Phase.STARTING
    assert after(BAD, GOOD).phase is Phase.IN_SERVICE


def test_an_instance_has_eight_minutes_to_start() -> None:
    assert after(BAD, age_s=479.9).phase is Phase.STARTING
    late = after(BAD, age_s=480)
    assert late.phase is Phase.FAILED
    assert late.told == "no 200 of /ping within 480 s; the last: 503 loading"


def test_only_failures_in_a_row_count() -> None:
    assert after(GOOD, BAD, BAD).phase is Phase.IN_SERVICE
    assert after(GOOD, BAD, BAD, GOOD, BAD, BAD).phase is Phase.IN_SERVICE
    failed = after(GOOD, BAD, BAD, BAD)
    assert failed.phase is Phase.FAILED
    assert failed.told == "3 pings in a row failed; the last: 503 loading"


def test_a_failed_instance_stays_failed() -> None:
    failed = after(GOOD, BAD, BAD, BAD)
    assert failed.after(GOOD, 1.0, RULES) is failed
    assert failed.ended(137) is failed
    assert after(GOOD).ended(137).told == "it ended by itself with exit code 137"
