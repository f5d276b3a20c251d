"""The server's own description: an OpenAPI 3.1 document of every route, media type and status.

Knows what `payload` reads and writes and the statuses that `errors` owns; not the web framework. Tests send what it
describes, and what it does not, and hold every answer's status against it.

Source: OpenAPI Specification 3.1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from dogbreed.serving import forms, payload

Document = dict[str, object]

_ERRORS: Mapping[int, str] = {
    400: "An image that cannot be decoded, a body or an option that cannot be read.",
    404: "No model of that name is loaded, or the model has no card.",
    406: "No type in Accept can be produced.",
    408: "The body did not arrive in time.",
    409: "A model of that name is loaded already, or is being loaded.",
    413: "The body is larger, or holds more images, than allowed.",
    415: "The Content-Type carries no images here.",
    500: "A fault of the server; the log has the details under the id in the message.",
    501: "Heat maps are switched off, not installed, or not to be had for this network; the message says which.",
    503: "The model is not ready, with the reason, or too many requests wait; Retry-After says when to come back.",
    504: "The request has waited, or was computed, longer than anybody waits for its answer; Retry-After, where it is, "
    "says when to come back.",
    507: "There is not enough memory for the model or the prediction.",
}


def describe(*, max_payload_bytes: int, multi_model: bool) -> Document:
    """The document of a server that also serves this document; see `app.Settings`."""
    paths: dict[str, object] = {
        "/ping": {"get": _ping()},
        "/execution-parameters": {"get": _execution_parameters()},
        "/metrics": {"get": _plain("Counts of the server as Prometheus text.", "text/plain")},
        "/": {"get": _plain("A page to try photos.", "text/html")},
        "/openapi.json": {"get": _plain("This document.", payload.JSON)},
    }
    if multi_model:
        paths |= _models(max_payload_bytes)
    else:
        paths["/invocations"] = {"post": _invocations(max_payload_bytes)}
        paths["/model-card"] = {"get": _plain("What the model is, for people.", "text/html", 404)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dogbreed",
            "version": _version(),
            "description": "An image classifier behind SageMaker's contract for containers. Every answer carries "
            "X-Request-Id; every answer that is no success is one JSON line.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Candidate": _object(
                    {
                        "label": {"type": "string"},
                        "index": {"type": "integer", "minimum": 0},
                        "probability": {"type": "number", "minimum": 0, "maximum": 1},
                    }
                ),
                "Prediction": _prediction(),
                "HeatMap": _heat_map(),
                "Predictions": _object({"predictions": {"type": "array", "items": _entry()}}),
                "Images": _images(),
                "Error": _error(),
                "Model": _object({"modelName": {"type": "string"}, "modelUrl": {"type": "string"}}),
            },
        },
    }


def _version() -> str:
    try:
        return version("dogbreed")
    except PackageNotFoundError:  # a checkout on PYTHONPATH is not installed
        return "0"


def _models(max_payload_bytes: int) -> dict[str, object]:
    """The routes of a multi-model endpoint."""
    name: Document = {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "As it was loaded.",
        "schema": {"type": "string", "minLength": 1},
    }
    status = _object({"status": {"type": "string"}})
    asked = _object({"model_name": {"type": "string", "minLength": 1}, "url": {"type": "string"}})
    page: Document = {
        "type": "object",
        "properties": {"models": {"type": "array", "items": _ref("Model")}, "nextPageToken": {"type": "string"}},
        "required": ["models"],
    }
    invoke = _invocations(max_payload_bytes)
    return {
        "/invocations": {
            "post": {
                "summary": "No model in particular, so none.",
                "responses": _errors(400, 404, 408, 413, 500, 503),
            }
        },
        "/models": {
            "post": {
                "summary": "Load a model; answered when it can predict.",
                "requestBody": {"required": True, "content": _content(payload.JSON, asked)},
                "responses": _success(status) | _errors(400, 408, 409, 413, 500, 503, 507),
            },
            "get": {
                "summary": "The loaded models, by name.",
                "parameters": [
                    _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000}),
                    _query("next_page_token", {"type": "string"}),
                ],
                "responses": _success(page) | _errors(400, 500),
            },
        },
        "/models/{name}": {
            "parameters": [name],
            "get": {"summary": "One loaded model.", "responses": _success(_ref("Model")) | _errors(404, 500)},
            "delete": {
                "summary": "Unload a model; its memory is free when this is answered.",
                "responses": _success(status) | _errors(404, 409, 500, 503),
            },
        },
        "/models/{name}/invoke": {
            "parameters": [name],
            "post": invoke | {"responses": _answers() | _errors(400, 404, 406, 408, 413, 415, 500, 501, 503, 504, 507)},
        },
    }


def _success(schema: Mapping[str, object]) -> dict[str, object]:
    return {"200": {"description": "Done.", "content": _content(payload.JSON, schema)}}


def _query(name: str, schema: Mapping[str, object]) -> Document:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _ping() -> Document:
    return {
        "summary": "Whether the model can predict now.",
        "responses": {"200": {"description": "It can.", "content": _content(payload.JSON, {})}, **_errors(503, 500)},
    }


def _execution_parameters() -> Document:
    parameters = _object(
        {
            "MaxConcurrentTransforms": {"type": "integer", "minimum": 1},
            "BatchStrategy": {"const": "SINGLE_RECORD"},
            "MaxPayloadInMB": {"type": "integer", "minimum": 1, "maximum": 100},
        }
    )
    return {
        "summary": "What batch transform may ask of this server.",
        "responses": {
            "200": {"description": "The parameters.", "content": _content(payload.JSON, parameters)},
            **_errors(500),
        },
    }


def _plain(summary: str, media_type: str, *refused: int) -> Document:
    schema = {} if media_type == payload.JSON else {"type": "string"}
    return {
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": _content(media_type, schema)},
            **_errors(*refused, 500),
        },
    }


def _invocations(max_payload_bytes: int) -> Document:
    bodies: dict[str, object] = {name: {"schema": {}} for name in payload.IMAGE_TYPES}
    bodies |= _content(payload.JSON, _ref("Images"))
    bodies |= _content(payload.JSON_LINES, {"type": "string"})
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": payload.MAX_IMAGES}
    bodies |= _content(forms.FORM, _object({"file": files}))
    return {
        "summary": "Predictions for one image, or for several.",
        "description": f"At most {max_payload_bytes} bytes and {payload.MAX_IMAGES} images, or {payload.MAX_LINES} "
        "lines of JSON Lines. Accept chooses the answer's type. JSON Lines for JSON Lines are streamed, each line with "
        "a prediction or an error.",
        "parameters": [
            _header(
                "X-Amzn-SageMaker-Custom-Attributes",
                "Options, separated by commas or semicolons: top_k=N, return=log_probabilities, "
                "return=heatmap. Others are left alone.",
            ),
            _query("return", {"type": "string", "enum": ["log_probabilities", "heatmap"]}),
            _header("X-Amzn-SageMaker-Inference-Id", "An id that goes into the log."),
        ],
        "requestBody": {"required": True, "content": bodies},
        "responses": _answers() | _errors(400, 406, 408, 413, 415, 500, 501, 503, 504),
    }


def _answers() -> dict[str, object]:
    content = {
        payload.JSON: {"schema": _ref("Predictions")},
        payload.JSON_LINES: {"schema": {"type": "string"}},
        payload.CSV: {"schema": {"type": "string"}},
    }
    return {"200": {"description": "One prediction per image, in order.", "content": content}}


def _prediction() -> Document:
    return {
        "allOf": [
            _ref("Candidate"),
            {
                "type": "object",
                "properties": {
                    "top_k": {"type": "array", "items": _ref("Candidate"), "minItems": 1},
                    "log_probabilities": {"type": "array", "items": {"type": "number", "maximum": 0}},
                    "known": {
                        "type": "boolean",
                        "description": "False where the image may show none of the classes: its familiarity is below "
                        "that of 95% of the job's validation images. Absent where the job had fewer than 50.",
                    },
                    "familiarity": {
                        "type": "number",
                        "minimum": 0,
                        "maximum": 1,
                        "description": "The largest probability before calibration.",
                    },
                    "heat_map": _ref("HeatMap"),
                },
                "required": ["top_k"],
            },
        ]
    }


def _heat_map() -> Document:
    share = {"type": "number", "minimum": 0, "maximum": 1}
    document = _object(
        {
            "values": {"type": "array", "items": {"type": "array", "items": share}},
            "box": {"type": "array", "items": share, "minItems": 4, "maxItems": 4},
        }
    )
    return document | {
        "description": "How much each region spoke for the answer, rows from the top, and the part of the upright "
        "image that the rows cover: left, top, width and height, as shares of the whole."
    }


def _entry() -> Document:
    """Errors stand among the predictions in a batch transform only."""
    return {"anyOf": [_ref("Prediction"), _ref("Error")]}


def _images() -> Document:
    image = {
        "oneOf": [
            {"type": "string", "contentEncoding": "base64", "minLength": 1},
            _object({"b64": {"type": "string", "contentEncoding": "base64", "minLength": 1}}),
        ]
    }
    images = {"type": "array", "items": image, "minItems": 1, "maxItems": payload.MAX_IMAGES}
    return {"oneOf": [_object({"images": images}), _object({"instances": images}), images]}


def _error() -> Document:
    return _object({"error": _object({"code": {"type": "string"}, "message": {"type": "string"}})})


def _errors(*statuses: int) -> dict[str, object]:
    return {
        str(status): {"description": _ERRORS[status], "content": _content(payload.JSON, _ref("Error"))}
        for status in statuses
    }


def _header(name: str, description: str) -> Document:
    schema = {"type": "string", "pattern": "^[!-~]([ -~]*[!-~])?$", "maxLength": 1024}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def _content(media_type: str, schema: Mapping[str, object]) -> dict[str, object]:
    return {media_type: {"schema": schema}}


def _object(properties: Mapping[str, object]) -> Document:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
