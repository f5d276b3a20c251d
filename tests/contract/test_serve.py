"""The serving side of the contract: the real server as a process, a bundle in a folder, and HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

import pytest
from PIL import Image
from tests.contract.serving import save_bundle
from tests.server_process import MAX_PAYLOAD_MB, PATIENCE_S, Answer, Server, is_ready, start, stop_hard

from dogbreed import artifacts
from dogbreed.engines.engine import PlainEngine
from dogbreed.serving.predictor import Predictor


def slow_body() -> bytes:
    """A request that computes for seconds on one CPU: the largest number of rather large images."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((3000, 2000)).convert("RGB").save(file, "JPEG", quality=20)
    return json.dumps({"images": [base64.b64encode(file.getvalue()).decode()] * 64}).encode()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    save_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    """One server for the tests that leave it as they found it."""
    started = start(root)
    yield started
    stop_hard(started)


@pytest.fixture
def ready(server: Server) -> Server:
    server.wait(is_ready)
    return server


@pytest.fixture
def slowly() -> Iterator[Callable[[Server], Future[Answer]]]:
    """Sends the slow request in the background."""
    body = slow_body()
    with ThreadPoolExecutor(4) as pool:
        yield lambda server: pool.submit(server.send, "POST", "/invocations", body, Content_Type="application/json")


def test_the_port_is_open_and_gives_a_reason_while_the_model_loads(server: Server) -> None:
    first = server.wait(lambda answer: True)
    assert first.status == 503
    assert first.error == {"code": "not_ready", "message": "loading the model"}
    refused = server.send("POST", "/invocations", b"x" * 100_000, Content_Type="image/jpeg")
    assert (refused.status, refused.error["code"]) == (503, "not_ready")
    assert server.wait(is_ready).body == b"{}\n"


def test_a_photo_is_answered(ready: Server, jpeg: bytes) -> None:
    answer = ready.send(
        "POST",
        "/invocations",
        jpeg,
        Content_Type="image/jpeg",
        Accept="application/json",
        X_Amzn_SageMaker_Custom_Attributes="top_k=3",
    )
    assert answer.status == 200
    (prediction,) = json.loads(answer.body)["predictions"]
    assert len(prediction["top_k"]) == 3
    assert prediction["top_k"][0] == {name: prediction[name] for name in ("label", "index", "probability")}
    assert prediction["label"] == f"Breed {prediction['index']}, drawn"


def test_served_answers_are_those_of_the_bundle_offline(ready: Server, root: Path, jpeg: bytes) -> None:
    other = io.BytesIO()
    Image.linear_gradient("L").save(other, "PNG")
    images = [jpeg, other.getvalue(), jpeg]
    bundle = artifacts.load(root / "model")
    expected = Predictor(bundle, PlainEngine(bundle.build(), bundle.preprocessing)).predict(images)
    body = json.dumps({"images": [base64.b64encode(image).decode() for image in images]})
    for accept in ("application/json", "application/jsonlines"):
        answer = ready.send(
            "POST",
            "/invocations",
            body,
            Content_Type="application/json",
            Accept=accept,
            X_Amzn_SageMaker_Custom_Attributes="return=log_probabilities",
        )
        if accept == "application/json":
            predictions = json.loads(answer.body)["predictions"]
        else:
            predictions = [json.loads(line) for line in answer.body.splitlines()]
        assert len(predictions) == 3
        for prediction, row in zip(predictions, expected.log_probabilities, strict=True):
            assert prediction["log_probabilities"] == pytest.approx(row, abs=1e-6)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code"),
    [
        ("POST", "/invocations", b"no image", {"Content_Type": "image/jpeg"}, 400, "unreadable_image"),
        ("POST", "/invocations", b"", {"Content_Type": "image/jpeg"}, 400, "bad_request"),
        ("POST", "/invocations", b"{}", {"Content_Type": "application/json"}, 400, "bad_request"),
        ("POST", "/invocations", b"x", {"X_Amzn_SageMaker_Custom_Attributes": "top_k=no"}, 400, "bad_request"),
        ("POST", "/invocations", b"x", {"Accept": "image/png"}, 406, "not_acceptable"),
        ("POST", "/invocations", b"x", {"Content_Type": "text/html"}, 415, "unsupported_media_type"),
        ("GET", "/invocations", None, {}, 405, "method_not_allowed"),
        ("GET", "/", None, {}, 404, "not_found"),
    ],
)
def test_a_clients_mistake_is_a_4xx_with_one_json_line(
    ready: Server, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int, code: str
) -> None:
    answer = ready.send(method, path, body, **headers)
    assert answer.status == status
    assert answer.error["code"] == code


def test_too_large_a_body_is_refused_before_it_is_sent(ready: Server) -> None:
    with socket.create_connection(("127.0.0.1", ready.port), timeout=PATIENCE_S) as connection:
        length = MAX_PAYLOAD_MB * 1024 * 1024 + 1
        connection.sendall(f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_too_large_a_chunked_body_is_refused(ready: Server) -> None:
    chunks = (b"x" * 1024 * 1024 for _ in range(MAX_PAYLOAD_MB + 1))
    answer = ready.send("POST", "/invocations", chunks, Content_Type="image/jpeg")  # http.client chunks it
    assert (answer.status, answer.error["code"]) == (413, "payload_too_large")


def test_malformed_chunks_are_the_clients_mistake(ready: Server) -> None:
    with socket.create_connection(("127.0.0.1", ready.port), timeout=PATIENCE_S) as connection:
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_execution_parameters_are_those_of_this_server(ready: Server) -> None:
    document = json.loads(ready.send("GET", "/execution-parameters").body)
    assert document == {
        "MaxConcurrentTransforms": 2,  # one computes, and OpenVINO holds the next one ready
        "BatchStrategy": "SINGLE_RECORD",
        "MaxPayloadInMB": MAX_PAYLOAD_MB,
    }


def test_a_full_server_refuses_at_once_and_still_answers_ping(
    ready: Server, slowly: Callable[[Server], Future[Answer]], jpeg: bytes
) -> None:
    # One computes and one is ready to, which is what OpenVINO takes on one CPU; one waits, and one is refused.
    calls = [slowly(ready) for _ in range(4)]
    refused = next(as_completed(calls, PATIENCE_S)).result()
    again = ready.send("POST", "/invocations", jpeg, Content_Type="image/jpeg")
    pings = [ready.send("GET", "/ping") for _ in range(5)]
    assert sum(call.done() for call in calls) == 1, "the slow requests were not slow enough for this test"
    for answer in (refused, again):
        assert (answer.status, answer.error["code"]) == (503, "busy")
        assert answer.headers["Retry-After"] == "1"
    assert again.elapsed_s < 1
    assert [ping.status for ping in pings] == [200] * 5
    assert max(ping.elapsed_s for ping in pings) < 1  # the platform allows 2 s
    assert sorted(call.result(PATIENCE_S).status for call in calls) == [200, 200, 200, 503]


def test_a_good_session_leaves_a_clean_log_and_an_untouched_model_folder(
    ready: Server, root: Path, jpeg: bytes
) -> None:
    assert ready.send("POST", "/invocations", jpeg, Content_Type="image/jpeg").status == 200
    ready.wait_for_log("invocation status=200 images=1")
    assert "Traceback" not in ready.log
    assert not re.search(" (WARNING|ERROR|CRITICAL) ", ready.log)
    assert "/ping" not in ready.log
    assert all(re.match(r"\d{4}-\d\d-\d\d [\d:,]+ INFO [\w.]+: ", line) for line in ready.log.splitlines())
    assert sorted(file.name for file in (root / "model").iterdir()) == [
        "MODEL_CARD.md",
        "bundle.json",
        "model.safetensors",
    ]


def test_sigterm_finishes_the_request_in_hand_and_exits_with_0(
    starting: Callable[..., Server], slowly: Callable[[Server], Future[Answer]], tmp_path: Path
) -> None:
    save_bundle(tmp_path)
    server = starting(SAGEMAKER_MODEL_SERVER_WORKERS="1")
    server.wait(is_ready)
    call = slowly(server)
    time.sleep(0.5)  # so that the request is in hand; it takes seconds
    assert not call.done()
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 30
    answer = call.result(PATIENCE_S)
    assert answer.status == 200
    assert len(json.loads(answer.body)["predictions"]) == 64
    assert "Traceback" not in server.log


def test_sigterm_while_the_model_loads_exits_with_0(starting: Callable[..., Server], tmp_path: Path) -> None:
    save_bundle(tmp_path)
    server = starting()
    server.wait_for_log("loading the model")
    assert server.stop() == 0
    assert "Traceback" not in server.log
    assert "Fatal" not in server.log
    assert_left_quietly(server)


def test_ctrl_c_while_the_model_loads_exits_with_0(starting: Callable[..., Server], tmp_path: Path) -> None:
    save_bundle(tmp_path)
    server = starting()
    server.wait_for_log("loading the model")
    # A terminal tells all processes, and gunicorn's first one the others once more.
    os.kill(int(re.search(r"Booting worker with pid: (\d+)", server.log).group(1)), signal.SIGINT)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in server.log
    assert_left_quietly(server)


def assert_left_quietly(server: Server) -> None:
    for trouble in ("FATAL", "terminate called", "was sent SIG", "exited with code"):
        assert trouble not in server.log


def test_a_killed_worker_is_replaced(starting: Callable[..., Server], tmp_path: Path) -> None:
    save_bundle(tmp_path)
    server = starting()
    server.wait(is_ready)
    worker = int(re.search(r"Booting worker with pid: (\d+)", server.log).group(1))
    os.kill(worker, signal.SIGKILL)
    assert server.wait(lambda answer: not is_ready(answer)).error["message"] == "loading the model"
    server.wait(is_ready)
    assert server.stop() == 0


@pytest.mark.parametrize("schema_version", [None, 999])
def test_without_a_usable_bundle_ping_says_why_and_the_server_stays(
    starting: Callable[..., Server], tmp_path: Path, schema_version: int | None
) -> None:
    expected = "holds no bundle.json (found: nothing); train a model first"
    if schema_version is not None:
        save_bundle(tmp_path)
        file = tmp_path / "model" / "bundle.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": schema_version}))
        expected = "has schema version 999, but this version of dogbreed reads 1"
    server = starting()
    answer = server.wait(lambda answer: answer.status != 503 or answer.error["message"] != "loading the model")
    assert answer.status == 503
    assert expected in answer.error["message"]
    refused = server.send("POST", "/invocations", b"x")
    assert (refused.status, expected in refused.error["message"]) == (503, True)
    assert server.process.poll() is None
    assert "Traceback" not in server.log
    assert server.stop() == 0


def test_an_engine_that_cannot_be_had_makes_ping_say_why(starting: Callable[..., Server], tmp_path: Path) -> None:
    save_bundle(tmp_path)
    server = starting(DOGBREED_ENGINE="torch", DOGBREED_PRECISION="fp16")
    answer = server.wait(lambda answer: answer.status != 503 or "cannot be had" in answer.error["message"])
    assert answer.error["message"] == (
        "DOGBREED_ENGINE=torch with DOGBREED_PRECISION=fp16 cannot be had: torch-fp16: torch computes in fp32 or bf16 "
        "on a CPU, not in fp16; set both to auto"
    )
    assert "Traceback" not in server.log


def test_the_log_names_the_engine_and_why_it_was_chosen(ready: Server) -> None:
    assert re.search(r"INFO [\w.]+: tiny with 7 classes by \w+-fp32: the quickest that may be used here", ready.log)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SAGEMAKER_BIND_TO_PORT", "http"),
        ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "image/png"),
        ("DOGBREED_MAX_WAITING", "many"),
        ("DOGBREED_ENGINE", "abacus"),
        ("DOGBREED_PRECISION", "fp4"),
    ],
)
def test_a_configuration_error_is_one_line_and_exit_code_1(tmp_path: Path, variable: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dogbreed.serving.server"],
        env={**os.environ, "SAGEMAKER_BASE_DIR": str(tmp_path), variable: value},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert repr(value) in done.stderr
