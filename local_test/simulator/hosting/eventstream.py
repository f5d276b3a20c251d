"""AWS's binary event stream, the writing side: what InvokeEndpointWithResponseStream answers with.

A message is: total length and headers' length (4 bytes each, big endian), the CRC-32 of those eight bytes, the headers,
the payload, and the CRC-32 of all before. A header is the length of its name (1 byte), the name, the type 7 of a text,
the text's length (2 bytes) and the text. Source: the Smithy specification's "Amazon Event Stream" page, and botocore's
`eventstream` module, which reads it.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping

CONTENT_TYPE = "application/vnd.amazon.eventstream"

_TEXT = 7
_PRELUDE_BYTES = 12
_CRC_BYTES = 4


def payload_part(content: bytes) -> bytes:
    """One part of the container's answer."""
    headers = {
        ":event-type": "PayloadPart",
        ":content-type": "application/octet-stream",
        ":message-type": "event",
    }
    return _message(headers, content)


def stream_error(code: str, message: str) -> bytes:
    """The end of a stream that failed.

    Args:
        code: MODEL_INVOCATION_TIME_EXCEEDED or STREAM_BROKEN.
        message: for the client.
    """
    headers = {
        ":exception-type": "ModelStreamError",
        ":content-type": "application/json",
        ":message-type": "exception",
    }
    return _message(headers, json.dumps({"Message": message, "ErrorCode": code}).encode())


def _message(headers: Mapping[str, str], payload: bytes) -> bytes:
    encoded = b"".join(_header(name, value) for name, value in headers.items())
    lengths = struct.pack("!II", _PRELUDE_BYTES + len(encoded) + len(payload) + _CRC_BYTES, len(encoded))
    message = lengths + struct.pack("!I", zlib.crc32(lengths)) + encoded + payload
    return message + struct.pack("!I", zlib.crc32(message))


def _header(name: str, value: str) -> bytes:
    return (
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", _TEXT, len(value.encode())) + value.encode()
    )
