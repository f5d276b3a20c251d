"""The files in a multipart form, as HTML forms and `curl --form` send them.

Knows nothing of routes. A body is looked through once, for its boundary, and nothing in it is copied but the files:
a general parser goes by patterns, and holds the interpreter for seconds where a body is made for that.

Source: RFC 7578, and RFC 2046, 5.1 (boundaries). A line may end in LF alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from werkzeug.http import parse_options_header

from dogbreed.errors import PayloadTooLargeError, RequestError

FORM = "multipart/form-data"

# Behind a boundary: that there is no further part, or the end of its line.
_BEHIND = re.compile(rb"(--)|[^\S\r\n]*\r?\n")
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_CONTINUED = re.compile(rb"\r?\n[ \t]")
# Of one part. A file's has some hundred.
_MOST_HEAD_BYTES = 16 * 1024


def read_files(content_type: str, body: bytes, *, max_files: int) -> list[bytes]:
    """The contents of the form's files, in order; a field counts as one when its own type says that it is an image.

    Args:
        content_type: the header's value, with the boundary.
        body: the whole body.
        max_files: that may be in it.

    Raises:
        PayloadTooLargeError: more than ``max_files`` files, or twice as many parts.
        RequestError: the body is no form, or has no file in it.
    """
    boundary = parse_options_header(content_type)[1].get("boundary", "")
    if not boundary:
        raise RequestError(f"Content-Type {FORM} has no boundary")
    try:
        parts = _parts(body, boundary.encode(), most=2 * max_files)
        files = [body[start:end] for head, start, end in parts if _is_file(head)]
    except ValueError as error:
        raise RequestError(f"the body is not a multipart form, or not the whole of one: {error!s:.200}") from error
    if not files:
        raise RequestError("the form holds no file; send one as curl --form file=@photo.jpg does")
    if len(files) > max_files:
        raise PayloadTooLargeError(f"{len(files)} images are more than the allowed {max_files}; send several requests")
    return files


def _parts(body: bytes, boundary: bytes, *, most: int) -> Iterator[tuple[bytes, int, int]]:
    """The parts of a form: the head of each, and where its content begins and ends in the body.

    Raises:
        PayloadTooLargeError: more than ``most`` parts.
        ValueError: the form is malformed or ends early.
    """
    delimiter = b"\n--" + boundary
    # What may come before the first boundary nobody sends.
    first = re.match(rb"(?:\r?\n)?--%s" % re.escape(boundary), body)
    opening = _BEHIND.match(body, first.end()) if first is not None else None
    if opening is None:
        raise ValueError("it does not begin with its boundary")
    if opening[1]:
        return
    start = at = opening.end()
    found = 0
    # Twice: what begins like a boundary, at the beginning of a line, may be content.
    for _ in range(2 * most):
        # A part without a single byte ends with the line break that ends its head.
        place = body.find(delimiter, max(0, at - 1))
        if place < 0:
            raise ValueError("it ends early")
        at = place + len(delimiter)
        behind = _BEHIND.match(body, at)
        if behind is None:
            continue
        found += 1
        if found > most:
            break
        end = place - 1 if body[place - 1 : place] == b"\r" else place
        blank = _BLANK_LINE.search(body, start, min(place + 1, start + _MOST_HEAD_BYTES))
        if blank is None:
            raise ValueError(f"a part has no head, or one of more than {_MOST_HEAD_BYTES} bytes")
        yield body[start : blank.start()], blank.end(), end
        if behind[1]:
            return
        start = at = behind.end()
    raise PayloadTooLargeError(f"the form has more than {most} parts")


def _is_file(head: bytes) -> bool:
    """Raises ValueError for a head that is none."""
    headers = {}
    for line in _CONTINUED.sub(b" ", head).splitlines():
        name, _, value = line.decode().partition(":")
        headers[name.strip().lower()] = value.strip()
    if "content-disposition" not in headers:
        raise ValueError("Missing Content-Disposition header")
    named = "filename" in parse_options_header(headers["content-disposition"])[1]
    return named or headers.get("content-type", "").lower().startswith("image/")
