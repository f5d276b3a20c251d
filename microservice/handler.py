"""`POST /classify`: a Lambda function that asks a SageMaker endpoint what is on one or several images.

Knows API Gateway's payload format 2.0 and the endpoint's answers; needs boto3 and nothing else, and is deployed as it
stands (infrastructure/microservice.yaml). Every image is one request to the endpoint, a few at a time, so that an image
which cannot be read costs its own answer alone. Whatever a client sends, what leaves here is JSON with a status.

The clocks, each with a margin to the one outside of it: API Gateway ends a request after 30 s, Lambda the function
after 28 s, this file leaves at `_MARGIN_S` before that, and one request to the endpoint takes `READ_TIMEOUT_S` at most.

Sources: API Gateway developer guide, http-api-develop-integrations-lambda (events) and http-api-quotas; Lambda
developer guide, gettingstarted-limits (6 MB); SageMaker developer guide, serverless-endpoints-invoke (4 MB).
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from email.parser import BytesHeaderParser, HeaderParser
from functools import cache
from typing import Any, Protocol

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, ReadTimeoutError

MAX_BYTES = 4 * 1024 * 1024
"""Of all images of a request. Lambda's 6 MB hold 4.5 MB in base64, and a serverless endpoint takes 4 MB."""

MAX_IMAGES = 64
"""In one request: as many as the endpoint itself takes."""

READ_TIMEOUT_S = 25
"""For one answer of the endpoint; the first one of a serverless endpoint takes many seconds."""

_CONNECT_TIMEOUT_S = 3
_MARGIN_S = 1.5
_PARALLEL = 4
# Between further attempts where the endpoint is busy, which a batch of ours may be the cause of.
_PAUSES_S = (0.3, 0.9, 2.7)

_JSON = "application/json"
_FORM = "multipart/form-data"
# The endpoint finds the format out by itself, and knows more formats than media types.
_ANY_IMAGE = "application/octet-stream"
_BINARY = (_ANY_IMAGE, "application/x-image", "")
# Of the query string: what each may look like, and the same in words. What it means, the endpoint knows.
_OPTIONS = {
    "top_k": (re.compile("[1-9][0-9]{0,3}"), "a whole number from 1 to 9999"),
    "return": (re.compile("[a-z_]{1,40}"), "a word such as log_probabilities"),
}
_THROTTLED = ("ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded")
_QUOTED_CHARACTERS = 60
_WHITESPACE = re.compile(r"\s+")

_LOGGER = logging.getLogger(__name__)

Event = Mapping[str, Any]
Prediction = dict[str, Any]


class RefusedError(Exception):
    """What stands in the place of an answer.

    Attributes:
        status: HTTP status, of the whole answer or of one image in a batch.
        code: a stable word for programs.
        passing: the same request may succeed in a moment.
    """

    def __init__(self, status: int, code: str, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.passing = passing

    @property
    def document(self) -> dict[str, dict[str, object]]:
        """As JSON, without the status, which an answer has anyway."""
        return {"error": {"code": self.code, "message": str(self)}}


Image = bytes | RefusedError
"""One image of a request, encoded as it came, or why there is none in its place."""

Outcome = Prediction | RefusedError


class Context(Protocol):
    """What of Lambda's context object is used."""

    aws_request_id: str

    def get_remaining_time_in_millis(self) -> int:
        """Until Lambda ends the function."""


def lambda_handler(event: Event, context: Context) -> dict[str, Any]:
    """Answers one request of an HTTP API, payload format 2.0."""
    deadline_s = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - _MARGIN_S
    try:
        return _response(200, {"predictions": _classify(event, deadline_s)})
    except RefusedError as error:
        if error.status >= 500:
            _LOGGER.warning("request %s: %s", context.aws_request_id, error)
        headers = {"retry-after": "1"} if error.passing else {"allow": "POST"} if error.status == 405 else {}
        return _response(error.status, error.document, headers)
    except Exception:
        _LOGGER.exception("request %s failed", context.aws_request_id)
        message = f"the function failed; its log has the details under id {context.aws_request_id}"
        return _response(500, RefusedError(500, "internal_error", message).document)


def _classify(event: Event, deadline_s: float) -> list[Prediction]:
    method = event["requestContext"]["http"]["method"]
    if method != "POST":
        raise RefusedError(405, "method_not_allowed", f"{method} is not answered here; POST images")
    attributes = _read_options(event.get("queryStringParameters") or {})
    images, batch = _read_images(event)
    endpoint, client = os.environ["ENDPOINT_NAME"], _runtime()
    outcomes = _all(images, lambda image: _ask(client, endpoint, image, attributes, deadline_s), deadline_s)
    errors = [outcome for outcome in outcomes if isinstance(outcome, RefusedError)]
    # A fault that is no image's own is the answer of the whole request where nothing else came out of it.
    if len(errors) == len(outcomes) and (not batch or all(one.status >= 500 or one.passing for one in errors)):
        raise errors[0]
    _LOGGER.info("answered images=%d errors=%d", len(outcomes), len(errors))
    return [_entry(outcome) for outcome in outcomes]


def _entry(outcome: Outcome) -> Prediction:
    """The place of one image in the answer to a batch."""
    if not isinstance(outcome, RefusedError):
        return outcome
    return {"error": {**outcome.document["error"], "status": outcome.status}}


def _response(status: int, document: object, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    return {
        "statusCode": status,
        "headers": {"content-type": _JSON, **(headers or {})},
        "body": json.dumps(document) + "\n",
        "isBase64Encoded": False,
    }


# What a request says.


def _read_options(query: Mapping[str, str]) -> str:
    """The options of the query string, as the endpoint takes them; other names are left alone."""
    for name, (pattern, words) in _OPTIONS.items():
        if name in query and not pattern.fullmatch(query[name]):
            raise RefusedError(400, "bad_request", f"{name}={_quote(query[name])} is not allowed; give {words}")
    return ",".join(f"{name}={query[name]}" for name in _OPTIONS if name in query)


def _read_images(event: Event) -> tuple[list[Image], bool]:
    """The images of a request, and whether they are a batch, whose images fail one by one."""
    headers = {name.lower(): value for name, value in event["headers"].items()}
    content_type = headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    body = _read_body(event)
    if not body:
        raise RefusedError(400, "bad_request", "the body is empty; send an image, or several as JSON or form data")
    if media_type.startswith("image/") or media_type in _BINARY:
        images: list[Image] = [body]
    elif media_type == _JSON:
        images = _read_json(body)
    elif media_type == _FORM:
        images = _read_form(content_type, body)
    else:
        allowed = f"image/*, {_ANY_IMAGE}, {_JSON} or {_FORM}"
        message = f"Content-Type {_quote(media_type)} carries no images here; send {allowed}"
        raise RefusedError(415, "unsupported_media_type", message)
    if len(images) > MAX_IMAGES:
        message = f"{len(images)} images are more than the allowed {MAX_IMAGES}; send several requests"
        raise RefusedError(413, "payload_too_large", message)
    size = sum(len(image) for image in images if isinstance(image, bytes))
    if size > MAX_BYTES:
        message = f"images of {size} bytes are more than the allowed {MAX_BYTES} in a request; send smaller or fewer"
        raise RefusedError(413, "payload_too_large", message)
    return images, media_type in (_JSON, _FORM)


def _read_body(event: Event) -> bytes:
    """API Gateway encodes what is not text by its Content-Type."""
    text = event.get("body") or ""
    if not event.get("isBase64Encoded"):
        return text.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise RefusedError(400, "bad_request", f"the body is not base64: {error}") from error


def _read_json(body: bytes) -> list[Image]:
    """`{"images": [...]}`, each image a base64 string, a data URI, or either as {"b64": ...}."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "bad_request", f"the body is not JSON: {error}") from error
    items = document.get("images") if isinstance(document, dict) else None
    if not isinstance(items, list) or not items:
        raise RefusedError(400, "bad_request", 'the JSON must be {"images": [...]} with one base64 string or more')
    return [_read_item(item) for item in items]


def _read_item(item: object) -> Image:
    text = item.get("b64") if isinstance(item, dict) else item
    if not isinstance(text, str):
        return RefusedError(400, "bad_request", 'an image must be a base64 string or {"b64": "..."}')
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    try:
        image = base64.b64decode(_WHITESPACE.sub("", text), validate=True)
    except ValueError as error:
        return RefusedError(400, "bad_request", f"the image is not base64: {error}")
    return image or RefusedError(400, "bad_request", "the image is empty")


def _read_form(content_type: str, body: bytes) -> list[Image]:
    """The files of a form (RFC 7578) in their order; fields that are no files are left alone."""
    boundary = HeaderParser().parsestr(f"Content-Type: {_WHITESPACE.sub(' ', content_type)}").get_boundary()
    if not boundary:
        raise RefusedError(400, "bad_request", f"{_FORM} without a boundary; let the client set the Content-Type")
    delimiter = b"\r\n--" + boundary.encode("utf-8", "surrogatepass")
    _, *parts = (b"\r\n" + body).split(delimiter)
    if not parts or not parts[-1].startswith(b"--"):
        raise RefusedError(400, "bad_request", "the form data broke off: its last boundary is missing")
    images: list[Image] = []
    for part in parts[:-1]:
        # What follows a delimiter on its line is white space (RFC 2046, section 5.1.1).
        head, _, content = part.partition(b"\r\n")[2].partition(b"\r\n\r\n")
        headers = BytesHeaderParser().parsebytes(head)
        if headers.get_filename() is None:
            continue
        if not headers.get_content_type().startswith("image/") and headers.get("Content-Type") not in (
            None,
            _ANY_IMAGE,
        ):
            message = f"Content-Type {_quote(headers.get_content_type())} is no image's; send image/* or {_ANY_IMAGE}"
            images.append(RefusedError(415, "unsupported_media_type", message))
        else:
            images.append(content or RefusedError(400, "bad_request", "the image is empty"))
    if not images:
        raise RefusedError(400, "bad_request", "the form holds no file; send one part with a file name for each image")
    return images


def _quote(text: str) -> str:
    return repr(text if len(text) <= _QUOTED_CHARACTERS else text[:_QUOTED_CHARACTERS] + "...")


# What the endpoint says.


@cache
def _runtime() -> Any:  # noqa: ANN401  boto3 makes its clients' classes at run time
    """The client, kept from one event to the next. Its own retries would not know of our deadline."""
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": 1},
        max_pool_connections=_PARALLEL,
    )
    return boto3.client("sagemaker-runtime", config=config)


def _all(images: Sequence[Image], ask: Callable[[bytes], Prediction], deadline_s: float) -> list[Outcome]:
    """Asks for all images, a few at a time; what is not answered by the deadline is a refusal like others."""

    def outcome(image: Image) -> Outcome:
        if isinstance(image, RefusedError):
            return image
        try:
            return ask(image)
        except RefusedError as error:
            return error

    pool = ThreadPoolExecutor(_PARALLEL)
    asked = [pool.submit(outcome, image) for image in images]
    wait(asked, timeout=max(0.0, deadline_s - time.monotonic()))
    # Lambda freezes the threads that are left; the next event finds a pool of its own.
    pool.shutdown(wait=False, cancel_futures=True)
    return [_result(future) for future in asked]


def _result(future: Future[Outcome]) -> Outcome:
    if future.done() and not future.cancelled():
        return future.result()
    return RefusedError(504, "timeout", "there was no time left for this image; send fewer in a request")


def _ask(client: Any, endpoint: str, image: bytes, attributes: str, deadline_s: float) -> Prediction:  # noqa: ANN401
    """The endpoint's prediction for one image; asks again while it is busy and there is time.

    Raises:
        RefusedError: why there is none.
    """
    options = {"CustomAttributes": attributes} if attributes else {}
    request = {"EndpointName": endpoint, "ContentType": _ANY_IMAGE, "Accept": _JSON, "Body": image, **options}
    for pause_s in (*_PAUSES_S, None):
        try:
            return _read_prediction(client.invoke_endpoint(**request)["Body"].read())
        except ClientError as error:
            refusal = _explain(error, endpoint)
        except (ReadTimeoutError, ConnectTimeoutError):
            refusal = RefusedError(504, "timeout", f"endpoint {endpoint} did not answer in {READ_TIMEOUT_S} s")
        except BotoCoreError as error:
            _LOGGER.warning("endpoint %s: %s", endpoint, error)
            refusal = RefusedError(502, "endpoint_unreachable", f"endpoint {endpoint} cannot be reached from here")
        if not refusal.passing or pause_s is None or time.monotonic() + pause_s >= deadline_s:
            break
        time.sleep(pause_s)
    raise refusal


def _read_prediction(body: bytes) -> Prediction:
    try:
        prediction = json.loads(body)["predictions"][0]
        if not isinstance(prediction, dict):
            raise TypeError("a prediction is an object")
    except (ValueError, KeyError, IndexError, TypeError) as error:
        message = "the endpoint's answer is no prediction of the dogbreed container"
        raise RefusedError(502, "foreign_answer", message) from error
    return prediction


def _explain(error: ClientError, endpoint: str) -> RefusedError:
    """Who is at fault: the image (4xx), the moment (429, 503), or whoever runs the endpoint (502, 503)."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    text = str(error.response.get("Error", {}).get("Message", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "ModelError":
        return _explain_container(error.response, endpoint)
    _LOGGER.warning("endpoint %s: %s %s", endpoint, code, text)
    passing = False
    if code == "ModelNotReadyException":
        found, passing = (503, "not_ready", f"endpoint {endpoint} is loading its model; try again"), True
    elif code in _THROTTLED or status == 429:
        found, passing = (429, "throttled", f"endpoint {endpoint} gets too many requests; try again"), True
    elif status >= 500:
        found, passing = (503, "unavailable", f"endpoint {endpoint} is not available; try again"), True
    elif status == 404 or any(words in text.lower() for words in ("not found", "could not find")):
        message = f"endpoint {endpoint} does not exist or is not in service; whoever runs this API must deploy it"
        found = (503, "endpoint_missing", message)
    elif status == 413:
        found = (413, "payload_too_large", f"the image is larger than endpoint {endpoint} takes")
    elif code.startswith("AccessDenied"):
        found = (502, "not_allowed", f"this API's role may not call endpoint {endpoint}")
    else:
        found = (502, "endpoint_refused", f"endpoint {endpoint} refused the request: {code}")
    return RefusedError(*found, passing=passing)


def _explain_container(response: Mapping[str, Any], endpoint: str) -> RefusedError:
    """The container's own words, where it blames the image or is busy."""
    status = int(response.get("OriginalStatusCode", 500))
    try:
        own = json.loads(response["OriginalMessage"])["error"]
        code, message = str(own["code"]), str(own["message"])
    except (KeyError, ValueError, TypeError):
        code, message = "endpoint_refused", f"endpoint {endpoint} refused the image with status {status}"
    if 400 <= status < 500 or status == 503:
        return RefusedError(status, code, message, passing=status in (429, 503))
    _LOGGER.warning("endpoint %s failed: %s %s", endpoint, status, message)
    return RefusedError(502, "endpoint_failed", f"endpoint {endpoint} failed on the image; its log says why")
