"""The files in a multipart form, as HTML forms and `curl --form` send them.

Knows Werkzeug's parser, which does no I/O, and nothing of routes. Source: RFC 7578.
"""

from __future__ import annotations

from werkzeug.datastructures import Headers
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from dogbreed.errors import PayloadTooLargeError, RequestError

FORM = "multipart/form-data"


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
        files = _files(MultipartDecoder(boundary.encode(), max_parts=2 * max_files), body)
    except RequestEntityTooLarge as error:
        raise PayloadTooLargeError(f"the form has more than {2 * max_files} parts") from error
    except ValueError as error:
        raise RequestError(f"the body is not a multipart form, or not the whole of one: {error!s:.200}") from error
    if not files:
        raise RequestError("the form holds no file; send one as curl --form file=@photo.jpg does")
    if len(files) > max_files:
        raise PayloadTooLargeError(f"{len(files)} images are more than the allowed {max_files}; send several requests")
    return files


def _files(decoder: MultipartDecoder, body: bytes) -> list[bytes]:
    """Raises ValueError where the form is malformed or ends early."""
    decoder.receive_data(body)
    decoder.receive_data(None)
    files: list[bytearray] = []
    wanted = False
    while not isinstance(event := decoder.next_event(), Epilogue):
        if isinstance(event, NeedData):
            raise ValueError("it ends early")
        if isinstance(event, File | Field):
            wanted = isinstance(event, File) or _is_image(event.headers)
            if wanted:
                files.append(bytearray())
        elif isinstance(event, Data) and wanted:
            files[-1] += event.data
    return [bytes(file) for file in files]


def _is_image(headers: Headers) -> bool:
    return str(headers.get("Content-Type", "")).lower().startswith("image/")
