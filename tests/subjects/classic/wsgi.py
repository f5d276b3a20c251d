"""The two routes of a classic bring-your-own container, behind what stands for its nginx."""

import csv
import io
import os
import pickle
import time
from pathlib import Path

import flask

MODEL = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "model", "decision-tree-model.pkl")
LIMIT_BYTES = 5 * 1024 * 1024


class ScoringService:
    """Loads the model when it is first asked for, in every worker."""

    model = None

    @classmethod
    def get_model(cls):
        if cls.model is None:
            with MODEL.open("rb") as file:
                cls.model = pickle.load(file)
        return cls.model

    @classmethod
    def predict(cls, rows):
        # A tree is quick; this stands for a model that is not, such as an image classifier on a small instance.
        time.sleep(float(os.environ.get("PREDICT_SECONDS", "0")))
        return [cls.ask(cls.get_model(), [float(value) for value in row]) for row in rows]

    @classmethod
    def ask(cls, node, row):
        while isinstance(node, tuple):
            feature, middle, below, above = node
            node = above if row[feature] > middle else below
        return node


service = flask.Flask(__name__)


@service.route("/ping", methods=["GET"])
def ping():
    try:
        health = ScoringService.get_model() is not None
    except Exception:
        health = False
    return flask.Response(response="\n", status=200 if health else 404, mimetype="application/json")


@service.route("/invocations", methods=["POST"])
def invocations():
    if flask.request.content_type != "text/csv":
        return flask.Response(response="This predictor only supports CSV data", status=415, mimetype="text/plain")
    rows = list(csv.reader(io.StringIO(flask.request.data.decode("utf-8"))))
    print(f"Invoked with {len(rows)} records")
    result = "".join(f"{label}\n" for label in ScoringService.predict(rows))
    return flask.Response(response=result, status=200, mimetype="text/csv")


def app(environ, start_response):
    """Refuses what the sample's nginx refuses, as it does."""
    if environ["PATH_INFO"] not in ("/ping", "/invocations"):
        return page(start_response, "404 Not Found")
    if int(environ.get("CONTENT_LENGTH") or 0) > LIMIT_BYTES:
        return page(start_response, "413 Request Entity Too Large")
    return service(environ, start_response)


def page(start_response, status):
    body = f"<html>\n<head><title>{status}</title></head>\n<body><h1>{status}</h1></body>\n</html>\n".encode()
    start_response(status, [("Content-Type", "text/html"), ("Content-Length", str(len(body)))])
    return [body]
