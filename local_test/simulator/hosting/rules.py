"""The numbers of the platform: how large, how long, how many. One value per kind of endpoint.

Sources: AWS docs hosting-faqs (25 MB), boto3 API model BodyBlob.max (6,291,456 bytes), your-algorithms-inference-code
(60 s, 8 min to the first 200, pings within 2 s and accepted within 250 ms, SIGKILL 30 s after SIGTERM, streams of
8 min), serverless-endpoints-invoke (4 MB, 3 min), API model of async inference (1 GB, 900 s of at most 3,600 s).
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024

PAYLOAD_BYTES = 25 * MIB
SERVERLESS_PAYLOAD_BYTES = 4 * MIB
ASYNC_PAYLOAD_BYTES = 1024 * MIB
ASYNC_INLINE_BYTES = 128_000
ANSWER_S = 60.0
ASYNC_ANSWER_S = 900.0
STREAM_S = 480.0
START_S = 480.0
SERVERLESS_START_S = 180.0
LOADING_S = 360.0


@dataclass(frozen=True)
class Invocations:
    """What holds for one request.

    Args:
        payload_bytes: a larger body never reaches the container.
        answer_s: from the request to the whole answer.
        stream_s: the same for an answer that is passed on as it comes.
        loading_s: in which a container may load a model of many.
        at_once: requests that one instance gets at a time; None is no limit.
    """

    payload_bytes: int = PAYLOAD_BYTES
    answer_s: float = ANSWER_S
    stream_s: float = STREAM_S
    loading_s: float = LOADING_S
    at_once: int | None = None


@dataclass(frozen=True)
class Health:
    """How an instance is watched.

    Args:
        start_s: from its start to the first 200 of /ping.
        ping_s: for a ping's answer.
        accept_s: for its connection.
        every_s: between two pings.
        failures: in a row, after which the instance is replaced. The platform does not publish its number.
        grace_s: from SIGTERM to SIGKILL.
    """

    start_s: float = START_S
    ping_s: float = 2.0
    accept_s: float = 0.25
    every_s: float = 5.0
    failures: int = 3
    grace_s: float = 30.0
