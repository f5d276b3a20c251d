"""The HTTP side of an endpoint: routes, statuses, and one place that turns an exception into an answer.

Is given a model through `Model` and a gate for it; knows neither torch nor how the model came to be. A client's
mistake is a 4xx with one JSON line; a fault of ours is a 500 with a fixed text and an id that is in the log beside the
traceback.

Sources: AWS developer guide, your-algorithms-inference-code (`/ping`, `/invocations`) and your-algorithms-batch-code
(`/execution-parameters`).
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flask import Flask, Request, Response, request
from werkzeug.exceptions import HTTPException, NotFound

from dogbreed import logs
from dogbreed.errors import (
    ModelNotFoundError,
    NotReadyError,
    PayloadTooLargeError,
    RequestError,
    SlowClientError,
)
from dogbreed.serving import answers, card, connection, emf, multimodel, openapi, payload
from dogbreed.serving.admission import Gate
from dogbreed.serving.bodies import Bodies
from dogbreed.serving.deadline import Deadline
from dogbreed.serving.metrics import Metrics
from dogbreed.serving.models import Model, ModelRegistry
from dogbreed.serving.payload import Item

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_LOGGER = logging.getLogger(__name__)

_INTERNAL_ERROR = "internal_error"

_STATIC = Path(__file__).parent / "static"
_PAGE = _STATIC / "index.html"
_CARD_PAGE = _STATIC / "card.html"
_CARD_PLACE = "<!-- card -->"
# The page loads nothing from elsewhere, and nothing else may make it.
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'"
)
_CARD_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# Of a card with 100,000 classes; what is larger was not written by a job.
_MAX_CARD_BYTES = 4 * 1024 * 1024
# Headers, as WSGI names them (PEP 3333): a look through Flask's proxies is half a dozen calls.
_ATTRIBUTES = "HTTP_X_AMZN_SAGEMAKER_CUSTOM_ATTRIBUTES"
_INFERENCE_ID = "HTTP_X_AMZN_SAGEMAKER_INFERENCE_ID"
_ECHOED = {_ATTRIBUTES: "X-Amzn-SageMaker-Custom-Attributes", _INFERENCE_ID: "X-Amzn-SageMaker-Inference-Id"}
# The caller's own name for a request, from whichever of these comes first; it goes into the log and back.
_REQUEST_IDS = ("HTTP_X_REQUEST_ID", "HTTP_X_AMZN_REQUESTID", "HTTP_X_AMZN_TRACE_ID")
_CALL = "dogbreed.call"
# What may be sent back: the platform allows 1,024 visible characters (InvokeEndpoint).
_ECHO = re.compile(r"[ -~]{1,1024}")
_INVOCATIONS = "/invocations"
_ASKS_FOR_PREDICTIONS = re.compile("/invocations|/models/(?P<model>[^/]+)/invoke")
_ID = re.compile(r"[!-~]{1,128}")
_MIB = 1024 * 1024
_LARGE_BODY_BYTES = _MIB
# CreateTransformJob: MaxPayloadInMB is at most 100, and so is its product with MaxConcurrentTransforms.
_TRANSFORM_MAX_MB = 100
# A heat map costs several predictions: one is drawn at a time, and few may wait for it.
_WAITING_FOR_MAPS = 4


@dataclass(frozen=True, slots=True)
class Settings:
    """How the app behaves.

    Attributes:
        max_payload_bytes: larger bodies are refused with 413.
        default_accept: media type of the answer when the client does not care.
        processes: of this server, each with a gate of its own; batch transform is told what all of them let in.
        page: serve the page for trying a photo at `/`, and the description of the routes at `/openapi.json`.
        card: file that is shown at `/model-card` where the page is; None shows none.
        emf_namespace: log each invocation for CloudWatch as well, into this namespace; None does not.
        request_timeout_s: seconds from a request's head, after which no further image of it is computed; of a streamed
            answer, for each group of lines.
        body_patience_s: seconds that one body may take to arrive.
        max_bodies: that are read at once; None is any number.
        item_errors: a bad image is an entry of a 200 and no 4xx, as a batch transform wants it.
    """

    max_payload_bytes: int
    default_accept: str = payload.JSON
    processes: int = 1
    page: bool = False
    card: Path | None = None
    emf_namespace: str | None = None
    item_errors: bool = False
    request_timeout_s: float = float("inf")
    body_patience_s: float = float("inf")
    max_bodies: int | None = None


def create_app(
    model: Model | ModelRegistry,
    gate: Gate,
    settings: Settings,
    *,
    metrics: Metrics | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> App:
    """Builds the WSGI application.

    Args:
        model: what predicts; may not be ready yet. A registry makes a multi-model endpoint.
        gate: bounds the predictions that run and wait; nothing else passes it.
        settings: see the class.
        metrics: what is counted; default counts of this app alone.
        clock: seconds, for the log and the metrics.
    """
    counts = metrics or Metrics()
    bodies = Bodies(settings.max_payload_bytes, patience_s=settings.body_patience_s, at_once=settings.max_bodies)
    maps = Gate(slots=1, waiting=_WAITING_FOR_MAPS, patience_s=gate.patience_s)
    desk = _Desk(gate, maps, settings, counts, bodies, threading.Lock())
    app = App(gate, counts, settings, clock)
    if isinstance(model, ModelRegistry):
        _add_several(app, model, desk)
    else:
        _add_one(app, model, desk)

    @app.get("/execution-parameters")
    def execution_parameters() -> Response:
        max_payload_mb = max(1, min(_TRANSFORM_MAX_MB, settings.max_payload_bytes // _MIB))
        at_once = gate.slots * settings.processes
        parameters = {
            "MaxConcurrentTransforms": max(1, min(at_once, _TRANSFORM_MAX_MB // max_payload_mb)),
            "BatchStrategy": "SINGLE_RECORD",
            "MaxPayloadInMB": max_payload_mb,
        }
        return Response(json.dumps(parameters) + "\n", mimetype=payload.JSON)

    @app.get("/metrics")
    def show_metrics() -> Response:
        text, media_type = counts.render()
        return Response(text, content_type=media_type)

    if settings.page:
        _add_page(app, settings, multi_model=isinstance(model, ModelRegistry))

    return app


@dataclass(slots=True)
class _Call:
    """One request, from its head to its answer's; in the WSGI environment, under `_CALL`."""

    began_s: float
    id: str
    inference_id: str | None
    images: int = 0
    model: str | None = None


class Refusal(NamedTuple):
    """An answer that needed no thread.

    Attributes:
        status: as WSGI has it, `503 SERVICE UNAVAILABLE`.
        headers: but for those of the connection.
        content: the body.
    """

    status: str
    headers: Sequence[tuple[str, str]]
    content: bytes


class App(Flask):
    """Flask that counts, logs and names every request, and goes straight to the answer of the platform's two.

    Flask's dispatch makes a context, an object and some signals of each request, 150 Python calls beside the 250 that
    an image costs here. What is asked all day goes past that; every other method and path is Flask's.
    """

    def __init__(self, gate: Gate, counts: Metrics, settings: Settings, clock: Callable[[], float]) -> None:
        super().__init__(__name__, static_folder=None)
        self._gate = gate
        self._direct: dict[tuple[str, str], Callable[[WSGIEnvironment], Response]] = {}
        self._counts = counts
        self._settings = settings
        self._clock = clock
        self.register_error_handler(Exception, lambda error: self._say(error, request.environ))

    def route_directly(self, method: str, path: str, answer: Callable[[WSGIEnvironment], Response]) -> None:
        """Adds a route without parameters that is answered without Flask, which knows it for all other methods."""
        self._direct[method, path] = answer
        self.add_url_rule(path, path, lambda: answer(request.environ), methods=[method])

    def is_full(self, coming: int = 0) -> bool:
        """Whether a request for predictions would find no place, after so many others that are on their way."""
        return self._gate.is_full(coming)

    def turn_away(self, path: str, headers: Mapping[str, str]) -> Refusal | None:
        """Refuses a POST because the server is full, without its body and without waiting.

        Args:
            path: that was asked for, without a query.
            headers: of the request, named as in WSGI.

        Returns:
            The same answer as a request would get in its turn; None where the path asks for no predictions.
        """
        asked = _ASKS_FOR_PREDICTIONS.fullmatch(path)
        if asked is None:
            return None
        call = _Call(self._clock(), _request_id(headers), headers.get(_INFERENCE_ID), model=asked["model"])
        error = self._gate.turn_away()
        names = self._account(call, headers, multimodel.INVOKE if call.model else _INVOCATIONS, error.status)
        body = payload.write_error(error.code, str(error))
        sized = [("Content-Type", payload.JSON), ("Content-Length", str(len(body)))]
        return Refusal(_status_line(error.status), [*sized, *_headers_of(error), *names], body)

    def refuse(self, status: int, message: str) -> Refusal:
        """An answer to what is no request, in the form of all other errors.

        Args:
            status: of HTTP.
            message: for people.
        """
        named = {SlowClientError.status: SlowClientError.code, 500: _INTERNAL_ERROR}
        body = payload.write_error(named.get(status) or HTTPStatus(status).phrase.lower().replace(" ", "_"), message)
        return Refusal(_status_line(status), [("Content-Type", payload.JSON), ("Content-Length", str(len(body)))], body)

    def answers_in_one_piece(self, path: str, headers: Mapping[str, str]) -> bool:
        """Whether the answer to a POST is of known length: lines are answered as they are computed.

        Args:
            path: that is asked for, without a query.
            headers: of the request, named as in WSGI.
        """
        return ("POST", path) in self._direct and payload.media_type(headers.get("CONTENT_TYPE")) != payload.JSON_LINES

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Called by the WSGI server for each request."""
        environ[_CALL] = _Call(self._clock(), _request_id(environ), environ.get(_INFERENCE_ID))
        path = environ["PATH_INFO"]
        answer = self._direct.get((environ["REQUEST_METHOD"], path))
        if answer is None:
            return super().wsgi_app(environ, start_response)
        try:
            response = answer(environ)
        except Exception as error:
            response = self._say(error, environ)
        return self._tell(environ, path, response)(environ, start_response)

    def process_response(self, response: Response) -> Response:
        """Called for each answer of Flask's."""
        rule, environ = request.url_rule, request.environ
        if request.view_args:
            environ[_CALL].model = request.view_args["name"]
        return self._tell(environ, rule.rule if rule is not None else "unknown", response)

    def _tell(self, environ: WSGIEnvironment, route: str, response: Response) -> Response:
        """Counts and logs an answer, and names it."""
        for name, value in self._account(environ[_CALL], environ, route, response.status_code):
            response.headers[name] = value
        return response

    def _account(self, call: _Call, asked: Mapping[str, Any], route: str, status: int) -> list[tuple[str, str]]:
        """Counts and logs an answer to what was asked; returns the headers by which the client knows it again."""
        elapsed_s = self._clock() - call.began_s
        self._counts.answered(route, status, elapsed_s)
        if route in (_INVOCATIONS, multimodel.INVOKE):
            _log_invocation(call, route, status, elapsed_s * 1000, self._settings.emf_namespace)
        values = ((header, asked.get(name)) for name, header in _ECHOED.items())
        echoed = [(header, value) for header, value in values if value and _ECHO.fullmatch(value)]
        return [("X-Request-Id", call.id), *echoed]

    def _say(self, error: Exception, environ: WSGIEnvironment) -> Response:
        """What a client is told of an error."""
        if isinstance(error, RequestError):
            return _refuse(error)
        if isinstance(error, HTTPException):
            return _refuse_http(error, environ, self._settings.max_payload_bytes)
        return _fail(error, environ)


@dataclass(frozen=True, slots=True)
class _Desk:
    """Where a request for predictions becomes an answer; see `create_app` for what it holds.

    Attributes:
        large: held while a large body is read for its images. Python reads one at a time anyhow; what several take
            meanwhile would add up, and each would wait longer for the interpreter, as `/ping` does.
    """

    gate: Gate
    maps: Gate
    settings: Settings
    counts: Metrics
    bodies: Bodies
    large: threading.Lock

    def answer(self, environ: WSGIEnvironment, model: Model) -> Response:
        deadline = Deadline(self.settings.request_timeout_s, partial(connection.is_open, environ))
        # The body is read before anything is refused: a client that is still sending would miss the answer.
        body = self.bodies.read(environ)
        returned = Request(environ).args.getlist("return") if environ.get("QUERY_STRING") else ()
        options = payload.read_options(environ.get(_ATTRIBUTES), returned)
        content_type = environ.get("CONTENT_TYPE")
        lines_in = payload.media_type(content_type) == payload.JSON_LINES
        default = payload.JSON_LINES if lines_in else self.settings.default_accept
        answer_type = payload.choose_answer_type(environ.get("HTTP_ACCEPT"), default)
        streams = lines_in and answer_type == payload.JSON_LINES
        one_by_one = streams or self.settings.item_errors
        alone: AbstractContextManager[object] = self.large if len(body) > _LARGE_BODY_BYTES else nullcontext()
        with alone:
            items = _read_items(content_type, body, one_by_one=one_by_one)
        only = payload.only_image(items, answer_type) if options.heat_map else None
        images = [] if one_by_one else payload.all_images(items)
        environ[_CALL].images = len(items)
        self.counts.asked(len(items))
        reason = model.status()
        if reason is not None:
            raise NotReadyError(reason)
        turn = partial(self._turn, environ)
        if only is not None:
            # Its own queue first, so that no turn is taken by what only waits for another map.
            with self.maps.turn(lambda: connection.is_open(environ)), turn():
                scores = model.explain(only, deadline.check)
            return Response(payload.write_answer(scores, options, answer_type), mimetype=answer_type)
        predict = partial(model.predict, check=deadline.check)
        if streams:

            def next_turn() -> AbstractContextManager[None]:
                deadline.renew()
                return turn()

            lines = answers.stream_lines(predict, next_turn, items, options)
            return _stream(lines, answer_type, environ[_CALL].id)
        with turn():
            scores, errors = answers.score_each(predict, items) if one_by_one else (predict(images), None)
        return Response(payload.write_answer(scores, options, answer_type, errors), mimetype=answer_type)

    def _turn(self, environ: Mapping[str, object]) -> AbstractContextManager[None]:
        return self.counts.passing(self.gate.turn(lambda: connection.is_open(environ)))


def _add_one(app: App, model: Model, desk: _Desk) -> None:
    """The routes of an endpoint with one model."""

    def ping(_environ: WSGIEnvironment) -> Response:
        reason = model.status()
        if reason is not None:
            raise NotReadyError(reason)
        return Response("{}\n", mimetype=payload.JSON)

    app.route_directly("GET", "/ping", ping)
    app.route_directly("POST", _INVOCATIONS, lambda environ: desk.answer(environ, model))


def _add_several(app: Flask, models: ModelRegistry, desk: _Desk) -> None:
    """The routes of a multi-model endpoint."""

    @app.get("/ping")
    def ping() -> Response:
        # Healthy without a model: the platform loads none before this says so. One that fails says so itself.
        return Response("{}\n", mimetype=payload.JSON)

    @app.post(_INVOCATIONS)
    def invocations() -> Response:
        desk.bodies.read(request.environ)
        raise ModelNotFoundError("this endpoint serves several models; ask one of them at /models/NAME/invoke")

    multimodel.add_routes(app, models, desk.answer, desk.counts, desk.bodies)


def _add_page(app: Flask, settings: Settings, *, multi_model: bool) -> None:
    """What people look at on their own machine."""
    page = _PAGE.read_bytes()
    description = openapi.describe(max_payload_bytes=settings.max_payload_bytes, multi_model=multi_model)
    document = json.dumps(description, indent=2) + "\n"

    @app.get("/")
    def index() -> Response:
        return Response(page, mimetype="text/html", headers={"Content-Security-Policy": _PAGE_POLICY})

    if not multi_model:

        @app.get("/model-card")
        def show_card() -> Response:
            return _card(settings.card)

    @app.get("/openapi.json")
    def describe_routes() -> Response:
        return Response(document, mimetype=payload.JSON)


def _card(file: Path | None) -> Response:
    """What the bundle says of itself."""
    try:
        # A pipe would be waited for.
        if file is None or not file.is_file():
            raise FileNotFoundError
        with file.open("rb") as stream:
            text = stream.read(_MAX_CARD_BYTES).decode("utf-8", errors="replace")
    except OSError:
        raise NotFound("the model's folder holds no model card") from None
    page = _CARD_PAGE.read_text(encoding="utf-8").replace(_CARD_PLACE, card.render(text))
    return Response(page, mimetype="text/html", headers={"Content-Security-Policy": _CARD_POLICY})


def _request_id(environ: Mapping[str, Any]) -> str:
    """The caller's own id where it is fit for a log and a header, else a new one."""
    for name in _REQUEST_IDS:
        found = environ.get(name)
        if found and _ID.fullmatch(found):
            return str(found)
    return uuid.uuid4().hex


def _log_invocation(call: _Call, route: str, status: int, elapsed_ms: float, emf_namespace: str | None) -> None:
    values = {"status": status, "images": call.images, "ms": round(elapsed_ms, 3), "request_id": call.id}
    if call.inference_id:
        values["inference_id"] = call.inference_id
    if call.model:
        values["model"] = call.model
    _LOGGER.info(
        "invocation status=%d images=%d ms=%.1f id=%s",
        status,
        call.images,
        elapsed_ms,
        call.id,
        extra=logs.fields(**values),
    )
    if emf_namespace is not None:
        line = emf.invocation(
            emf_namespace,
            route=route,
            status=status,
            images=call.images,
            elapsed_ms=elapsed_ms,
            request_id=call.id,
            now_s=time.time(),
        )
        _LOGGER.info("metrics of invocation id=%s", call.id, extra=logs.document(line))


def _read_items(content_type: str | None, body: bytes, *, one_by_one: bool) -> Sequence[Item]:
    """The request's images; where each answers for itself, errors take the place of those that cannot be read."""
    try:
        return payload.read_items(content_type, body)
    except RequestError as error:
        if one_by_one and error.status == RequestError.status:
            return [error]
        raise


def _stream(lines: Iterator[bytes], media_type: str, identifier: str) -> Response:
    """An answer in chunks. Its first lines are made at once, so that what refuses the request still has a status."""
    first = next(lines)

    def rest() -> Iterator[bytes]:
        yield first
        try:
            yield from lines
        except Exception as error:
            _LOGGER.error(
                "a request failed, id=%s", identifier, exc_info=error, extra=logs.fields(request_id=identifier)
            )
            yield payload.write_error(_INTERNAL_ERROR, _apology(identifier))

    return Response(rest(), mimetype=media_type)


def _refuse(error: RequestError) -> Response:
    body = payload.write_error(error.code, str(error))
    return Response(body, status=error.status, mimetype=payload.JSON, headers=_headers_of(error))


def _status_line(status: int) -> str:
    return f"{status} {HTTPStatus(status).phrase.upper()}"


def _headers_of(error: RequestError) -> list[tuple[str, str]]:
    return [] if error.retry_after_s is None else [("Retry-After", str(error.retry_after_s))]


def _refuse_http(error: HTTPException, environ: WSGIEnvironment, max_payload_bytes: int) -> Response:
    """What Flask itself refuses: unknown paths and methods, bodies that are too large or break off."""
    status = error.code or 500
    if status == PayloadTooLargeError.status:
        return _refuse(PayloadTooLargeError(f"the body is larger than the allowed {max_payload_bytes} bytes"))
    code = error.name.lower().replace(" ", "_")
    asked = Request(environ)
    message = f"{asked.method} {asked.path}: {error.description or error.name}"
    response = Response(payload.write_error(code, message), status=status, mimetype=payload.JSON)
    allowed = getattr(error, "valid_methods", None)
    if allowed:
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def _fail(error: Exception, environ: WSGIEnvironment) -> Response:
    identifier = environ[_CALL].id
    _log_fault(error, identifier)
    return Response(payload.write_error(_INTERNAL_ERROR, _apology(identifier)), status=500, mimetype=payload.JSON)


def _log_fault(error: Exception, identifier: str) -> None:
    _LOGGER.error("a request failed, id=%s", identifier, exc_info=error, extra=logs.fields(request_id=identifier))


def _apology(identifier: str) -> str:
    return f"the server failed; its log has the details under id {identifier}"
