"""Reading a request's body, whatever the client and the WSGI server do meanwhile."""

from __future__ import annotations

import json

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge

from dogbreed.errors import RequestError


def read_body(limit_bytes: int) -> bytes:
    """The whole body.

    Raises:
        RequestEntityTooLarge: it is longer than the limit.
        RequestError: it cannot be read.
    """
    try:
        body = request.get_data(cache=False)
    except RequestEntityTooLarge:
        raise
    except Exception as error:  # each WSGI server has exceptions of its own for these
        raise RequestError("the body cannot be read: it is malformed, broke off or stalled") from error
    # Of a chunked body over the limit, Werkzeug 3.1 returns the first bytes as if they were all (LimitedStream).
    if len(body) == limit_bytes and request.input_stream.read(1):
        raise RequestEntityTooLarge
    return body


def read_strings(limit_bytes: int, *names: str) -> list[str]:
    """Named strings of the JSON object in the body.

    Raises:
        RequestEntityTooLarge: it is longer than the limit.
        RequestError: it is something else.
    """
    try:
        document = json.loads(read_body(limit_bytes))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict) or not all(isinstance(document.get(name), str) for name in names):
        raise RequestError(f"the body must be a JSON object with the strings {', '.join(names)}")
    return [document[name] for name in names]
