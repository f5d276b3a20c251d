"""The classic bring-your-own-container sample, re-created: Flask behind gunicorn's sync workers, one per CPU.

The model is loaded on the first request, as the sample does.
"""

from __future__ import annotations

import functools

from common import UsualModel
from flask import Flask, Response, jsonify, request

app = Flask(__name__)


@functools.cache
def model() -> UsualModel:
    """Once per worker."""
    return UsualModel()


@app.get("/ping")
def ping() -> Response:
    """Loads the model when it is the first call."""
    model()
    return Response(status=200)


@app.post("/invocations")
def invocations() -> Response:
    """Answers one image."""
    return jsonify(model().answer(request.get_data()))
