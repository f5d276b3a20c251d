"""JSON as clients send it, read where it is made of few values only.

Python's reader holds the interpreter until it has done, and makes an object of each value: 25 MB of empty lists are 9
million, take seconds and a GiB. What this server is asked for is a few long strings.
"""

from __future__ import annotations

import json
from typing import Any

from dogbreed.errors import PayloadTooLargeError

MOST_MARKS = 16 * 1024
"""Commas and opening brackets, one of which is before each value: 64 images need 130, and may have much beside them."""

_MARKS = (b",", b"[", b"{")


def read(data: bytes) -> Any:  # noqa: ANN401  JSON that may be anything
    """The value of a JSON document.

    Raises:
        PayloadTooLargeError: it has more values than anybody needs.
        ValueError: it is not JSON, or nested too deeply.
    """
    # Fewer bytes cannot have more of them.
    if len(data) > MOST_MARKS and (marks := sum(map(data.count, _MARKS))) > MOST_MARKS:
        raise PayloadTooLargeError(f"{marks} commas and brackets in JSON are more than the allowed {MOST_MARKS}")
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError(str(error)) from error
