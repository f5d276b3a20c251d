"""Whether an instance can be trusted with requests: one ping, and what a row of pings means.

Knows /ping and time; neither instances nor endpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from local_test.simulator.hosting import wire
from local_test.simulator.hosting.rules import Health

_QUOTED_CHARACTERS = 200


@dataclass(frozen=True)
class Ping:
    """One health check.

    Args:
        healthy: 200, in time.
        told: what came instead, in one line.
    """

    healthy: bool
    told: str = ""


class Phase(StrEnum):
    """Of an instance's life."""

    STARTING = "Starting"
    IN_SERVICE = "InService"
    FAILED = "Failed"


@dataclass(frozen=True)
class Course:
    """What the pings so far make of an instance; every observation makes a new one.

    Args:
        phase: of its life.
        failures: pings in a row that failed, in service.
        told: by the last ping that failed, or by its end.
    """

    phase: Phase = Phase.STARTING
    failures: int = 0
    told: str = "nothing yet"

    def after(self, ping: Ping, age_s: float, rules: Health) -> Course:
        """The course after one more ping.

        Args:
            ping: its result.
            age_s: of the instance.
            rules: that hold for it.
        """
        if self.phase is Phase.FAILED:
            return self
        if ping.healthy:
            return Course(Phase.IN_SERVICE)
        if self.phase is Phase.STARTING:
            if age_s < rules.start_s:
                return Course(Phase.STARTING, told=ping.told)
            return Course(Phase.FAILED, told=f"no 200 of /ping within {rules.start_s:g} s; the last: {ping.told}")
        failures = self.failures + 1
        if failures < rules.failures:
            return Course(Phase.IN_SERVICE, failures, ping.told)
        return Course(Phase.FAILED, failures, f"{failures} pings in a row failed; the last: {ping.told}")

    def ended(self, exit_code: int) -> Course:
        """The course after the end of the instance's process."""
        if self.phase is Phase.FAILED:
            return self
        return Course(Phase.FAILED, told=f"it ended by itself with exit code {exit_code}")


def ping(address: str, rules: Health) -> Ping:
    """Asks GET /ping as the platform does."""
    try:
        answer = wire.ask(address, "GET", "/ping", within_s=rules.ping_s, accept_s=rules.accept_s)
    except wire.NoAnswerError as error:
        return Ping(False, str(error))
    if answer.status == 200:
        return Ping(True)
    text = " ".join(answer.body.decode(errors="replace").split())[:_QUOTED_CHARACTERS]
    return Ping(False, f"{answer.status} {text}".strip())
