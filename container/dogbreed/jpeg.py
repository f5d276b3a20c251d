"""What the header of a plain JPEG says: its size, where nothing in it needs a reader that knows more.

Photos of data sets often are such files, all 1,230 of the dogs measured on; a phone's, with EXIF, are not. Pillow reads
every table of a header into Python objects, which is a fifth of decoding a small photo. No decoder: whatever is not
plain is left to Pillow, and what is wrong with the rest the decoder finds out.

Source: ITU-T T.81, B.1.1.4 and B.2 (markers, segments, frame headers).
"""

from __future__ import annotations

_START = b"\xff\xd8"
_SCAN = 0xDA
# Baseline, extended sequential and progressive DCT, Huffman-coded.
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
# Tables, the restart interval, a comment, JFIF. Others may hold an orientation, a profile, or how colours are meant.
_HARMLESS = frozenset({0xDB, 0xC4, 0xDD, 0xFE, 0xE0})
_BITS = 8
_GREY, _COLOUR = 1, 3
# Of a photo there are about eight.
_MOST_SEGMENTS = 64
_FRAME_HEAD_BYTES = 8  # length, precision, height, width, components


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a grey or colour JPEG that is upright and has no profile; None for anything else.

    Args:
        data: a whole file, of whatever kind.
    """
    if not data.startswith(_START):
        return None
    found, at = None, len(_START)
    for _ in range(_MOST_SEGMENTS):
        if at + 4 > len(data) or data[at] != 0xFF:
            return None
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SCAN:
            return found
        if marker in _FRAMES and found is None and length >= _FRAME_HEAD_BYTES and at + 10 <= len(data):
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            if data[at + 4] != _BITS or data[at + 9] not in (_GREY, _COLOUR) or not height or not width:
                return None
            found = height, width
        elif marker not in _HARMLESS:
            return None
        at += 2 + length
    return None
