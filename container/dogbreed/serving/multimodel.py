"""The routes of a multi-model endpoint, over a `ModelRegistry`.

Source: AWS developer guide, mms-container-apis.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from flask import Flask, Response, request

from dogbreed.errors import RequestError
from dogbreed.serving import payload
from dogbreed.serving.bodies import Bodies
from dogbreed.serving.metrics import Metrics
from dogbreed.serving.models import Described, Model, ModelRegistry

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

INVOKE = "/models/<path:name>/invoke"


def add_routes(
    app: Flask,
    models: ModelRegistry,
    answer: Callable[[WSGIEnvironment, Model], Response],
    counts: Metrics,
    bodies: Bodies,
) -> None:
    """Adds `/models` and what is below it.

    Args:
        app: to add to.
        models: what is loaded.
        answer: makes a request for predictions, by its WSGI environment, an answer of a model.
        counts: are told how many models are loaded.
        bodies: reads those of requests.
    """

    @app.post("/models")
    def load() -> Response:
        name, url = bodies.read_strings(request.environ, "model_name", "url")
        models.load(name, url)
        counts.holds(models.count())
        return _json({"status": f"model {name!r} is loaded"})

    @app.get("/models")
    def show() -> Response:
        token = request.args.get("next_page_token") or request.args.get("nextPageToken")
        found, following = models.page(token, _page_size(request.args.get("limit")))
        document: dict[str, object] = {"models": [_entry(one) for one in found]}
        if following is not None:
            document["nextPageToken"] = following
        return _json(document)

    @app.get("/models/<path:name>")
    def describe(name: str) -> Response:
        return _json(_entry(models.describe(name)))

    @app.delete("/models/<path:name>")
    def delete(name: str) -> Response:
        models.delete(name)
        counts.holds(models.count())
        return _json({"status": f"model {name!r} is deleted"})

    @app.post(INVOKE)
    def invoke(name: str) -> Response:
        return answer(request.environ, models.find(name))


def _page_size(text: str | None) -> int:
    if text is None:
        return 100
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= 1000:
        raise RequestError(f"limit={text[:40]!r} is not allowed; give a whole number from 1 to 1000")
    return int(text)


def _entry(model: Described) -> dict[str, str]:
    return {"modelName": model.name, "modelUrl": model.url}


def _json(document: object) -> Response:
    return Response(json.dumps(document) + "\n", mimetype=payload.JSON)
