"""botocore's own reader reads what is written."""

from __future__ import annotations

import json

from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st
from local_test.simulator.hosting import eventstream


def read(stream: bytes) -> list[tuple[dict[str, str], bytes]]:
    buffer = EventStreamBuffer()
    buffer.add_data(stream)
    return [(message.headers, message.payload) for message in buffer]


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_parts(parts: list[bytes]) -> None:
    messages = read(b"".join(eventstream.payload_part(part) for part in parts))
    assert [payload for _, payload in messages] == parts
    assert all(headers[":event-type"] == "PayloadPart" for headers, _ in messages)
    assert all(headers[":message-type"] == "event" for headers, _ in messages)


def test_a_stream_that_broke() -> None:
    [(headers, payload)] = read(eventstream.stream_error("STREAM_BROKEN", "größer"))
    assert headers[":message-type"] == "exception"
    assert headers[":exception-type"] == "ModelStreamError"
    assert json.loads(payload) == {"Message": "größer", "ErrorCode": "STREAM_BROKEN"}
