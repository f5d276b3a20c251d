"""The size that a header gives is Pillow's, and what is not plain gives none; scans are never counted too low."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dogbreed.jpeg import plain_header, scans


def encode(mode="RGB", size=(24, 16), **options):
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"by hand"}, {"restart_marker_blocks": 1}])
def test_a_plain_jpeg_tells_height_and_width(mode, options):
    assert plain_header(encode(mode, **options))[:2] == (16, 24)
    assert plain_header(encode(mode, (1, 300), **options))[:2] == (300, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"GIF89a",
        encode("CMYK"),
        encode(exif=turned()),
        encode(xmp=b"<x:xmpmeta/>"),
        encode(icc_profile=b"profile"),
        encode()[:100],
        encode()[:-400],
        b"\x00" + encode(),
    ],
    ids=["empty", "a start", "another format", "CMYK", "EXIF", "XMP", "a profile", "cut", "cut in a table", "shifted"],
)
def test_what_is_not_plain_has_no_size(data):
    assert plain_header(data) is None


def frame_at(data):
    return data.index(b"\xff\xc0")


@pytest.mark.parametrize(
    ("at", "value"),
    [(4, 12), (9, 4), (9, 2), (3, 7), (1, 0xC3), (1, 0xC9), (1, 0xFF), (0, 0)],
    ids=["12 bits", "4 components", "2 components", "a short frame", "lossless", "arithmetic", "fill", "no marker"],
)
def test_a_frame_of_another_kind_has_no_size(at, value):
    data = bytearray(encode())
    data[frame_at(data) + at] = value
    assert plain_header(bytes(data)) is None


@pytest.mark.parametrize("side", [5, 7], ids=["height", "width"])
def test_an_empty_picture_has_no_size(side):
    data = bytearray(encode())
    start = frame_at(data) + side
    data[start : start + 2] = b"\x00\x00"
    assert plain_header(bytes(data)) is None


def test_two_frames_have_no_size():
    data = encode()
    start = frame_at(data)
    frame = data[start : start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")]
    assert plain_header(data[:start] + frame + data[start:]) is None


def scan_by_scan(data):
    """A baseline file whose components have a scan each, as ITU-T T.81 allows: the heads of it, not the data."""
    start = data.index(b"\xff\xda")
    heads = [b"\xff\xda\x00\x08\x01" + bytes([component, 0, 0, 63, 0]) + b"\x00" for component in (1, 2, 3)]
    return data[:start] + b"".join(heads) + b"\xff\xd9"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(), 1),
        (encode("L"), 1),
        (encode("CMYK"), 1),
        (encode(exif=turned()), 1),
        (encode(icc_profile=b"\xff\xda" * 9), 1),
        (encode() + b"\xff\xda" * 9, 1),
        (encode(progressive=True), 10),
        (encode("L", progressive=True), 6),
        (encode(progressive=True, exif=turned()), 10),
        (encode(progressive=True, icc_profile=b"\xff\xda" * 9), 19),
        (scan_by_scan(encode()), 3),
        (scan_by_scan(encode(exif=turned())), 3),
    ],
    ids=[
        "colour", "grey", "CMYK", "EXIF", "a profile", "bytes behind", "progressive", "progressive grey",
        "progressive with EXIF", "progressive with a profile", "a scan each", "a scan each with EXIF",
    ],
)  # fmt: skip
def test_scans_are_counted_where_there_may_be_several(data, expected):
    assert scans(data) == expected
    plain = plain_header(data)
    assert plain is None or plain[2] == expected


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:2] + b"\xff" + data[2:],
        lambda data: data[:2] + b"\x00" + data[2:],
        lambda data: data[:2] + b"\xff\x01" + data[2:],
        lambda data: data[:2] + b"\xff\xfe\x00\x00" + data[2:],
        lambda data: data[:2] + b"\xff\xfe\x00\x02" * 99 + data[2:],
        lambda data: data.replace(b"\xff\xc0", b"\xff\xc9"),
        lambda data: data.replace(b"\xff\xc0", b"\xff\xc0\x00\x0a" + b"\x08" * 8 + b"\xff\xc0"),
    ],
    ids=["fill", "between", "no length", "short", "long", "arithmetic", "two frames"],
)
def test_what_is_read_otherwise_by_others_is_not_taken_for_a_single_scan(spoil):
    data = encode() + b"\xff\xda" * 9
    assert scans(data) == 1
    assert scans(spoil(data)) == 10


SEEDS = [encode(), encode("L"), encode(progressive=True), encode(exif=turned()), encode("CMYK")]


@settings(max_examples=300)
@given(st.sampled_from(SEEDS), st.integers(0, 700), st.binary(min_size=1, max_size=4))
def test_whatever_has_a_size_has_pillows(data, at, damage):
    at %= len(data)
    damaged = data[:at] + damage + data[at + len(damage) :]
    found = plain_header(damaged)
    try:
        with Image.open(io.BytesIO(damaged), formats=("JPEG",)) as image:
            header = image
            turn = image.getexif().get(0x0112, 1)
    except Exception:  # tables that Pillow cannot read; the decoder has the last word
        return
    if found is not None:
        assert found == (header.height, header.width, scans(damaged))
        assert (turn, header.mode in ("L", "RGB")) == (1, True)
