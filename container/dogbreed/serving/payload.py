"""What a request says and what an answer looks like: bytes and header values in, values and bytes out.

Knows media types, JSON, forms, base64 and CSV; not the web framework, not the decoder and not the model. Whatever a
client sends, what leaves here is a value or a `RequestError`.

An answer is made from `Scores`: the natural-log softmax over all classes, one row per image. Everything else that a
client can ask for (the best k, probabilities) follows from it.

Sources: RFC 9110 section 12.5.1 (Accept); AWS developer guide, your-algorithms-inference-code (the platform strips all
headers but a few, so options travel in X-Amzn-SageMaker-Custom-Attributes).
"""

from __future__ import annotations

import base64
import csv
import heapq
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dogbreed.errors import NotAcceptableError, PayloadTooLargeError, RequestError, UnsupportedMediaTypeError
from dogbreed.serving import documents, forms

MAX_IMAGES = 64
"""Images in one request: what a CPU answers within the platform's 60 seconds."""

MAX_LINES = 1024
"""Lines in one request of JSON Lines, whose answer may be streamed for the platform's 8 minutes."""

IMAGE_TYPES = (
    "image/jpeg",
    "image/jpg",
    "image/png",
    "image/webp",
    "image/bmp",
    "application/x-image",
    "application/octet-stream",
)
"""Each says "the body is one image"; which format it is, the decoder finds out."""

JSON = "application/json"
JSON_LINES = "application/jsonlines"
CSV = "text/csv"
ANSWER_TYPES = (JSON, JSON_LINES, CSV)
BODY_TYPES = (*IMAGE_TYPES, JSON, JSON_LINES, forms.FORM)

Item = bytes | RequestError
"""One encoded image, or why there is none in its place."""

DEFAULT_TOP_K = 5

_LIST_KEYS = ("images", "instances")
_LOG_PROBABILITIES = "log_probabilities"
_HEAT_MAP = "heatmap"
_MESSAGE_MAX_CHARACTERS = 1000
_QUOTED = 40
_WHITESPACE = re.compile(r"\s+")
_ASCII_WHITESPACE = bytes(code for code in range(128) if chr(code).isspace())

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """What a client may ask for beside the answer's type.

    Attributes:
        top_k: how many of the best classes are listed per image; a model with fewer classes lists all of them.
        log_probabilities: add every class's log probability.
        heat_map: add where the network looked; of one image only.
    """

    top_k: int = DEFAULT_TOP_K
    log_probabilities: bool = False
    heat_map: bool = False


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Where the network looked.

    Attributes:
        values: rows from the top, each from the left: how much a region spoke for the answer, in [0, 1].
        box: the part of the upright image that the rows cover: left, top, width and height, as shares of the whole.
    """

    values: Sequence[Sequence[float]]
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model thinks of some images.

    Attributes:
        labels: class names, in the order of the columns.
        log_probabilities: one row per image: natural logarithms of the softmax over all classes.
        heat_map: of the one image, where it was asked for.
        familiarity: per image, how like the images of the classes it is, in [0, 1]; empty where nobody knows.
        known_from: familiarity from which on an image counts as one of the classes; None where nobody knows.
    """

    labels: tuple[str, ...]
    log_probabilities: Sequence[Sequence[float]]
    heat_map: HeatMap | None = None
    familiarity: Sequence[float] = ()
    known_from: float | None = None


def join(parts: Sequence[Scores]) -> Scores:
    """The scores of several calls of one model as those of one call; of none, no scores."""
    if not parts:
        return Scores((), [])
    return Scores(
        parts[0].labels,
        [row for part in parts for row in part.log_probabilities],
        familiarity=[value for part in parts for value in part.familiarity],
        known_from=parts[0].known_from,
    )


def media_type(header: str | None) -> str:
    """The bare media type of a header value, in lower case: ``Text/CSV; charset=utf-8`` -> ``text/csv``."""
    return (header or "").partition(";")[0].strip().lower()


def read_items(content_type: str | None, body: bytes) -> list[Item]:
    """The encoded images in a request; where one cannot be read, the error stands in its place.

    Args:
        content_type: the header's value; None or empty counts as application/octet-stream.
        body: the whole body.

    Raises:
        UnsupportedMediaTypeError: the type carries no images here.
        PayloadTooLargeError: more than `MAX_IMAGES`, or `MAX_LINES` lines.
        RequestError: an empty body, or one that is no list of images at all.
    """
    found = media_type(content_type) or "application/octet-stream"
    if found not in BODY_TYPES:
        raise UnsupportedMediaTypeError(
            f"Content-Type {_quote(found)} carries no images here; send one of {', '.join(BODY_TYPES)}"
        )
    if not body:
        raise RequestError("the body is empty; send an image, or JSON with base64 images")
    if found == JSON:
        return _read_json(body)
    if found == JSON_LINES:
        return _read_lines(body)
    if found == forms.FORM:
        files = forms.read_files(content_type or "", body, max_files=MAX_IMAGES)
        return [file or RequestError(f"file {place} (counted from 0) is empty") for place, file in enumerate(files)]
    return [body]


def all_images(items: Sequence[Item]) -> list[bytes]:
    """The images, where the first error among them is the whole request's."""
    images = []
    for item in items:
        if isinstance(item, RequestError):
            raise item
        images.append(item)
    return images


def choose_answer_type(accept: str | None, default: str = JSON) -> str:
    """The answer type that the client likes best.

    The highest quality wins, then the range that names a type more exactly, then the default, then the client's order.

    Args:
        accept: the header's value; None or empty means that anything will do.
        default: media type of the answer when the client does not care.

    Raises:
        NotAcceptableError: nothing that the client accepts can be produced.
    """
    if not accept or not accept.strip():
        return default
    ranges = [parsed for item in accept.split(",") if (parsed := _read_range(item)) is not None]
    best, best_rank = None, (0.0, 0, False, 0)
    for candidate in ANSWER_TYPES:
        matches = [(_exactness(name, candidate), q, -place) for place, (name, q) in enumerate(ranges)]
        exactness, quality, order = max(matches, key=lambda match: (match[0], match[2]), default=(0, 0.0, 0))
        rank = (quality, exactness, candidate == default, order)
        if exactness and quality > 0 and (best is None or rank > best_rank):
            best, best_rank = candidate, rank
    if best is None:
        raise NotAcceptableError(
            f"Accept {_quote(accept)} cannot be produced; ask for one of {', '.join(ANSWER_TYPES)}"
        )
    return best


def only_image(items: Sequence[Item], answer_type: str) -> bytes:
    """The one image of a request for a heat map.

    Raises:
        RequestError: there are several, it cannot be read, or the answer's type has no place for a map.
    """
    if answer_type == CSV:
        raise RequestError(f"return={_HEAT_MAP} has no place in {CSV}; accept {JSON}")
    (image, *others) = all_images(items)
    if others:
        raise RequestError(f"return={_HEAT_MAP} is for one image a request; found {len(items)}")
    return image


def read_options(attributes: str | None, returned: Sequence[str] = ()) -> Options:
    """Options from the value of X-Amzn-SageMaker-Custom-Attributes, ``name=value`` separated by commas or semicolons.

    Names that are not known here are left alone: callers put trace ids there.

    Args:
        attributes: the header's value.
        returned: values of ``return`` in the address; what SageMaker calls has none.

    Raises:
        RequestError: a known name has a value that is not allowed.
    """
    top_k, wanted = DEFAULT_TOP_K, set[str]()
    pairs = [tuple(part.strip() for part in item.partition("=")) for item in re.split("[,;]", attributes or "")]
    for name, _, value in [*pairs, *(("return", "=", value) for value in returned)]:
        if name == "top_k":
            # isdecimal alone would let digits of other scripts and thousands of them through.
            if not re.fullmatch("[0-9]{1,9}", value) or int(value) == 0:
                raise RequestError(f"top_k={_quote(value)} is not allowed; give a whole number from 1")
            top_k = int(value)
        elif name == "return":
            if value not in (_LOG_PROBABILITIES, _HEAT_MAP):
                raise RequestError(
                    f"return={_quote(value)} is not allowed; give {_LOG_PROBABILITIES} or {_HEAT_MAP}, or leave it out"
                )
            wanted.add(value)
    return Options(top_k, _LOG_PROBABILITIES in wanted, _HEAT_MAP in wanted)


def write_answer(
    scores: Scores, options: Options, answer_type: str, errors: Mapping[int, RequestError] | None = None
) -> bytes:
    """The body of an answer.

    JSON is one object with ``predictions``, JSON lines one prediction a line; both say whether an image counts as one
    of the classes, where the model knows. CSV has one row per image and rank, or, with log probabilities, one row per
    image and one column per label. Images and indices count from 0, ranks from 1.

    Args:
        scores: of the images that could be scored, in order.
        options: what the client asked for.
        answer_type: one of `ANSWER_TYPES`.
        errors: place -> error of the images that could not; each gets an entry, and CSV a last column for it. None
            means that all could.
    """
    rows = _places(scores, errors or {})
    if answer_type == CSV:
        return _write_csv(scores.labels, rows, options, with_errors=errors is not None)
    entries = [_entry(scores.labels, row, options) for row in rows]
    if scores.known_from is not None:
        predictions = [entry for entry in entries if "label" in entry]
        for entry, value in zip(predictions, scores.familiarity, strict=True):
            entry |= {"known": value >= scores.known_from, "familiarity": value}
    if scores.heat_map is not None:
        entries[0]["heat_map"] = {"values": scores.heat_map.values, "box": scores.heat_map.box}
    if answer_type == JSON_LINES:
        return b"".join(_line(entry) for entry in entries)
    return _line({"predictions": entries})


def write_error(code: str, message: str) -> bytes:
    """The body of every answer that is not a success: one JSON line.

    The message is cut well below the 2,048 characters that the platform passes on as OriginalMessage.
    """
    return _line(_error_entry(code, message))


def _error_entry(code: str, message: str) -> dict[str, object]:
    return {"error": {"code": code, "message": message[:_MESSAGE_MAX_CHARACTERS]}}


def _read_lines(body: bytes) -> list[Item]:
    # Counted first: a body of line breaks would be as many objects.
    count = body.count(b"\n") + (not body.endswith(b"\n"))
    if count > MAX_LINES:
        raise PayloadTooLargeError(f"{count} lines are more than the allowed {MAX_LINES}; send several requests")
    # Not splitlines, which also breaks at characters that JSON strings may hold.
    return _each(body.removesuffix(b"\n").split(b"\n"), _read_line)


def _read_line(line: bytes, place: int) -> bytes:
    try:
        return _decode_item(documents.read(line), f"line {place} (counted from 0)")
    except ValueError as error:
        raise RequestError(f"line {place} (counted from 0) is not JSON: {error}") from error


def _each(values: Sequence[T], read: Callable[[T, int], bytes]) -> list[Item]:
    """What ``read`` makes of each value and its place; an error stands where it refuses."""
    items: list[Item] = []
    for place, value in enumerate(values):
        try:
            items.append(read(value, place))
        except RequestError as error:
            items.append(error)
    return items


def _read_json(body: bytes) -> list[Item]:
    try:
        document = documents.read(body)
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    items = _list_in(document)
    if not items:
        raise RequestError("the list of images is empty")
    if len(items) > MAX_IMAGES:
        raise PayloadTooLargeError(f"{len(items)} images are more than the allowed {MAX_IMAGES}; send several requests")
    return _each(items, lambda item, place: _decode_item(item, f"image {place} (counted from 0)"))


def _list_in(document: object) -> list[object]:
    if isinstance(document, dict):
        keys = [key for key in _LIST_KEYS if key in document]
        if len(keys) != 1:
            found = ", ".join(_quote(key) for key in list(document)[:5]) or "no keys"
            raise RequestError(f'the JSON object must hold either "images" or "instances"; found {found}')
        document = document[keys[0]]
    if not isinstance(document, list):
        raise RequestError(
            f'images must be a list of base64 strings or of {{"b64": "..."}}; found {_json_type(document)}'
        )
    return document


def _decode_item(item: object, where: str) -> bytes:
    text = item.get("b64") if isinstance(item, dict) else item
    if not isinstance(text, str):
        raise RequestError(f'{where} must be a base64 string or {{"b64": "..."}}; found {_json_type(item)}')
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise RequestError(f"{where} is a data URI without ;base64")
    try:
        # Encoders that follow MIME break lines; anything else that is not base64 is a mistake.
        data = base64.b64decode(_without_whitespace(text), validate=True)
    except ValueError as error:
        raise RequestError(f"{where} is not base64: {error}") from error
    if not data:
        raise RequestError(f"{where} is empty")
    return data


def _without_whitespace(text: str) -> str | bytes:
    """By a table where it is ASCII, as base64 is: a pattern takes ten times as long, with the interpreter held."""
    return text.encode().translate(None, _ASCII_WHITESPACE) if text.isascii() else _WHITESPACE.sub("", text)


def _read_range(item: str) -> tuple[str, float] | None:
    """One media range with its quality, or None when it is malformed and therefore matches nothing."""
    name, *parameters = (part.strip().lower() for part in item.split(";"))
    quality = 1.0
    for parameter in parameters:
        key, _, value = (part.strip() for part in parameter.partition("="))
        if key == "q":
            if not re.fullmatch(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", value):
                return None
            quality = float(value)
    return (name, quality) if name else None


def _exactness(name: str, candidate: str) -> int:
    """How exactly a media range names a type: 3 by name, 2 by its family, 1 for everything, 0 not at all."""
    if name == candidate:
        return 3
    if name == candidate.partition("/")[0] + "/*":
        return 2
    return 1 if name == "*/*" else 0


def best(row: Sequence[float], count: int = 1) -> list[int]:
    """Indices of the ``count`` largest values, best first; of equal ones the lower index first."""
    return heapq.nlargest(count, range(len(row)), key=row.__getitem__)


def _places(scores: Scores, errors: Mapping[int, RequestError]) -> list[Sequence[float] | RequestError]:
    """Scores and errors in the order of the images."""
    rows = iter(scores.log_probabilities)
    count = len(scores.log_probabilities) + len(errors)
    return [errors[place] if place in errors else next(rows) for place in range(count)]


def _entry(labels: Sequence[str], row: Sequence[float] | RequestError, options: Options) -> dict[str, object]:
    if isinstance(row, RequestError):
        return _error_entry(row.code, str(row))
    candidates = [
        {"label": labels[index], "index": index, "probability": math.exp(row[index])}
        for index in best(row, options.top_k)
    ]
    prediction: dict[str, object] = {**candidates[0], "top_k": candidates}
    if options.log_probabilities:
        prediction[_LOG_PROBABILITIES] = list(row)
    return prediction


def _write_csv(
    labels: Sequence[str],
    rows: Sequence[Sequence[float] | RequestError],
    options: Options,
    *,
    with_errors: bool,
) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = tuple(labels) if options.log_probabilities else ("image", "rank", "label", "index", "probability")
    last = ("",) if with_errors else ()
    writer.writerow(header + (("error",) if with_errors else ()))
    for image, row in enumerate(rows):
        if isinstance(row, RequestError):
            cells = ("",) * len(header) if options.log_probabilities else (image, "", "", "", "")
            writer.writerow((*cells, str(row)))
        elif options.log_probabilities:
            writer.writerow((*row, *last))
        else:
            for rank, index in enumerate(best(row, options.top_k), start=1):
                writer.writerow((image, rank, labels[index], index, math.exp(row[index]), *last))
    return text.getvalue().encode()


def _line(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def _quote(text: str) -> str:
    return repr(text if len(text) <= _QUOTED else text[:_QUOTED] + "...")


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
