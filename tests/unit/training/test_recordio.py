from __future__ import annotations

import contextlib
import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.streams import MAGIC, im2rec, record

from dogbreed.training.recordio import CutOffError, RecordError, read_records, unpack_image


def read(stream: bytes) -> list[bytes]:
    return list(read_records(io.BytesIO(stream)))


def test_the_bytes_of_the_format() -> None:
    stream = bytes.fromhex("0a23d7ce 05000000 68656c6c 6f000000  0a23d7ce 00000000  0a23d7ce 04000000 61626364")
    assert read(stream) == [b"hello", b"", b"abcd"]


def test_an_empty_stream_has_no_records() -> None:
    assert read(b"") == []


def test_a_record_in_parts_gets_the_magic_number_back() -> None:
    parts = [(1, b"abcd"), (2, b""), (2, b"efgh"), (3, b"i\0\0\0")]
    lengths = [4, 0, 4, 1]
    stream = b"".join(
        MAGIC + struct.pack("<I", flag << 29 | length) + part
        for (flag, part), length in zip(parts, lengths, strict=True)
    )
    assert read(stream + record(b"next")) == [b"abcd" + MAGIC + MAGIC + b"efgh" + MAGIC + b"i", b"next"]


@given(st.lists(st.lists(st.sampled_from([MAGIC, MAGIC[:3], b"x", b"four", b""])).map(b"".join)))
def test_what_a_writer_writes_is_read_again(records: list[bytes]) -> None:
    assert read(b"".join(map(record, records))) == records


@given(st.lists(st.sampled_from([MAGIC, b"\5\0\0\0", b"\4\0\0\x20", b"\0\0\0\x60", b"four", b"x"])).map(b"".join))
def test_any_bytes_are_records_or_a_record_error(stream: bytes) -> None:
    with contextlib.suppress(RecordError):
        read(stream)


@pytest.mark.parametrize("kept", range(1, 16))
def test_a_stream_that_is_cut_off_is_an_error(kept: int) -> None:
    whole = record(b"first") + record(b"second")[:kept]
    with pytest.raises(CutOffError, match=r"it ends in (the head of )?record 2"):
        read(whole)


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (b"\xff\xd8\xff\xe0 a photo", "record 1 begins with the bytes ff d8 ff e0, not with 0a 23 d7 ce"),
        (b"\xff", "record 1 begins with the bytes ff, not"),
        (record(b"abc") + b"\0" * 8, "record 2 begins with the bytes 00 00 00 00, not"),
        (MAGIC + struct.pack("<I", 2 << 29), "record 1 begins in its middle"),
        (MAGIC + struct.pack("<I", 3 << 29), "record 1 begins in its middle"),
        (MAGIC + struct.pack("<I", 7 << 29), "record 1 begins in its middle"),
        (MAGIC + struct.pack("<I", 1 << 29) + record(b"another"), "record 1 has no end"),
        (MAGIC + struct.pack("<I", 1 << 29), "it ends in the head of record 1"),
    ],
)
def test_what_is_not_recordio_is_an_error(stream: bytes, complaint: str) -> None:
    with pytest.raises(RecordError, match=complaint):
        read(stream)


def test_records_of_im2rec_hold_labels_and_an_image() -> None:
    (one, many) = read(im2rec(b"photo", 3.0) + im2rec(b"photo", 1.0, 2.5))
    assert unpack_image(one) == ((3.0,), b"photo")
    assert unpack_image(many) == ((1.0, 2.5), b"photo")


def test_a_record_that_is_shorter_than_its_header_is_an_error() -> None:
    with pytest.raises(RecordError, match="23 bytes are too few for the header of an image; it has 24"):
        unpack_image(b"\0" * 23)
    with pytest.raises(RecordError, match="24 bytes are too few for a header with 1 labels"):
        unpack_image(b"\1" + b"\0" * 23)
