"""The size that a header gives is Pillow's, and what is not plain gives none."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dogbreed.jpeg import plain_size


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
    assert plain_size(encode(mode, **options)) == (16, 24)
    assert plain_size(encode(mode, (1, 300), **options)) == (300, 1)


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
    assert plain_size(data) is None


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
    assert plain_size(bytes(data)) is None


@pytest.mark.parametrize("side", [5, 7], ids=["height", "width"])
def test_an_empty_picture_has_no_size(side):
    data = bytearray(encode())
    start = frame_at(data) + side
    data[start : start + 2] = b"\x00\x00"
    assert plain_size(bytes(data)) is None


def test_two_frames_have_no_size():
    data = encode()
    start = frame_at(data)
    frame = data[start : start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")]
    assert plain_size(data[:start] + frame + data[start:]) is None


SEEDS = [encode(), encode("L"), encode(progressive=True), encode(exif=turned()), encode("CMYK")]


@settings(max_examples=300)
@given(st.sampled_from(SEEDS), st.integers(0, 700), st.binary(min_size=1, max_size=4))
def test_whatever_has_a_size_has_pillows(data, at, damage):
    at %= len(data)
    damaged = data[:at] + damage + data[at + len(damage) :]
    found = plain_size(damaged)
    try:
        with Image.open(io.BytesIO(damaged), formats=("JPEG",)) as image:
            header = image
            turn = image.getexif().get(0x0112, 1)
    except Exception:  # tables that Pillow cannot read; the decoder has the last word
        return
    assert found in (None, (header.height, header.width))
    if found is not None:
        assert (turn, header.mode in ("L", "RGB")) == (1, True)
