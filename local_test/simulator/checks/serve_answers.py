"""What /invocations answers: to what it can do, to what it cannot, and to what nobody meant."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from local_test.simulator.checks import pages
from local_test.simulator.checks.check import NotApplicableError, Outcome, check, failed, judge, passed
from local_test.simulator.checks.client import Answer, NoAnswerError, ask
from local_test.simulator.checks.context import Context
from local_test.simulator.checks.servers import Server

_GROUP = "answers"
_MESSAGE_BYTES = 2048
_MIB = 1024 * 1024
_API_MODEL_BYTES = 6_291_456
_NO_TYPE = "application/x-no-such-type"
_CUSTOM = "X-Amzn-SageMaker-Custom-Attributes"
_EXTRA_HEADERS = {
    "X-Amzn-SageMaker-Inference-Id": "conformance-1",
    "X-Amzn-SageMaker-Target-Model": "one.tar.gz",
    "X-Amzn-Trace-Id": "Root=1-67891233-abcdef012345678912345678",
    "X-Forwarded-For": "10.0.0.1",
    "X-Nobody-Knows-This": "a" * 1000,
    "Cookie": "a=b",
}


@check("serve.invocations", "POST /invocations is answered with 200, a body and its Content-Type", pages.SERVE, _GROUP)
def invocations(context: Context) -> Outcome:
    """The profile's request."""
    answer = _try(context.servers.shared())
    if isinstance(answer, str) or answer.status != 200:
        return failed(str(answer))
    if not answer.body:
        return failed("200 without a body")
    return judge(
        None if answer.header("Content-Type") else "200 without a Content-Type", answer.header("Content-Type") or ""
    )


@check("serve.accept-missing", "Answers a request without Accept", pages.SERVE, _GROUP)
def accept_missing(context: Context) -> Outcome:
    """It may be left out."""
    return _expect(_try(context.servers.shared(), headers={"Accept": None}), [200])


@check("serve.accept-any", "Answers a request that accepts anything", pages.SERVE, _GROUP)
def accept_any(context: Context) -> Outcome:
    """``*/*``, as many clients send it."""
    return _expect(_try(context.servers.shared(), headers={"Accept": "*/*"}), [200])


@check("serve.accept-unsupported", "Refuses an Accept that it cannot serve with 406", pages.INVOKE, _GROUP)
def accept_unsupported(context: Context) -> Outcome:
    """Something else in the answer would surprise its reader."""
    return _expect(_refused_accept(context), [406])


@check("serve.type-unsupported", "Refuses a Content-Type that it cannot read with 415", pages.INVOKE, _GROUP)
def type_unsupported(context: Context) -> Outcome:
    """And not with 5xx, which clients repeat."""
    return _expect(_refused_type(context), [415])


@check("serve.type-parameter", "Reads a Content-Type with a parameter", pages.INVOKE, _GROUP)
def type_parameter(context: Context) -> Outcome:
    """Clients add ``; charset=utf-8``."""
    server = context.servers.shared()
    return _expect(_try(server, headers={"Content-Type": f"{server.serving.content_type}; charset=utf-8"}), [200])


@check("serve.bad-body", "Refuses a body that it cannot read with 4xx", pages.MODEL_ERROR, _GROUP)
def bad_body(context: Context) -> Outcome:
    """It is the client's fault, and repeating it does not help."""
    return _expect_client_error(_bad_body(context))


@check("serve.empty-body", "Answers an empty body, and not with 5xx", pages.MODEL_ERROR, _GROUP)
def empty_body(context: Context) -> Outcome:
    """Any answer of 2xx or 4xx."""
    answer = _empty_body(context)
    return judge(None if not isinstance(answer, str) and answer.status < 500 else str(answer), str(answer))


@check("serve.errors-short", "Error bodies are at most 2,048 bytes", pages.MODEL_ERROR, _GROUP)
def errors_short(context: Context) -> Outcome:
    """OriginalMessage holds no more."""
    longest = max(_errors(context), key=lambda answer: len(answer.body))
    return judge(f"{len(longest.body)} bytes with {longest.status}" if len(longest.body) > _MESSAGE_BYTES else None)


@check("serve.errors-plain", "Error bodies are neither HTML nor tracebacks", pages.MODEL_ERROR, _GROUP)
def errors_plain(context: Context) -> Outcome:
    """They are read by programs, and by strangers."""
    for answer in _errors(context):
        start = answer.body[:_MIB].lower()
        if b"<html" in start or b"<!doctype" in start or b"traceback (most recent" in start:
            return failed(str(answer))
    return passed()


@check("serve.headers-unknown", "Ignores headers that it does not know", pages.INVOKE, _GROUP)
def headers_unknown(context: Context) -> Outcome:
    """Those of the API, of proxies, and others."""
    return _expect(_try(context.servers.shared(), headers=_EXTRA_HEADERS), [200])


@check("serve.custom-attributes", "Invents no Custom-Attributes", pages.INVOKE, _GROUP)
def custom_attributes(context: Context) -> Outcome:
    """They are a client's, or empty."""
    answer = _try(context.servers.answering())
    if isinstance(answer, str):
        return failed(answer)
    return judge(f"{_CUSTOM}: {answer.header(_CUSTOM)}" if answer.header(_CUSTOM) else None)


@check(
    "serve.execution-parameters",
    "GET /execution-parameters is 404, or JSON that batch transform can use",
    pages.BATCH,
    _GROUP,
)
def execution_parameters(context: Context) -> Outcome:
    """MaxConcurrentTransforms, BatchStrategy, MaxPayloadInMB."""
    try:
        answer = ask(
            context.servers.shared().running.address,
            "GET",
            "/execution-parameters",
            timeout_s=context.patience.request_s,
        )
    except NoAnswerError as error:
        return failed(str(error))
    if answer.status == 404:
        return passed("404: the job's own values, or the defaults, hold")
    return judge(_problem_of_parameters(answer), answer.text)


@check("serve.payload-6mb", "Takes a body of 6 MB", pages.INVOKE, _GROUP)
def payload_6mb(context: Context) -> Outcome:
    """6,291,456 bytes, the limit of the API model."""
    return _expect_taken(context, _API_MODEL_BYTES)


@check(
    "serve.payload-25mb",
    "Takes a body of just under 25 MB, or of the profile's `payload_mb`",
    pages.HOSTING_LIMITS,
    _GROUP,
)
def payload_25mb(context: Context) -> Outcome:
    """The limit of the hosting FAQ."""
    return _expect_taken(context, context.servers.serving.payload_mb * _MIB - 1024)


@check("serve.payload-over", "Refuses a body over its limit with 413", pages.HOSTING_LIMITS, _GROUP)
def payload_over(context: Context) -> Outcome:
    """One MB more; not by 5xx, nor by hanging up."""
    answer = _try(context.servers.answering(), _of_size(context, (context.servers.serving.payload_mb + 1) * _MIB))
    if not isinstance(answer, str) and answer.status != 413 and answer.status < 500:
        raise NotApplicableError(f"its limit is higher, if there is one: {answer.status}")
    return _expect(answer, [413])


@check("serve.after-errors", "Serves on after requests that it refused", pages.SERVE, _GROUP)
def after_errors(context: Context) -> Outcome:
    """/ping and /invocations, after all of the above."""
    server = context.servers.shared()
    for refused in (_bad_body, _empty_body, _refused_type, _refused_accept):
        refused(context)
    try:
        ping = server.ping()
    except NoAnswerError as error:
        return failed(str(error))
    return failed(f"/ping: {ping}") if ping.status != 200 else _expect(_try(server), [200])


def _try(server: Server, body: bytes | None = None, headers: Mapping[str, str | None] | None = None) -> Answer | str:
    """The answer, or why there is none."""
    try:
        return server.post(body, headers=headers)
    except NoAnswerError as error:
        return str(error)


def _refused_accept(context: Context) -> Answer | str:
    return context.once("accept", lambda: _try(context.servers.answering(), headers={"Accept": _NO_TYPE}))


def _refused_type(context: Context) -> Answer | str:
    return context.once("type", lambda: _try(context.servers.answering(), headers={"Content-Type": _NO_TYPE}))


def _bad_body(context: Context) -> Answer | str:
    return context.once("bad", lambda: _try(context.servers.answering(), context.servers.serving.bad_request))


def _empty_body(context: Context) -> Answer | str:
    return context.once("empty", lambda: _try(context.servers.answering(), b""))


def _errors(context: Context) -> Sequence[Answer]:
    """Those of the four above that were answered with an error."""
    answers = [look(context) for look in (_refused_accept, _refused_type, _bad_body, _empty_body)]
    errors = [answer for answer in answers if isinstance(answer, Answer) and answer.status >= 400]
    if not errors:
        raise NotApplicableError("no request was answered with an error")
    return errors


def _expect(answer: Answer | str, statuses: Sequence[int]) -> Outcome:
    good = not isinstance(answer, str) and answer.status in statuses
    return judge(None if good else str(answer))


def _expect_client_error(answer: Answer | str) -> Outcome:
    good = not isinstance(answer, str) and 400 <= answer.status < 500
    return judge(None if good else str(answer), str(answer))


def _expect_taken(context: Context, size: int) -> Outcome:
    """Anything but 413, 5xx and no answer: what is padded need not be good."""
    answer = _try(context.servers.answering(), _of_size(context, size))
    good = not isinstance(answer, str) and answer.status != 413 and answer.status < 500
    return judge(None if good else f"{size:,} bytes: {answer}", "" if isinstance(answer, str) else f"{answer.status}")


def _of_size(context: Context, size: int) -> bytes:
    """The profile's request, longer: decoders of images pass over what follows, readers of text over blanks."""
    text = context.servers.serving.content_type.startswith("text/") or "json" in context.servers.serving.content_type
    return context.servers.serving.request.ljust(size, b"\n" if text else b"\0")


def _problem_of_parameters(answer: Answer) -> str | None:
    if answer.status != 200:
        return str(answer)
    try:
        found = json.loads(answer.body)
    except ValueError:
        return f"not JSON: {answer.text!r}"
    if not isinstance(found, dict):
        return f"not an object: {answer.text!r}"
    if found.get("BatchStrategy", "MULTI_RECORD") not in ("MULTI_RECORD", "SINGLE_RECORD"):
        return f"BatchStrategy is {found['BatchStrategy']!r}"
    for name in ("MaxConcurrentTransforms", "MaxPayloadInMB"):
        value = found.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            return f"{name} is {value!r}"
    return None


# Those that spoil nothing come first: what a refusal breaks is seen by the last alone.
CHECKS = (
    invocations,
    accept_missing,
    accept_any,
    type_parameter,
    headers_unknown,
    custom_attributes,
    execution_parameters,
    payload_6mb,
    payload_25mb,
    payload_over,
    accept_unsupported,
    type_unsupported,
    bad_body,
    empty_body,
    errors_short,
    errors_plain,
    after_errors,
)
