"""One object as the bodies of its requests, and its answers as one object again.

SplitType None makes one body of an object, whatever the strategy; SplitType Line makes records of lines, each with its
line feed, and MultiRecord packs as many of them as the payload allows. AWS docs: batch-transform; that a record keeps
its line feed is as the SageMaker SDK's local mode has it.

Knows bytes; neither jobs nor requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from local_test.simulator.batch.parameters import Assemble, Parameters, Split, Strategy


class TooLargeError(ValueError):
    """A body that cannot be made small enough."""


Payload = bytes | Path
"""A body, or the file that it is."""


def bodies(file: Path, split: Split, parameters: Parameters) -> Iterator[Payload]:
    """The bodies of an object's requests, in order.

    Raises:
        TooLargeError: the object, or one of its lines, is larger than a payload may be.
    """
    limit = parameters.payload_bytes
    if split is Split.NONE:
        _check(file.stat().st_size, limit, "the object has", parameters)
        yield file
    elif parameters.strategy is Strategy.SINGLE:
        yield from _lines(file, parameters)
    else:
        yield from _packed(_lines(file, parameters), limit)


def assemble(answer: bytes, how: Assemble) -> bytes:
    """An answer as a part of its object's output."""
    return answer + b"\n" if how is Assemble.LINE else answer


def _lines(file: Path, parameters: Parameters) -> Iterator[bytes]:
    with file.open("rb") as opened:
        for number, line in enumerate(opened, 1):
            _check(len(line), parameters.payload_bytes, f"line {number} has", parameters)
            yield line


def _packed(lines: Iterator[bytes], limit: int | None) -> Iterator[bytes]:
    pack: list[bytes] = []
    size = 0
    for line in lines:
        if pack and limit is not None and size + len(line) > limit:
            yield b"".join(pack)
            pack, size = [], 0
        pack.append(line)
        size += len(line)
    if pack:
        yield b"".join(pack)


def _check(size: int, limit: int | None, what: str, parameters: Parameters) -> None:
    if limit is not None and size > limit:
        raise TooLargeError(f"{what} {size:,} bytes, more than MaxPayloadInMB {parameters.payload_mb}")
