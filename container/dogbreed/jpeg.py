"""What a JPEG says before it is decoded: the size of a plain one, and how many scans any has.

Plain is what needs no reader that knows more. Photos of data sets often are such files, all 1,230 of the dogs measured
on; a phone's, with EXIF, are not. Pillow reads every table of a header into Python objects, which is a fifth of
decoding a small photo. No decoder: whatever is not plain is left to Pillow, and what is wrong with the rest the decoder
finds out.

A decoder goes over the whole picture once for each scan, and one that adds nothing may have less than 100 bytes: what
a JPEG costs, neither its pixels nor its bytes say.

Source: ITU-T T.81, B.1.1.4 and B.2 (markers, segments, frame and scan headers).
"""

from __future__ import annotations

_START = b"\xff\xd8"
_SCAN = 0xDA
_SCAN_MARKER = b"\xff\xda"
# Baseline, extended sequential and progressive DCT, Huffman-coded.
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_SEQUENTIAL = frozenset({0xC0, 0xC1})
# All that hold a frame's header: 0xC4, 0xC8 and 0xCC between them are tables and a place that is kept free.
_ALL_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers without a length: restarts, the picture's start and end, a fill byte, and two that have no use here.
_BARE = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xDA)})
# Tables, the restart interval, a comment, JFIF. Others may hold an orientation, a profile, or how colours are meant.
_HARMLESS = frozenset({0xDB, 0xC4, 0xDD, 0xFE, 0xE0})
_BITS = 8
_GREY, _COLOUR = 1, 3
# Of a photo there are about eight.
_MOST_SEGMENTS = 64
_FRAME_HEAD_BYTES = 8  # length, precision, height, width, components


def plain_header(data: bytes) -> tuple[int, int, int] | None:
    """Height, width and scans (see `scans`) of a grey or colour JPEG that is upright and has no profile.

    Args:
        data: a whole file, of whatever kind.

    Returns:
        None for anything else.
    """
    if not data.startswith(_START):
        return None
    found, at = None, len(_START)
    for _ in range(_MOST_SEGMENTS):
        if at + 4 > len(data) or data[at] != 0xFF:
            return None
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SCAN:
            break
        if marker in _FRAMES and found is None and length >= _FRAME_HEAD_BYTES and at + 10 <= len(data):
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            if data[at + 4] != _BITS or data[at + 9] not in (_GREY, _COLOUR) or not height or not width:
                return None
            # What the first scan must hold to be the only one; of a progressive picture none is.
            found = height, width, data[at + 9 : at + 10] if marker in _SEQUENTIAL else b""
        elif marker not in _HARMLESS:
            return None
        at += 2 + length
    if found is None or marker != _SCAN:
        return None
    height, width, components = found
    return height, width, 1 if data[at + 4 : at + 5] == components else data.count(_SCAN_MARKER)


def scans(data: bytes) -> int:
    """How often a decoder goes over the picture: once where the header says so, else as often as scans begin.

    A sequential picture whose first scan holds all components has no other (libjpeg refuses it). What looks like a
    scan's beginning inside of another segment, or behind the picture, counts as one: random bytes have one in 64 KiB.

    Args:
        data: a whole JPEG file, also one of several pictures.
    """
    return 1 if _has_one_scan(data) else data.count(_SCAN_MARKER)


def _has_one_scan(data: bytes) -> bool:
    """Whether the header says so; False wherever it is read otherwise than by its plainest rules."""
    components, at = None, len(_START)
    for _ in range(_MOST_SEGMENTS):
        if at + 10 > len(data) or data[at] != 0xFF or data[at + 1] in _BARE:
            return False
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SCAN:
            return data[at + 4] == components
        if marker in _ALL_FRAMES:
            if marker not in _SEQUENTIAL or components is not None:
                return False
            components = data[at + 9]
        if length < 2:
            return False
        at += 2 + length
    return False
