"""Statuses, bodies and headers of every route, with a model that is a few lines long."""

import base64
import io
import json
import logging
import math
import os
import re
import socket
import threading
from dataclasses import replace
from functools import partial

import pytest
from flask import Flask

from dogbreed.errors import NoHeatMapError, NotReadyError, UnreadableImageError
from dogbreed.serving import app as app_module
from dogbreed.serving import payload
from dogbreed.serving.admission import Gate
from dogbreed.serving.app import Settings, create_app
from dogbreed.serving.deadline import Deadline, unlimited
from dogbreed.serving.payload import HeatMap, Scores

PHOTO = b"photo"


class FakeModel:
    """Answers 0.75 and 0.25 for every image, unless it is told to fail."""

    def __init__(self):
        self.reason = None
        self.error = None
        self.seen = []
        self.while_computing = lambda: None

    def status(self):
        return self.reason

    def predict(self, images, check=unlimited):
        for _ in images:
            check()
            self.while_computing()
        self.seen.append(list(images))
        if self.error is not None:
            raise self.error
        return Scores(("pug", "boxer"), [[math.log(0.75), math.log(0.25)] for _ in images])

    def explain(self, image, check=unlimited):
        return replace(self.predict([image], check), heat_map=HeatMap([[0.0, 1.0]], (0.25, 0.0, 0.5, 1.0)))


@pytest.fixture
def model():
    return FakeModel()


@pytest.fixture
def gate():
    return Gate(slots=1, waiting=0)


@pytest.fixture
def client(model, gate):
    return create_app(model, gate, Settings(max_payload_bytes=1000)).test_client()


def error_of(response):
    """The error of an answer that must be one JSON line."""
    assert response.content_type == "application/json"
    assert response.data.count(b"\n") == 1
    assert b"Traceback" not in response.data
    return response.json["error"]


def test_ping_is_200_when_the_model_is_ready(client):
    response = client.get("/ping")
    assert (response.status_code, response.json) == (200, {})


def test_ping_gives_the_reason_while_the_model_is_not_ready(client, model):
    model.reason = "loading the model"
    response = client.get("/ping")
    assert response.status_code == 503
    assert error_of(response) == {"code": "not_ready", "message": "loading the model"}
    assert response.headers["Retry-After"] == "5"


@pytest.mark.parametrize(("method", "path"), [("GET", "/ping"), ("POST", "/invocations")])
def test_what_is_asked_all_day_goes_past_flasks_dispatch(client, model, monkeypatch, method, path):
    def dispatched(*_):
        raise AssertionError("Flask made a context of it")

    monkeypatch.setattr(Flask, "wsgi_app", dispatched)
    answered = client.open(path, method=method, data=PHOTO, headers={"X-Request-Id": "a-7"})
    assert (answered.status_code, answered.headers["X-Request-Id"]) == (200, "a-7")
    model.reason = "loading the model"
    assert client.open(path, method=method, data=PHOTO).status_code == 503
    model.reason, model.error = None, KeyError("weights")
    assert client.post("/invocations", data=PHOTO).status_code == 500


def test_the_same_paths_by_other_methods_are_flasks(client):
    assert client.head("/ping").status_code == 200
    refused = client.get("/invocations")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "OPTIONS, POST")


def test_ping_does_not_pass_the_gate(client, gate):
    with gate:
        assert client.get("/ping").status_code == 200


def test_an_image_is_answered(client, model):
    response = client.post("/invocations", data=PHOTO, content_type="image/jpeg")
    assert response.status_code == 200
    assert response.content_type == "application/json"
    assert response.json["predictions"][0]["label"] == "pug"
    assert model.seen == [[PHOTO]]


def test_a_missing_content_type_is_an_image(client, model):
    assert client.post("/invocations", data=PHOTO).status_code == 200
    assert model.seen == [[PHOTO]]


def test_json_and_headers_are_understood(client, model):
    sent = [base64.b64encode(PHOTO).decode()] * 2
    headers = {"Accept": "application/jsonlines", "X-Amzn-SageMaker-Custom-Attributes": "top_k=1,trace=7"}
    response = client.post("/invocations", json={"images": sent}, headers=headers)
    assert response.content_type == "application/jsonlines"
    assert [len(json.loads(line)["top_k"]) for line in response.data.splitlines()] == [1, 1]
    assert model.seen == [[PHOTO, PHOTO]]


def test_the_default_accept_is_a_setting(model, gate):
    client = create_app(model, gate, Settings(1000, default_accept="text/csv")).test_client()
    response = client.post("/invocations", data=PHOTO)
    assert response.content_type == "text/csv; charset=utf-8"
    assert response.data.startswith(b"image,rank,label,index,probability\n0,1,pug,0,0.75")


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"data": b"", "content_type": "image/png"}, 400, "bad_request"),
        ({"data": b"{", "content_type": "application/json"}, 400, "bad_request"),
        ({"data": PHOTO, "headers": {"X-Amzn-SageMaker-Custom-Attributes": "top_k=x"}}, 400, "bad_request"),
        ({"data": PHOTO, "headers": {"Accept": "image/png"}}, 406, "not_acceptable"),
        ({"data": PHOTO, "content_type": "text/html"}, 415, "unsupported_media_type"),
        ({"data": PHOTO * 300, "content_type": "image/png"}, 413, "payload_too_large"),
    ],
)
def test_a_clients_mistake_is_a_4xx_that_the_model_does_not_see(client, model, request_, status, code):
    response = client.post("/invocations", **request_)
    assert response.status_code == status
    assert error_of(response)["code"] == code
    assert model.seen == []


@pytest.mark.parametrize(("size", "status"), [(1000, 200), (1001, 413)])
def test_the_limit_holds_for_chunked_bodies_too(client, size, status):
    body = io.BytesIO(b"x" * size)
    chunked = {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""}
    response = client.post("/invocations", input_stream=body, environ_overrides=chunked)
    assert response.status_code == status
    if status == 413:
        assert "1000 bytes" in error_of(response)["message"]


@pytest.mark.parametrize("error", [OSError("reset"), RuntimeError("Invalid chunk size")])
def test_a_body_that_cannot_be_read_is_not_our_fault(client, error):
    class Broken(io.BytesIO):
        def read(self, *_):
            raise error

        readinto = read

    response = client.post("/invocations", input_stream=Broken(b"x" * 10))
    assert response.status_code == 400
    assert "malformed, broke off or stalled" in error_of(response)["message"]


def test_too_large_a_body_is_refused_by_its_length_alone(client):
    body = io.BytesIO(b"x" * 5000)
    assert client.post("/invocations", input_stream=body).status_code == 413
    assert body.tell() == 0


def test_an_undecodable_image_is_a_400(client, model):
    model.error = UnreadableImageError("image 1 cannot be decoded")
    response = client.post("/invocations", data=PHOTO)
    assert response.status_code == 400
    assert error_of(response) == {"code": "unreadable_image", "message": "image 1 cannot be decoded"}


def test_nothing_is_predicted_before_the_model_is_ready(client, model):
    model.reason = "loading the model"
    response = client.post("/invocations", data=PHOTO)
    assert response.status_code == 503
    assert error_of(response)["message"] == "loading the model"
    assert model.seen == []


def test_a_model_that_dies_in_between_is_a_503(client, model):
    model.error = NotReadyError("the model failed its self-test")
    assert client.post("/invocations", data=PHOTO).status_code == 503


def test_a_full_gate_is_a_503_with_retry_after(client, model, gate):
    with gate:
        response = client.post("/invocations", data=PHOTO)
    assert response.status_code == 503
    assert error_of(response)["code"] == "busy"
    assert response.headers["Retry-After"] == "1"
    assert client.post("/invocations", data=PHOTO).status_code == 200


def test_the_gate_surrounds_the_prediction(client, model, gate):
    running = []
    predict = model.predict
    model.predict = lambda images, check: running.append(gate.running) or predict(images, check)
    client.post("/invocations", data=PHOTO)
    assert running == [1]
    assert gate.running == 0


def test_a_fault_of_ours_is_a_500_whose_id_is_in_the_log_with_the_traceback(client, model, caplog):
    model.error = RuntimeError("secret detail")
    response = client.post("/invocations", data=PHOTO)
    assert response.status_code == 500
    error = error_of(response)
    assert error["code"] == "internal_error"
    assert "secret" not in response.text
    identifier = re.search("[0-9a-f]{32}", error["message"]).group()
    assert f"id={identifier}" in caplog.text
    assert "secret detail" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/invocations", 405, "method_not_allowed"),
        ("POST", "/ping", 405, "method_not_allowed"),
    ],
)
def test_unknown_paths_and_methods_are_json_too(client, method, path, status, code):
    response = client.open(path, method=method)
    assert response.status_code == status
    assert error_of(response)["code"] == code
    if status == 405:
        assert ("POST" if method == "GET" else "GET") in response.headers["Allow"]


@pytest.mark.parametrize(
    ("max_payload_mb", "slots", "processes", "expected"),
    [(25, 1, 2, (2, 25)), (25, 8, 2, (4, 25)), (6, 64, 1, (16, 6)), (1024, 8, 1, (1, 100)), (6, 1, 1, (1, 6))],
)
def test_execution_parameters_stay_within_the_platforms_product(model, max_payload_mb, slots, processes, expected):
    settings = Settings(max_payload_mb * 1024 * 1024, processes=processes)
    document = create_app(model, Gate(slots, 0), settings).test_client().get("/execution-parameters").json
    assert (document["MaxConcurrentTransforms"], document["MaxPayloadInMB"]) == expected
    assert document["BatchStrategy"] == "SINGLE_RECORD"


def test_batch_transform_is_told_of_all_that_a_loaded_engine_takes(model):
    gate = Gate(2, 0)
    client = create_app(model, gate, Settings(6 * 1024 * 1024)).test_client()
    gate.widen(4)
    assert client.get("/execution-parameters").json["MaxConcurrentTransforms"] == 4


def test_the_page_is_served_when_asked_for_and_loads_nothing_from_elsewhere(model, gate):
    response = create_app(model, gate, Settings(1000, page=True)).test_client().get("/")
    assert response.content_type == "text/html; charset=utf-8"
    assert b"aria-live" in response.data
    assert not re.search(rb"https?://", response.data)
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]


def test_each_invocation_is_one_log_line_and_ping_is_none(model, gate, caplog):
    times = iter([1.0, 1.0, 1.0, 1.25])
    client = create_app(model, gate, Settings(1000), clock=lambda: next(times)).test_client()
    with caplog.at_level(logging.INFO, logger="dogbreed"):
        client.get("/ping")
        client.post("/invocations", data=PHOTO)
    assert [record.getMessage().rpartition(" id=")[0] for record in caplog.records] == [
        "invocation status=200 images=1 ms=250.0"
    ]


def test_requests_at_the_same_time_do_not_share_anything(model):
    client_app = create_app(model, Gate(slots=4, waiting=16), Settings(1000))
    statuses = []

    def post(number):
        response = client_app.test_client().post("/invocations", data=b"x" * number)
        statuses.append(response.status_code)

    threads = [threading.Thread(target=post, args=(number,)) for number in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert statuses == [200] * 16
    assert sorted(len(images[0]) for images in model.seen) == list(range(1, 17))


def test_metrics_are_counted_by_route_and_never_by_a_clients_path(client):
    for path in ("/ping", "/ping", "/made/up", "/made/up/too"):
        client.get(path)
    client.post("/invocations", data=PHOTO)
    response = client.get("/metrics")
    assert response.content_type.startswith("text/plain")
    assert 'dogbreed_requests_total{route="/ping",status="200"} 2.0' in response.text
    assert 'dogbreed_requests_total{route="unknown",status="404"} 2.0' in response.text
    assert 'dogbreed_requests_total{route="/invocations",status="200"} 1.0' in response.text
    assert "dogbreed_request_images_sum 1.0" in response.text
    assert "made" not in response.text


@pytest.mark.parametrize("name", ["X-Request-Id", "X-Amzn-RequestId", "X-Amzn-Trace-Id"])
def test_a_request_keeps_the_id_that_its_caller_gave_it(client, model, caplog, name):
    model.error = RuntimeError("broken")
    response = client.post("/invocations", data=PHOTO, headers={name: "Root=1-2;trace"})
    assert response.headers["X-Request-Id"] == "Root=1-2;trace"
    assert "Root=1-2;trace" in error_of(response)["message"]
    assert "id=Root=1-2;trace" in caplog.text


@pytest.mark.parametrize("value", ["", "a b", "x" * 129, "na\xefve"])
def test_an_id_that_is_not_fit_for_a_log_is_replaced(client, value):
    response = client.get("/ping", headers={"X-Request-Id": value})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-Id"])


def test_an_invocation_is_told_to_cloudwatch_when_asked(model, gate, caplog):
    client = create_app(model, gate, Settings(1000, emf_namespace="dogs")).test_client()
    with caplog.at_level(logging.INFO, logger="dogbreed"):
        client.post("/invocations", data=b"", headers={"X-Amzn-SageMaker-Inference-Id": "seven"})
    line, metric = caplog.records
    assert line.fields["inference_id"] == "seven"
    assert line.fields["request_id"] == metric.document["RequestId"]
    assert metric.document["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "dogs"
    assert (metric.document["Status"], metric.document["Invocation4XXErrors"]) == (400, 1)


def test_json_lines_are_answered_by_json_lines_each_for_itself(client, model):
    sent = json.dumps(base64.b64encode(PHOTO).decode()).encode() + b"\n{\n"
    response = client.post("/invocations", data=sent, content_type="application/jsonlines")
    assert response.status_code == 200
    assert response.content_type == "application/jsonlines"
    assert [next(iter(json.loads(line))) for line in response.data.splitlines()] == ["label", "error"]


def test_json_lines_that_are_answered_at_once_are_refused_at_once(client, model):
    response = client.post(
        "/invocations", data=b"{", content_type="application/jsonlines", headers={"Accept": "application/json"}
    )
    assert response.status_code == 400
    assert "line 0" in error_of(response)["message"]
    assert model.seen == []


@pytest.fixture
def clock(model, gate, monkeypatch):
    """A server of ten seconds a request, at whose clock each image takes four; sends some and returns the answer."""
    now = [0.0]

    def pass_time():
        now[0] += 4

    model.while_computing = pass_time
    monkeypatch.setattr(app_module, "Deadline", partial(Deadline, clock=lambda: now[0]))
    client = create_app(model, gate, Settings(10_000, request_timeout_s=10)).test_client()

    def send(count, **environ):
        images = [base64.b64encode(PHOTO).decode()] * count
        return client.post("/invocations", json={"images": images}, environ_overrides=environ)

    return send


def test_a_request_that_takes_longer_than_anybody_waits_is_504_alone(model, clock, gate):
    assert clock(3).status_code == 200
    late = clock(4)
    assert (late.status_code, error_of(late)["code"]) == (504, "took_too_long")
    assert "Retry-After" not in late.headers
    assert [len(images) for images in model.seen] == [3]
    assert gate.running == 0
    assert clock(1).status_code == 200


def test_no_further_image_is_computed_for_a_client_that_has_gone(model, clock):
    here, there = socket.socketpair()
    with here:
        model.while_computing = there.close
        assert clock(2, **{"gunicorn.socket": here}).status_code == 499
    assert model.seen == []


def test_of_a_streamed_answer_each_group_of_lines_has_the_time_anew(model, gate, monkeypatch):
    line = b'"' + base64.b64encode(PHOTO) + b'"\n'
    moments = iter([0.0, 0.0, *[9.0] * 8, 9.0, *[18.0] * 8])  # begun; then for each group renewed, and eight images
    monkeypatch.setattr(app_module, "Deadline", partial(Deadline, clock=lambda: next(moments)))
    client = create_app(model, gate, Settings(10_000, request_timeout_s=10)).test_client()
    answer = client.post("/invocations", data=line * 16, content_type="application/jsonlines")
    assert [json.loads(each)["label"] for each in answer.data.splitlines()] == ["pug"] * 16


def test_a_heat_map_has_no_more_time_than_any_request(model, gate):
    client = create_app(model, gate, Settings(1000, request_timeout_s=0)).test_client()
    late = client.post("/invocations?return=heatmap", data=PHOTO)
    assert (late.status_code, error_of(late)["code"]) == (504, "took_too_long")


def test_a_stream_that_fails_ends_with_a_line_that_names_the_log(model, gate, caplog):
    client = create_app(model, gate, Settings(10_000)).test_client()
    predict = model.predict

    def fail_later(images, check):
        if model.seen:
            raise RuntimeError("secret detail")
        return predict(images)

    model.predict = fail_later
    line = json.dumps(base64.b64encode(PHOTO).decode()).encode() + b"\n"
    response = client.post("/invocations", data=line * 9, content_type="application/jsonlines")
    assert response.status_code == 200
    *good, last = [json.loads(line) for line in response.data.splitlines()]
    assert len(good) == 8
    assert last["error"]["code"] == "internal_error"
    assert response.headers["X-Request-Id"] in last["error"]["message"]
    assert "secret detail" in caplog.text
    assert gate.running == 0


@pytest.mark.parametrize(("sent", "content_type"), [(b"", "image/jpeg"), (b"[", "application/json"), (b"bad", "")])
def test_in_a_batch_transform_a_bad_object_is_an_entry(model, gate, sent, content_type):
    if sent == b"bad":
        model.error = UnreadableImageError("bad")
    client = create_app(model, gate, Settings(1000, item_errors=True)).test_client()
    response = client.post("/invocations", data=sent, content_type=content_type)
    assert response.status_code == 200
    (entry,) = response.json["predictions"]
    assert set(entry) == {"error"}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"data": PHOTO, "headers": {"Accept": "image/png"}}, 406),
        ({"data": PHOTO, "content_type": "text/html"}, 415),
        ({"data": PHOTO * 300}, 413),
    ],
)
def test_in_a_batch_transform_what_is_wrong_with_the_job_stays_an_error(model, gate, request_, status):
    client = create_app(model, gate, Settings(1000, item_errors=True)).test_client()
    assert client.post("/invocations", **request_).status_code == status


def test_a_form_with_files_is_understood(client, model):
    data = {"first": (io.BytesIO(PHOTO), "a.jpg"), "second": (io.BytesIO(PHOTO * 2), "b.jpg")}
    response = client.post("/invocations", data=data, content_type="multipart/form-data")
    assert len(response.json["predictions"]) == 2
    assert model.seen == [[PHOTO, PHOTO * 2]]


@pytest.mark.parametrize("name", ["X-Amzn-SageMaker-Custom-Attributes", "X-Amzn-SageMaker-Inference-Id"])
@pytest.mark.parametrize(
    ("value", "back"), [("trace=7, top_k=1", "trace=7, top_k=1"), ("x" * 1025, None), ("\xe9", None)]
)
def test_what_the_caller_marks_a_request_with_comes_back(client, name, value, back):
    for path, method in (("/invocations", "POST"), ("/nope", "GET")):
        assert client.open(path, method=method, data=PHOTO, headers={name: value}).headers.get(name) == back


@pytest.mark.parametrize(
    "asked",
    [
        {"path": "/invocations?return=heatmap"},
        {"path": "/invocations", "headers": {"X-Amzn-SageMaker-Custom-Attributes": "return=heatmap"}},
        {"path": "/invocations?return=heatmap", "content_type": "application/jsonlines"},
    ],
)
def test_a_heat_map_is_part_of_the_prediction(client, model, asked):
    sent = json.dumps(base64.b64encode(PHOTO).decode()) if "content_type" in asked else PHOTO
    response = client.post(**asked, data=sent)
    assert response.status_code == 200, response.data
    found = json.loads(response.data)
    prediction = found if "content_type" in asked else found["predictions"][0]
    assert prediction["label"] == "pug"
    assert prediction["heat_map"] == {"values": [[0.0, 1.0]], "box": [0.25, 0.0, 0.5, 1.0]}
    assert model.seen == [[PHOTO]]


def test_without_being_asked_for_there_is_no_heat_map(client):
    assert "heat_map" not in client.post("/invocations", data=PHOTO).json["predictions"][0]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"json": [base64.b64encode(PHOTO).decode()] * 3}, "return=heatmap is for one image a request; found 3"),
        (
            {"data": PHOTO, "headers": {"Accept": "text/csv"}},
            "return=heatmap has no place in text/csv; accept application/json",
        ),
        ({"data": PHOTO, "query_string": {"return": "heat"}}, "return='heat' is not allowed; give log_probabilities"),
    ],
)
def test_a_heat_map_that_cannot_be_is_a_400(client, model, request_, message):
    response = client.post("/invocations", **({"query_string": {"return": "heatmap"}} | request_))
    assert response.status_code == 400
    assert error_of(response)["message"].startswith(message)
    assert model.seen == []


def test_a_model_without_heat_maps_says_so(client, model):
    model.error = NoHeatMapError("there are none")
    response = client.post("/invocations?return=heatmap", data=PHOTO)
    assert response.status_code == 501
    assert error_of(response) == {"code": "no_heat_map", "message": "there are none"}


def test_one_heat_map_is_drawn_at_a_time_and_predictions_pass_it(model):
    gate = Gate(slots=2, waiting=0)
    client = create_app(model, gate, Settings(max_payload_bytes=1000)).test_client()
    drawing, drawn = threading.Event(), threading.Event()
    explain = model.explain

    def slowly(image, check):
        drawing.set()
        assert drawn.wait(20)
        return explain(image, check)

    model.explain = slowly
    statuses = []

    def ask():
        statuses.append(client.application.test_client().post("/invocations?return=heatmap", data=PHOTO).status_code)

    askers = [threading.Thread(target=ask) for _ in range(6)]
    askers[0].start()
    assert drawing.wait(20)
    for asker in askers[1:]:
        asker.start()
    while not statuses:  # four wait, the sixth is refused at once
        threading.Event().wait(0.01)
    assert statuses == [503]
    assert gate.running == 1, "those that wait for a map take no turn"
    assert client.post("/invocations", data=PHOTO).status_code == 200
    drawn.set()
    for asker in askers:
        asker.join(20)
    assert sorted(statuses) == [200] * 5 + [503]


def test_the_model_card_is_shown_as_text_where_the_page_is(model, gate, tmp_path):
    file = tmp_path / "MODEL_CARD.md"
    file.write_text("# Model card: pugs\n\n<script>alert(1)</script> & more\n", encoding="utf-8")
    client = create_app(model, gate, Settings(1000, page=True, card=file)).test_client()
    response = client.get("/model-card")
    assert (response.status_code, response.mimetype) == (200, "text/html")
    assert "<h1>Model card: pugs</h1>" in response.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in response.text
    assert "<script" not in response.text
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src")
    assert create_app(model, gate, Settings(1000, card=file)).test_client().get("/model-card").status_code == 404


def test_large_bodies_are_read_one_at_a_time_and_small_ones_meanwhile(model, monkeypatch):
    monkeypatch.setattr(app_module, "_LARGE_BODY_BYTES", 50)
    app = create_app(model, Gate(slots=9, waiting=9), Settings(max_payload_bytes=1000))
    read_items, reading, most, go_on = payload.read_items, [], [], threading.Event()

    def read(content_type, body):
        if len(body) > 50:
            reading.append(body)
            most.append(len(reading))
            assert go_on.wait(30)
            reading.remove(body)
        return read_items(content_type, body)

    monkeypatch.setattr(payload, "read_items", read)

    def post(body):
        return app.test_client().post("/invocations", data=body, content_type="image/jpeg").status_code

    threads = [threading.Thread(target=post, args=(b"x" * 51,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert post(b"x" * 50) == 200
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert most == [1] * 4


def test_a_model_card_that_is_a_pipe_is_not_waited_for(model, gate, tmp_path):
    card = tmp_path / "MODEL_CARD.md"
    os.mkfifo(card)
    assert (
        create_app(model, gate, Settings(1000, page=True, card=card)).test_client().get("/model-card").status_code
        == 404
    )


@pytest.mark.parametrize("there", [True, False])
def test_a_model_without_a_card_says_so(model, gate, tmp_path, there):
    card = tmp_path / "MODEL_CARD.md" if there else None
    response = create_app(model, gate, Settings(1000, page=True, card=card)).test_client().get("/model-card")
    assert response.status_code == 404
    assert error_of(response)["message"].endswith("the model's folder holds no model card")


def test_who_is_turned_away_gets_the_answer_that_a_turn_would_give(model, gate, caplog):
    app = create_app(model, gate, Settings(max_payload_bytes=1000))
    marks = {"X-Request-Id": "a-7", "X-Amzn-SageMaker-Custom-Attributes": "top_k=1"}
    with gate, caplog.at_level(logging.INFO):
        assert app.is_full()
        in_turn = app.test_client().post("/invocations", data=PHOTO, headers=marks)
        named = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in marks.items()}
        status, headers, content = app.turn_away("/invocations", named)
    assert (status, content) == (in_turn.status, in_turn.data)
    assert sorted(headers) == sorted(in_turn.headers)
    assert len([line for line in caplog.messages if line.startswith("invocation status=503")]) == 2
    assert 'dogbreed_requests_total{route="/invocations",status="503"} 2.0' in app.test_client().get("/metrics").text
    assert model.seen == []
    assert not app.is_full()


def test_who_asks_one_of_several_models_is_turned_away_by_its_name(model, gate, caplog):
    app = create_app(model, gate, Settings(max_payload_bytes=1000))
    with caplog.at_level(logging.INFO):
        assert app.turn_away("/models/pugs/invoke", {}).status == "503 SERVICE UNAVAILABLE"
    assert caplog.records[-1].fields["model"] == "pugs"
    assert 'route="/models/<path:name>/invoke",status="503"' in app.test_client().get("/metrics").text


@pytest.mark.parametrize("path", ["/ping", "/models", "/models/pugs", "/invocations/", "/"])
def test_what_asks_for_no_prediction_is_never_turned_away(model, gate, path):
    app = create_app(model, gate, Settings(max_payload_bytes=1000))
    with gate:
        assert app.turn_away(path, {}) is None
    assert gate.refused == 0


@pytest.mark.parametrize(
    ("path", "content_type", "expected"),
    [
        ("/invocations", "image/jpeg", True),
        ("/invocations", None, True),
        ("/invocations", "application/json", True),
        ("/invocations", "application/jsonlines; charset=utf-8", False),
        ("/models/pugs/invoke", "image/jpeg", False),
        ("/ping", "image/jpeg", False),
    ],
)
def test_lines_are_the_only_answer_to_an_invocation_in_several_pieces(model, gate, path, content_type, expected):
    app = create_app(model, gate, Settings(max_payload_bytes=1000))
    headers = {} if content_type is None else {"CONTENT_TYPE": content_type}
    assert app.answers_in_one_piece(path, headers) is expected
