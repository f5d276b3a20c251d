"""The function behind `POST /classify`, with a hand-written runtime client and API Gateway's events.

`tests/launch/test_api.py` puts the project's own server in the client's place.
"""

from __future__ import annotations

import ast
import io
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cfnlint.decode
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.microservice.events import (
    BOUNDARY,
    Context,
    answer,
    as_form,
    as_json,
    event,
    file_part,
    form,
)

from microservice import handler

TEMPLATE = Path(__file__).parents[3] / "infrastructure" / "microservice.yaml"


def prediction(label: str) -> dict[str, Any]:
    return {
        "label": label,
        "index": 0,
        "probability": 0.75,
        "top_k": [{"label": label, "index": 0, "probability": 0.75}],
    }


def refusal(code: str, message: str = "", status: int = 400) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}, "InvokeEndpoint"
    )


def container(status: int, message: str) -> ClientError:
    """How the runtime wraps what a container answered."""
    response: Any = {
        "Error": {"Code": "ModelError", "Message": f"Received client error ({status})"},
        "ResponseMetadata": {"HTTPStatusCode": 424},
        "OriginalStatusCode": status,
        "OriginalMessage": message,
    }
    return ClientError(response, "InvokeEndpoint")


UNREADABLE = container(400, json.dumps({"error": {"code": "unreadable_image", "message": "the bytes are no image"}}))
BUSY = container(503, json.dumps({"error": {"code": "busy", "message": "as many requests wait as are held"}}))


@dataclass
class Runtime:
    """An endpoint whose answer to an image is a prediction named by its bytes, unless one is written down.

    Attributes:
        answers: image -> what becomes of it: an exception, a body, or a function; a list is used up.
        asked: the requests, in the order of their arrival.
    """

    answers: dict[bytes, Any] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)

    def invoke_endpoint(self, **request: Any) -> dict[str, Any]:
        self.asked.append(request)
        image = request["Body"]
        found = self.answers.get(image)
        if isinstance(found, list):
            found = found.pop(0)
        if callable(found):
            found = found()
        if isinstance(found, Exception):
            raise found
        body = json.dumps({"predictions": [prediction(image.decode())]}).encode() if found is None else found
        return {"Body": io.BytesIO(body)}


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    found = Runtime()
    monkeypatch.setenv("ENDPOINT_NAME", "dogs")
    monkeypatch.setattr(handler, "_runtime", lambda: found)
    return found


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(handler.time, "sleep", found.append)
    return found


def call(request: dict[str, Any], **context: Any) -> tuple[int, Any]:
    response = handler.lambda_handler(request, Context(**context))
    return response["statusCode"], answer(response)


def labels(document: Any) -> list[str]:
    return [one.get("label") or one["error"]["code"] for one in document["predictions"]]


@pytest.mark.parametrize(
    "content_type",
    ["image/jpeg", "image/png", "IMAGE/WEBP", "image/heic", "application/octet-stream", "application/x-image", None],
)
def test_one_image_of_any_type_is_answered_as_the_endpoint_answers(runtime: Runtime, content_type: str | None) -> None:
    assert call(event(b"beagle", content_type)) == (200, {"predictions": [prediction("beagle")]})
    (request,) = runtime.asked
    assert request == {
        "EndpointName": "dogs",
        "ContentType": "application/octet-stream",
        "Accept": "application/json",
        "Body": b"beagle",
    }


def test_header_names_may_be_written_in_any_case(runtime: Runtime) -> None:
    request = event(b"a")
    request["headers"]["Content-Type"] = request["headers"].pop("content-type")
    assert call(request)[0] == 200


def test_options_go_to_the_endpoint(runtime: Runtime) -> None:
    call(event(b"a", query={"top_k": "3", "return": "log_probabilities", "utm_source": "x;top_k=9"}))
    assert runtime.asked[0]["CustomAttributes"] == "top_k=3,return=log_probabilities"


@pytest.mark.parametrize("query", [{"top_k": "0"}, {"top_k": "3,5"}, {"top_k": "many"}, {"return": "a,top_k=1"}])
def test_options_that_are_none_are_refused(runtime: Runtime, query: dict[str, str]) -> None:
    status, document = call(event(b"a", query=query))
    assert (status, document["error"]["code"]) == (400, "bad_request")
    assert next(iter(query.values())) in document["error"]["message"]
    assert runtime.asked == []


@pytest.mark.parametrize("write", [as_json, as_form])
def test_a_batch_is_answered_in_order_and_one_bad_image_costs_its_own_answer(
    runtime: Runtime, write: Callable[[list[bytes]], dict[str, Any]]
) -> None:
    names = [f"breed {index}".encode() for index in range(10)]
    runtime.answers[names[4]] = UNREADABLE
    # The first three are answered after the fourth: the order is not that of the answers.
    fourth = threading.Event()
    for name in names[:3]:
        runtime.answers[name] = lambda: fourth.wait(30) and None
    runtime.answers[names[3]] = fourth.set
    status, document = call(write(names))
    assert status == 200
    assert labels(document) == [
        *(f"breed {index}" for index in range(4)),
        "unreadable_image",
        *(f"breed {index}" for index in range(5, 10)),
    ]
    assert document["predictions"][4] == {
        "error": {"code": "unreadable_image", "message": "the bytes are no image", "status": 400}
    }


def test_items_that_are_no_images_have_their_own_errors(runtime: Runtime) -> None:
    items = [b"a", "not base64!", 7, "", {"b64": "YQ=="}, "data:image/png;base64,YQ==", "Y\nQ==", {"url": "x"}]
    status, document = call(as_json(items))
    assert status == 200
    bad = "bad_request"
    assert labels(document) == ["a", bad, bad, bad, "a", "a", "a", bad]
    assert len(runtime.asked) == 4


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        (event(b"", "image/jpeg"), 400, "the body is empty"),
        (event("{", "application/json"), 400, "the body is not JSON"),
        (event("[]", "application/json"), 400, '{"images": [...]}'),
        (event('{"images": []}', "application/json"), 400, "with one base64 string or more"),
        (event("[" * 100000, "application/json"), 400, "the body is not JSON"),
        (event("what is it?", "text/plain"), 415, "Content-Type 'text/plain' carries no images here; send image/*"),
        (event(b"a", "application/x-www-form-urlencoded"), 415, "'application/x-www-form-urlencoded'"),
        (event(b"a", "multipart/form-data"), 400, "without a boundary"),
        (event(b"a", f"multipart/form-data; boundary={BOUNDARY}"), 400, "the form data broke off"),
        (event(form([file_part(b"a")])[:-20], f"multipart/form-data; boundary={BOUNDARY}"), 400, "broke off"),
        (
            event(
                form([('Content-Disposition: form-data; name="a"', b"1")]), f"multipart/form-data; boundary={BOUNDARY}"
            ),
            400,
            "the form holds no file",
        ),
        (event(b"", method="OPTIONS"), 405, "OPTIONS is not answered here"),
        ({**event(b"a"), "body": "not base64!"}, 400, "the body is not base64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_refused_with_a_sentence(
    runtime: Runtime, request_: dict[str, Any], status: int, words: str
) -> None:
    found, document = call(request_)
    assert found == status
    assert words in document["error"]["message"]
    assert runtime.asked == []


def test_another_method_says_which_one_there_is(runtime: Runtime) -> None:
    assert handler.lambda_handler(event(method="GET"), Context())["headers"]["allow"] == "POST"


def test_size_and_number_have_limits(runtime: Runtime) -> None:
    half = bytes(handler.MAX_BYTES // 2)
    runtime.answers[half] = b'{"predictions": [{"label": "a"}]}'
    assert call(as_json([half, half]))[0] == 200
    status, document = call(as_json([half, half, b"a"]))
    assert (status, document["error"]["code"]) == (413, "payload_too_large")
    assert f"images of {handler.MAX_BYTES + 1} bytes" in document["error"]["message"]
    assert call(event(bytes(handler.MAX_BYTES + 1)))[0] == 413
    assert call(as_json([b"a"] * handler.MAX_IMAGES))[0] == 200
    status, document = call(as_json([b"a"] * (handler.MAX_IMAGES + 1)))
    assert (status, "65 images are more than the allowed 64" in document["error"]["message"]) == (413, True)


def test_the_largest_request_that_is_allowed_fits_into_lambdas_6_mb() -> None:
    assert len(json.dumps(event(bytes(handler.MAX_BYTES)))) + 10240 < 6 * 1024 * 1024


def test_a_form_with_other_fields_and_other_files(runtime: Runtime) -> None:
    parts = [
        ('Content-Disposition: form-data; name="comment"', b"mine"),
        file_part(b"a"),
        file_part(b"notes", "notes.txt", "text/plain"),
        file_part(b"b", "b", None),
        file_part(b"c", "c.bin", "application/octet-stream"),
        file_part(b"", "empty.jpg"),
    ]
    # Text before the first boundary and after the last one is nobody's (RFC 2046).
    body = b"preamble\r\n" + form(parts) + b"epilogue"
    status, document = call(event(body, f'multipart/form-data; boundary="{BOUNDARY}"'))
    assert status == 200
    assert labels(document) == ["a", "unsupported_media_type", "b", "c", "bad_request"]


@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=5))
def test_a_form_gives_back_every_byte(images: list[bytes]) -> None:
    assert (
        handler._read_form(f"multipart/form-data; boundary={BOUNDARY}", form([file_part(one) for one in images]))
        == images
    )


@given(
    st.sampled_from(["image/png", "application/json", f"multipart/form-data; boundary={BOUNDARY}", "text/html", ""]),
    st.one_of(st.binary(max_size=300), st.text(max_size=300)),
)
def test_no_request_is_a_fault_of_ours(content_type: str, body: bytes | str) -> None:
    try:
        found, _ = handler._read_images(event(body, content_type))
    except handler.RefusedError as error:
        found, status = [b"-"], error.status
    else:
        status = 400
    assert found
    assert 400 <= status < 500


@pytest.mark.parametrize(
    ("error", "status", "code", "words"),
    [
        (UNREADABLE, 400, "unreadable_image", "the bytes are no image"),
        (container(413, "<html>"), 413, "endpoint_refused", "with status 413"),
        (container(500, '{"error": {"code": "internal_error", "message": "m"}}'), 502, "endpoint_failed", "its log"),
        (refusal("ValidationError", "Endpoint dogs of account 1 not found."), 503, "endpoint_missing", "dogs does not"),
        (refusal("ValidationError", 'Could not find endpoint "dogs".'), 503, "endpoint_missing", "must deploy it"),
        (refusal("ResourceNotFound", "gone", 404), 503, "endpoint_missing", "must deploy it"),
        (refusal("ValidationError", "Variant x"), 502, "endpoint_refused", "ValidationError"),
        (refusal("AccessDeniedException", "no", 403), 502, "not_allowed", "role may not call"),
        (refusal("413", "too large", 413), 413, "payload_too_large", "larger than endpoint dogs takes"),
        (EndpointConnectionError(endpoint_url="https://x"), 502, "endpoint_unreachable", "cannot be reached"),
        (ReadTimeoutError(endpoint_url="https://x"), 504, "timeout", "did not answer in 25 s"),
        (b"<html>", 502, "foreign_answer", "no prediction"),
        (b'{"predictions": [0.5]}', 502, "foreign_answer", "no prediction"),
    ],
)
def test_what_the_endpoint_does_instead_of_answering(
    runtime: Runtime, slept: list[float], error: Any, status: int, code: str, words: str
) -> None:
    runtime.answers[b"a"] = error
    found, document = call(event(b"a"))
    assert (found, document["error"]["code"]) == (status, code)
    assert words in document["error"]["message"]
    assert (len(runtime.asked), slept) == (1, [])


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BUSY, 503, "busy"),
        (refusal("ThrottlingException", "Rate exceeded"), 429, "throttled"),
        (refusal("ModelNotReadyException", "loading", 429), 503, "not_ready"),
        (refusal("ServiceUnavailable", "", 503), 503, "unavailable"),
    ],
)
def test_a_busy_endpoint_is_asked_again_and_then_the_client_may(
    runtime: Runtime, slept: list[float], error: Exception, status: int, code: str
) -> None:
    runtime.answers[b"a"] = [error, error, None]
    assert call(event(b"a"))[0] == 200
    assert slept == [0.3, 0.9]
    runtime.answers[b"a"] = error
    response = handler.lambda_handler(event(b"a"), Context())
    assert (response["statusCode"], answer(response)["error"]["code"]) == (status, code)
    assert response["headers"]["retry-after"] == "1"
    assert len(runtime.asked) == 3 + 4


def test_an_endpoint_that_is_busy_is_not_asked_again_when_the_time_is_up(runtime: Runtime, slept: list[float]) -> None:
    runtime.answers[b"a"] = BUSY
    assert call(event(b"a"), remaining_ms=1700)[0] == 503
    assert (len(runtime.asked), slept) == (1, [])


def test_what_is_not_answered_in_time_is_said_before_lambda_ends_the_function(runtime: Runtime) -> None:
    hang = threading.Event()
    runtime.answers[b"slow"] = hang.wait
    status, document = call(as_json([b"a", b"slow", b"b"]), remaining_ms=2000)
    assert (status, labels(document)) == (200, ["a", "timeout", "b"])
    assert document["predictions"][1]["error"]["status"] == 504
    status, document = call(event(b"slow"), remaining_ms=1600)
    hang.set()
    assert (status, document["error"]["code"]) == (504, "timeout")


def test_the_endpoint_is_not_asked_any_more_when_the_answer_is_given(runtime: Runtime) -> None:
    leave = threading.Event()
    before = set(threading.enumerate())
    names = [b"%d" % index for index in range(10)]
    runtime.answers = dict.fromkeys(names, lambda: leave.wait(30) and None)
    assert call(as_json(names), remaining_ms=1600)[0] == 504
    asked = len(runtime.asked)
    leave.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
    assert len(runtime.asked) == asked < len(names)


def test_a_fault_that_is_no_images_own_answers_the_whole_batch(runtime: Runtime, slept: list[float]) -> None:
    missing = refusal("ValidationError", "Endpoint dogs of account 1 not found.")
    runtime.answers = {b"a": missing, b"b": missing}
    status, document = call(as_json([b"a", b"b"]))
    assert (status, document["error"]["code"]) == (503, "endpoint_missing")
    runtime.answers = {b"a": missing, b"b": UNREADABLE}
    status, document = call(as_json([b"a", b"b"]))
    assert (status, labels(document)) == (200, ["endpoint_missing", "unreadable_image"])


def test_a_fault_of_ours_is_a_500_with_an_id_that_is_in_the_log(runtime: Runtime, caplog: Any) -> None:
    runtime.answers[b"a"] = RuntimeError("secret")
    status, document = call(event(b"a"))
    assert (status, document["error"]["code"]) == (500, "internal_error")
    assert Context().aws_request_id in document["error"]["message"]
    assert "secret" not in json.dumps(document)
    assert "RuntimeError: secret" in caplog.text
    assert Context().aws_request_id in caplog.text


def test_the_function_needs_nothing_but_boto3() -> None:
    """It is deployed as one file, onto a Python that brings boto3 with it."""
    tree = ast.parse(Path(handler.__file__).read_text(encoding="utf-8"))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - sys.stdlib_module_names == {"boto3", "botocore"}


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    found, complaints = cfnlint.decode.decode(str(TEMPLATE))
    assert not complaints
    return json.loads(json.dumps(found))


def test_every_clock_leaves_a_margin_to_the_one_outside_of_it(template: dict[str, Any]) -> None:
    resources = template["Resources"]
    gateway_s = resources["Integration"]["Properties"]["TimeoutInMillis"] / 1000
    lambda_s = resources["Function"]["Properties"]["Timeout"]
    assert gateway_s <= 30, "the most that an HTTP API has"
    assert gateway_s - lambda_s >= 1
    assert lambda_s - handler._MARGIN_S - handler.READ_TIMEOUT_S >= 1


def test_the_client_gives_up_in_time_and_leaves_further_attempts_to_the_handler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    config = handler._runtime.__wrapped__().meta.config
    assert (config.read_timeout, config.retries["total_max_attempts"]) == (handler.READ_TIMEOUT_S, 1)


def test_the_template_names_the_function_and_its_variable(template: dict[str, Any]) -> None:
    function = template["Resources"]["Function"]["Properties"]
    module, name = function["Handler"].split(".")
    assert module == Path(handler.__file__).stem
    assert callable(getattr(handler, name))
    assert list(function["Environment"]["Variables"]) == ["ENDPOINT_NAME"]


def test_a_preflight_is_answered_by_the_gateway_and_not_caught_by_a_route(template: dict[str, Any]) -> None:
    """A route that takes OPTIONS would be asked for a signature, which browsers do not send with a preflight."""
    resources = template["Resources"]
    routes = [one["Properties"] for one in resources.values() if one["Type"] == "AWS::ApiGatewayV2::Route"]
    assert [route["RouteKey"] for route in routes] == ["POST /classify"]
    cors = resources["Api"]["Properties"]["CorsConfiguration"]
    assert cors["AllowMethods"] == ["POST"]
    # What a browser that signs sends; "*" would not allow authorization.
    assert {"authorization", "content-type", "x-amz-date", "x-amz-security-token"} <= set(cors["AllowHeaders"])
    assert "AllowCredentials" not in cors


def test_nobody_calls_without_a_signature_or_a_token(template: dict[str, Any]) -> None:
    route = template["Resources"]["Route"]["Properties"]
    assert route["AuthorizationType"] == {"Fn::If": ["HasJwt", "JWT", "AWS_IAM"]}
    (permission,) = [one for one in template["Resources"].values() if one["Type"] == "AWS::Lambda::Permission"]
    assert permission["Properties"]["SourceArn"]["Fn::Sub"].endswith(":${Api}/*/POST/classify")


def test_the_function_may_ask_its_endpoint_and_write_its_log_and_no_more(template: dict[str, Any]) -> None:
    (policy,) = template["Resources"]["Role"]["Properties"]["Policies"]
    statements = {one["Sid"]: one for one in policy["PolicyDocument"]["Statement"]}
    assert set(statements) == {"AskTheEndpoint", "WriteTheLog"}
    assert statements["AskTheEndpoint"]["Action"] == "sagemaker:InvokeEndpoint"
    assert statements["AskTheEndpoint"]["Resource"] == {"Ref": "EndpointArn"}
    assert "log-group:${LogGroup}:" in statements["WriteTheLog"]["Resource"]["Fn::Sub"]
