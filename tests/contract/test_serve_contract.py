"""SageMaker's contract for hosting, row by row: each test names its row. The real server as a process, and HTTP.

What is tested elsewhere: requests in hand at SIGTERM, a full server and a killed worker in `test_serve`, the labels
of a built image in `tests/container`, and the CPUs of a share of a machine in `tests/unit/test_environment.py`.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image
from tests.contract.serving import save_bundle
from tests.server_process import MAX_PAYLOAD_MB, PATIENCE_S, Server, is_ready, start, stop_hard

REPOSITORY = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024


def serve(folder: Path, **variables: str) -> Iterator[Server]:
    save_bundle(folder)
    server = start(folder, **variables)
    try:
        server.wait(is_ready)
        yield server
    finally:
        stop_hard(server)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract")


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    """An endpoint in real time."""
    yield from serve(root, SAGEMAKER_SAFE_PORT_RANGE="21000-21999")


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A batch transform job, with the variables that the platform sets for one."""
    yield from serve(
        tmp_path_factory.mktemp("batch"),
        SAGEMAKER_BATCH="true",
        SAGEMAKER_BATCH_STRATEGY="MULTI_RECORD",
        SAGEMAKER_MAX_CONCURRENT_TRANSFORMS="4",
        SAGEMAKER_MAX_PAYLOAD_IN_MB="6",
    )


def lines_of(*items: object) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


def raw(server: Server, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    connection.sendall(sent)
    return connection


# 2.1 Process, port, files


def test_start_the_word_serve_starts_a_server(tmp_path: Path) -> None:
    """2.1 Start: `docker run IMAGE serve`, through an exec-form entry point that reads the word."""
    dockerfile = (REPOSITORY / "container" / "Dockerfile").read_text()
    assert '\nENTRYPOINT ["python", "-m", "dogbreed"]\n' in dockerfile
    done = subprocess.run(
        [sys.executable, "-m", "dogbreed", "serve"],
        env={**os.environ, "SAGEMAKER_BASE_DIR": str(tmp_path), "SAGEMAKER_BIND_TO_PORT": "none"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1
    assert "SAGEMAKER_BIND_TO_PORT='none'" in done.stderr


def test_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            done = subprocess.run(
                [sys.executable, "-m", "dogbreed", "serve"],
                env={
                    **os.environ,
                    "SAGEMAKER_BASE_DIR": str(tmp_path),
                    "SAGEMAKER_BIND_TO_PORT": str(port),
                    "DOGBREED_HOST": host,
                },
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
            assert done.returncode == 1
            assert done.stderr == (
                f"dogbreed: port {port} is in use; stop the server that has it, or give another port by "
                f"SAGEMAKER_BIND_TO_PORT (make serve: PORT=)\n"
            )
            assert done.stdout == ""


def test_user_the_image_stays_root() -> None:
    """2.1 User: AWS expects root."""
    assert not re.search("^USER", (REPOSITORY / "container" / "Dockerfile").read_text(), re.MULTILINE)


def test_model_folder_is_only_read(server: Server, root: Path, jpeg: bytes) -> None:
    """2.1 Model folder: /opt/ml/model is read-only; 2.1 Artifacts: plain files, no links."""

    def state() -> list[tuple[str, bool, int, str]]:
        return [
            (file.name, file.is_symlink(), file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest())
            for file in sorted((root / "model").iterdir())
        ]

    before = state()
    assert server.send("POST", "/invocations", jpeg).status == 200
    assert state() == before
    assert not any(is_link for _, is_link, _, _ in before)


def test_port_is_the_one_that_is_named_and_there_is_no_other(server: Server) -> None:
    """2.1 Port: SAGEMAKER_BIND_TO_PORT is honoured; a second port would have to lie in SAGEMAKER_SAFE_PORT_RANGE."""
    parent = psutil.Process(server.process.pid)
    listening = {
        connection.laddr.port
        for process in (parent, *parent.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {server.port}
    label = "com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true"
    assert label in (REPOSITORY / "container" / "Dockerfile").read_text()


def test_variant_switches_metrics_are_where_the_platform_scrapes_them(server: Server) -> None:
    """2.1 Variant switches: ContainerMetricsConfig reads Prometheus text from /metrics on the same port."""
    answer = server.send("GET", "/metrics")
    assert answer.status == 200
    assert b"# TYPE dogbreed_requests_total counter" in answer.body


# 2.2 /ping


def test_ping_answers_in_time_and_the_port_accepts_at_once(server: Server) -> None:
    """2.2 Answer: GET, 200, within 2 s; TCP accept within 250 ms. The smallest of some, on a busy machine."""
    accepted, answered = [], []
    for _ in range(5):
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S):
            accepted.append(time.monotonic() - began)
        ping = server.send("GET", "/ping")
        assert ping.status == 200
        answered.append(ping.elapsed_s)
    assert min(accepted) < 0.25
    assert min(answered) < 2


def test_meaning_a_server_without_a_model_is_not_healthy(tmp_path: Path, jpeg: bytes) -> None:
    """2.2 Meaning: 200 means that it can predict now. 2.2 Startup window: the port is open before the model is."""
    (tmp_path / "model").mkdir()
    bare = start(tmp_path)
    try:
        answer = bare.wait(lambda answer: "holds no bundle.json" in answer.body.decode())
        assert answer.status == 503
        assert bare.send("POST", "/invocations", jpeg).status == 503
        # 2.1 Shutdown: SIGTERM, and SIGKILL 30 s later.
        began = time.monotonic()
        assert bare.stop() == 0
        assert time.monotonic() - began < 30
    finally:
        stop_hard(bare)


# 2.3 /invocations


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD"])
def test_method_is_post(server: Server, method: str) -> None:
    """2.3 Method: POST /invocations, and no other."""
    answer = server.send(method, "/invocations")
    assert answer.status == 405
    assert answer.headers["Allow"] == "OPTIONS, POST"
    assert answer.body == b"" if method == "HEAD" else answer.error["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("HEAD", "/ping", 200), ("OPTIONS", "/invocations", 200), ("HEAD", "/nope", 404), ("OPTIONS", "/nope", 404)],
)
def test_head_and_options_have_no_page_of_html(server: Server, method: str, path: str, status: int) -> None:
    """2.3 Method: what proxies and browsers ask beside it."""
    answer = server.send(method, path)
    assert answer.status == status
    assert b"<" not in answer.body


@pytest.mark.parametrize("path", ["/nope", "/ping/", "/invocations/x", "/models", "/%00", "/..%2fping"])
def test_an_unknown_route_is_a_json_error(server: Server, path: str) -> None:
    """2.3 Error mapping: every error is one JSON line."""
    assert server.send("GET", path).error["code"] == "not_found"


def test_payload_of_the_platforms_size_is_taken_and_one_over_the_limit_is_not(server: Server, jpeg: bytes) -> None:
    """2.3 Payload: a setting, 413 above; 2.6 Async: large bodies are the same POST."""
    padded = jpeg + b"\0" * (MAX_PAYLOAD_MB * MIB - len(jpeg))
    assert server.send("POST", "/invocations", padded, Content_Type="image/jpeg").status == 200
    answer = server.send("POST", "/invocations", padded + b"\0", Content_Type="image/jpeg")
    assert (answer.status, answer.error["code"]) == (413, "payload_too_large")


def test_headers_in_that_nobody_knows_are_left_alone(server: Server, jpeg: bytes) -> None:
    """2.3 Headers in: unknown extras are ignored; 2.3 Sessions: none is opened, so none is promised."""
    answer = server.send(
        "POST",
        "/invocations",
        jpeg,
        Content_Type="image/jpeg",
        X_Amzn_SageMaker_Session_Id="NEW_SESSION",
        X_Amzn_SageMaker_Target_Model="../../etc/passwd",
        X_Amzn_SageMaker_Enable_Explanations="true",
        Cookie="a=b",
        Authorization="none",
    )
    assert answer.status == 200
    assert not any("session" in name.lower() for name in answer.headers)


def test_headers_out_are_those_that_the_platform_hands_on(server: Server, jpeg: bytes) -> None:
    """2.3 Headers out: Content-Type; Custom-Attributes and the inference id come back as they were."""
    answer = server.send(
        "POST",
        "/invocations",
        jpeg,
        X_Amzn_SageMaker_Custom_Attributes="top_k=2,trace=7",
        X_Amzn_SageMaker_Inference_Id="seven",
    )
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Amzn-SageMaker-Custom-Attributes"] == "top_k=2,trace=7"
    assert answer.headers["X-Amzn-SageMaker-Inference-Id"] == "seven"


@pytest.mark.parametrize(
    ("headers", "status", "media_type"),
    [
        ({}, 200, "application/json"),
        ({"Accept": "*/*"}, 200, "application/json"),
        ({"Accept": "text/csv"}, 200, "text/csv; charset=utf-8"),
        ({"Accept": "application/jsonlines"}, 200, "application/jsonlines"),
        ({"Accept": "image/png"}, 406, "application/json"),
        ({"Content_Type": "text/plain"}, 415, "application/json"),
        ({"Content_Type": "application/json"}, 400, "application/json"),
    ],
)
def test_accept_and_types(server: Server, jpeg: bytes, headers: dict[str, str], status: int, media_type: str) -> None:
    """2.3 Accept, types: missing or */* is the default; 406, 415 and 400 for what cannot be."""
    answer = server.send("POST", "/invocations", jpeg, **headers)
    assert (answer.status, answer.headers["Content-Type"]) == (status, media_type)


def test_error_mapping_bodies_are_short(server: Server) -> None:
    """2.3 Error mapping: OriginalMessage holds 2,048 characters; a user's mistake is no 5xx, which is tried again."""
    answer = server.send("POST", "/invocations", json.dumps({"x" * 5000: 1}), Content_Type="application/json")
    assert answer.status == 400
    assert len(answer.body) < 2048
    assert len(server.send("GET", "/" + "x" * 4000).body) < 2048


def test_streaming_lines_come_in_chunks_before_the_last_image_is_looked_at(server: Server, jpeg: bytes) -> None:
    """2.3 Streaming: chunked encoding of the same /invocations; here one JSON line for each line of the body."""
    slow = io.BytesIO()
    Image.linear_gradient("L").resize((2500, 2000)).convert("RGB").save(slow, "JPEG", quality=20)
    body = lines_of(*[encoded(jpeg)] * 8, *[encoded(slow.getvalue())] * 20, 7)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    connection.request("POST", "/invocations", body, {"Content-Type": "application/jsonlines"})
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.headers["Transfer-Encoding"] == "chunked"
    began = time.monotonic()
    first = [answer.readline() for _ in range(8)]
    first_s = time.monotonic() - began
    rest = answer.read().splitlines()
    last_s = time.monotonic() - began
    connection.close()
    assert all("label" in json.loads(line) for line in (*first, *rest[:-1]))
    assert "line 28" in json.loads(rest[-1])["error"]["message"]
    assert len(rest) == 21
    assert first_s < last_s / 2


def test_multipart_forms_are_read(server: Server, jpeg: bytes) -> None:
    """2.3 Accept, types: what HTML forms and `curl --form` send."""
    head = b'--xyz\r\nContent-Disposition: form-data; name="f"; filename="a.jpg"\r\n\r\n'
    body = (head + jpeg + b"\r\n") * 2 + b"--xyz--\r\n"
    answer = server.send("POST", "/invocations", body, Content_Type="multipart/form-data; boundary=xyz")
    assert answer.status == 200
    assert len(json.loads(answer.body)["predictions"]) == 2


def test_a_client_that_expects_100_continue_is_told_to(server: Server, jpeg: bytes) -> None:
    """2.3 Method: curl and the AWS SDKs send Expect: 100-continue before large bodies."""
    head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(jpeg)}\r\nExpect: 100-continue\r\n\r\n"
    with raw(server, head.encode()) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(jpeg)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_chunked_bodies_are_read(server: Server, jpeg: bytes) -> None:
    """2.3 Payload: a body without a length (MaxPayloadInMB=0 sends them so)."""
    parts = (jpeg[start : start + 100] for start in range(0, len(jpeg), 100))
    assert server.send("POST", "/invocations", parts, Content_Type="image/jpeg").status == 200


# 2.4 Batch transform


def test_env_and_limits_of_a_batch_transform(batch: Server) -> None:
    """2.4 Env, GET /execution-parameters, Limits: within 100 MB in all, and what the job has set holds."""
    answer = batch.send("GET", "/execution-parameters")
    assert answer.status == 200
    found = json.loads(answer.body)
    assert set(found) == {"MaxConcurrentTransforms", "BatchStrategy", "MaxPayloadInMB"}
    assert found["BatchStrategy"] in ("MULTI_RECORD", "SINGLE_RECORD")
    assert found["MaxPayloadInMB"] == 6
    assert 1 <= found["MaxConcurrentTransforms"] * found["MaxPayloadInMB"] <= 100
    assert batch.send("POST", "/invocations", b"x" * (6 * MIB + 1)).status == 413


def test_images_whole_objects_are_requests(batch: Server, jpeg: bytes) -> None:
    """2.4 Images: one object is one request, with one Content-Type for the whole job, whatever the object is."""
    png = io.BytesIO()
    Image.linear_gradient("L").save(png, "PNG")
    for image in (jpeg, png.getvalue()):
        answer = batch.send("POST", "/invocations", image, Content_Type="image/jpeg", Accept="application/jsonlines")
        assert answer.status == 200
        assert "label" in json.loads(answer.body)


@pytest.mark.parametrize("stray", [b"", b"\x00\x05\x16\x07 .DS_Store", b'{"entries": []}', b"\x1f\x8b model.tar.gz"])
def test_bad_record_and_stray_objects_are_entries_and_not_failures(batch: Server, stray: bytes) -> None:
    """2.4 Bad record, Stray objects: an error entry in a 200, because a failed object has no output."""
    answer = batch.send("POST", "/invocations", stray, Content_Type="image/jpeg", Accept="application/jsonlines")
    assert answer.status == 200
    assert json.loads(answer.body)["error"]["code"] in ("unreadable_image", "bad_request")


def test_a_stray_object_is_a_4xx_in_real_time(server: Server) -> None:
    """2.4 Bad record: 4xx in real time."""
    assert server.send("POST", "/invocations", b"stray", Content_Type="image/jpeg").status == 400


def test_ordering_lines_match_lines(batch: Server, jpeg: bytes) -> None:
    """2.4 Ordering: JoinSource=Input joins output lines with input lines."""
    body = lines_of(encoded(jpeg), "no base64", encoded(b"no image"), {"b64": encoded(jpeg)})
    answer = batch.send("POST", "/invocations", body, Content_Type="application/jsonlines")
    entries = [json.loads(line) for line in answer.body.splitlines()]
    assert ["label" in entry for entry in entries] == [True, False, False, True]
    as_json = batch.send("POST", "/invocations", body, Content_Type="application/jsonlines", Accept="application/json")
    assert json.loads(as_json.body)["predictions"] == entries
