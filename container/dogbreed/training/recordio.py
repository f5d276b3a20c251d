"""RecordIO: a stream of bytes -> records, as MXNet writes them and SageMaker streams them.

A record is the magic number, a word with its length, its bytes, and zeros up to a multiple of four. Where the magic
number itself stands in a record, at a multiple of four, the writer cuts the record there and leaves those four bytes
out; the upper three bits of the length word tell the parts of such a record. Everything is little-endian.

A record that MXNet's im2rec wrote holds an image behind a header with its label.

Knows nothing of channels, pipes or images.

Sources: dmlc-core, include/dmlc/recordio.h and src/recordio.cc; MXNet, python/mxnet/recordio.py (IRHeader).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO

MAGIC = struct.pack("<I", 0xCED7230A)
"""The bytes that every part of a record begins with."""

_HEAD = struct.Struct("<II")
_LENGTH_BITS = 29
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
# flag: number of labels behind the header, or 0; label; two numbers of the image.
_IMAGE_HEAD = struct.Struct("<IfQQ")


class RecordError(ValueError):
    """The stream is not RecordIO."""


class CutOffError(RecordError):
    """The stream ends inside a record."""


def read_records(stream: IO[bytes]) -> Iterator[bytes]:
    """The records of a stream, one at a time in memory; none when it is empty.

    Args:
        stream: buffered: `read(n)` gives n bytes unless the stream ends.

    Raises:
        RecordError: see the classes; names the record, from 1.
    """
    number = 0
    while head := stream.read(_HEAD.size):
        number += 1
        flag, part = _read_part(head, stream, number)
        if flag == _WHOLE:
            yield part
            continue
        if flag != _FIRST:
            raise RecordError(f"record {number} begins in its middle")
        parts = [part]
        while flag != _LAST:
            flag, part = _read_part(stream.read(_HEAD.size), stream, number)
            if flag not in (_MIDDLE, _LAST):
                raise RecordError(f"record {number} has no end")
            parts.append(part)
        yield MAGIC.join(parts)


def unpack_image(record: bytes) -> tuple[tuple[float, ...], bytes]:
    """The labels and the image of a record that im2rec wrote.

    Raises:
        RecordError: it is too short for the header that it begins with.
    """
    if len(record) < _IMAGE_HEAD.size:
        raise RecordError(f"{len(record)} bytes are too few for the header of an image; it has {_IMAGE_HEAD.size}")
    count, label, _, _ = _IMAGE_HEAD.unpack_from(record)
    start = _IMAGE_HEAD.size + 4 * count
    if len(record) < start:
        raise RecordError(f"{len(record)} bytes are too few for a header with {count} labels")
    return struct.unpack_from(f"<{count}f", record, _IMAGE_HEAD.size) if count else (label,), record[start:]


def _read_part(head: bytes, stream: IO[bytes], number: int) -> tuple[int, bytes]:
    """The flag and the bytes of one part, behind its head."""
    if not MAGIC.startswith(head[:4]):
        raise RecordError(f"record {number} begins with the bytes {head[:4].hex(' ')}, not with {MAGIC.hex(' ')}")
    if len(head) < _HEAD.size:
        raise CutOffError(f"it ends in the head of record {number}")
    _, word = _HEAD.unpack(head)
    length = word & ((1 << _LENGTH_BITS) - 1)
    padded = -(-length // 4) * 4
    part = stream.read(padded)
    if len(part) < padded:
        raise CutOffError(f"it ends in record {number}, after {len(part)} of {length} bytes")
    return word >> _LENGTH_BITS, part[:length]
