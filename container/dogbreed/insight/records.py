"""The bytes of an events file: protocol-buffer fields, and records with their length and checksums.

smdebug's tensors and TensorBoard's events are kept in the same kind of file. Written by hand, because building each
message as an object costs more than a step of a small network, and because the libraries that write them bring
a thread, a queue and tens of megabytes.

Source: protobuf.dev/programming-guides/encoding; tensorflow's record_writer.h (a record is its length, the masked
CRC-32C of the length, the content, the masked CRC-32C of the content).
"""

from __future__ import annotations

import struct
from functools import lru_cache


def field(number: int, content: bytes) -> bytes:
    """A field of bytes: a text, a message, or packed numbers."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def double(number: int, value: float) -> bytes:
    """A field of one float64."""
    return varint(number << 3 | 1) + struct.pack("<d", value)


def single(number: int, value: float) -> bytes:
    """A field of one float32."""
    return varint(number << 3 | 5) + struct.pack("<f", value)


def whole(number: int, value: int) -> bytes:
    """A field of one whole number, 0 or more."""
    return varint(number << 3) + varint(value)


def varint(number: int) -> bytes:
    """A whole number, 0 or more, in groups of seven bits."""
    if number < 128:
        return bytes((number,))
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


@lru_cache(maxsize=4096)
def head(length: int) -> bytes:
    """What stands before a record of so many bytes."""
    packed = struct.pack("<Q", length)
    return packed + checksum(packed)


def checksum(content: bytes) -> bytes:
    """The masked CRC-32C of some bytes; 0.1 microseconds each."""
    from smdebug.core.tfrecord.record_writer import masked_crc32c

    return struct.pack("<I", masked_crc32c(content))
