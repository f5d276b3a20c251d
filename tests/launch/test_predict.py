"""`launch.py predict`: against a fake of the runtime's HTTP interface, and against the project's own server."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.contract.serving import save_bundle
from tests.launch.conftest import Launch
from tests.launch.scripted import problems
from tests.server_process import is_ready, start, stop_hard

from scripts.launcher.commands import predict
from scripts.launcher.plan import Call


def prediction(label: str = "Beagle", top_k: int = 3) -> dict[str, Any]:
    names = [label, *(f"Other {index}" for index in range(1, top_k))]
    best = [{"label": name, "index": index, "probability": 0.75 / (index + 1)} for index, name in enumerate(names)]
    return {**best[0], "top_k": best}


def refusal(status: int, code: str, message: str) -> tuple[int, dict[str, Any]]:
    """How the platform wraps what a container answered."""
    text = json.dumps({"error": {"code": code, "message": message}})
    return 424, {"Message": "Received client error", "OriginalStatusCode": status, "OriginalMessage": text}


@dataclass
class Runtime:
    """A server that speaks InvokeEndpoint. The first word of a body says what becomes of it.

    Attributes:
        asked: path, headers in lower case and body of every request.
        busy: how many requests are still answered with the container's 503.
    """

    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    busy: int = 0
    url: str = ""

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        self.asked.append((path, headers, body))
        if path != "/endpoints/dogs/invocations":
            return 400, {"Code": "ValidationError", "Message": "Endpoint cats of account 1 not found."}
        if self.busy:
            self.busy -= 1
            return refusal(503, "busy", "as many requests are waiting as are held")
        if body.startswith(b"broken"):
            return refusal(400, "unreadable_image", "the bytes are no image")
        if body.startswith(b"foreign"):
            return 200, {"scores": [1, 2]}
        return 200, {"predictions": [prediction()] * (2 if body.startswith(b"two") else 1)}


@pytest.fixture
def runtime(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    found = Runtime()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, answer = found.answer(self.path, headers, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            if status != 200:
                self.send_header("x-amzn-ErrorType", "ModelError" if status == 424 else str(answer["Code"]))
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Stays silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", found.url)
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good images, one broken, and what is no image."""
    inner = tmp_path / "photos" / "inner"
    inner.mkdir(parents=True)
    for name, content in (("a.jpg", "good"), ("b.PNG", "broken"), ("inner/c.tiff", "good"), ("notes.txt", "-")):
        (tmp_path / "photos" / name).write_text(content)
    return tmp_path / "photos"


def test_an_image_is_answered_with_a_table(launch: Launch, runtime: Runtime, folder: Path) -> None:
    ended = launch("predict", "dogs", str(folder / "a.jpg"))
    assert (ended.code, ended.err) == (0, "")
    header, row = ended.out.splitlines()
    assert header.split() == ["IMAGE", "LABEL", "PROBABILITY", "THEN"]
    assert row.split("  ") == [str(folder / "a.jpg"), *row.split("  ")[1:]]
    assert "Beagle  75.0%        Other 1 37.5%, Other 2 25.0%" in row
    ((_, headers, body),) = runtime.asked
    assert body == b"good"
    assert headers["content-type"] == "image/jpeg"
    assert headers["accept"] == "application/json"
    assert headers["x-amzn-sagemaker-custom-attributes"] == "top_k=3"


@pytest.mark.parametrize(
    "argv",
    [
        ("dogs", "--json", "FILE"),
        ("--json", "dogs", "FILE"),
        ("dogs", "FILE", "--json"),
        ("dogs", "--top-k", "1", "FILE"),
    ],
    ids=["between", "before", "behind", "with a value"],
)
def test_options_may_stand_anywhere(launch: Launch, runtime: Runtime, folder: Path, argv: tuple[str, ...]) -> None:
    file = next(iter(sorted(folder.glob("*.jpg"))))
    done = launch("predict", *(str(file) if word == "FILE" else word for word in argv))
    assert (done.code, len(runtime.asked)) == (0, 1)


def test_an_unknown_option_is_named(launch: Launch, folder: Path) -> None:
    done = launch("predict", "dogs", str(folder), "--jsno")
    assert done.code == 2
    assert "unrecognized arguments: --jsno" in done.err


def test_a_folder_is_answered_in_order_and_errors_do_not_end_it(launch: Launch, runtime: Runtime, folder: Path) -> None:
    ended = launch("predict", "dogs", str(folder), "--json", "--top-k", "1")
    assert ended.code == 1
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["a.jpg", "b.PNG", "c.tiff"]
    assert lines[0]["predictions"][0]["label"] == "Beagle"
    assert lines[1]["error"] == {"code": "unreadable_image", "message": "the bytes are no image", "status": 400}
    assert ended.err == "1 of 3 images were not answered\n"
    assert {headers["content-type"] for _, headers, _ in runtime.asked} == {
        "image/jpeg",
        "image/png",
        "application/x-image",
    }


@pytest.mark.timeout(60)
def test_dead_links_and_pipes_of_a_folder_are_unreadable_files(launch: Launch, runtime: Runtime, folder: Path) -> None:
    (folder / "dead.jpg").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.jpg")
    ended = launch("predict", "dogs", str(folder), "--json")
    found = {Path(line["image"]).name: line.get("error", {}) for line in map(json.loads, ended.out.splitlines())}
    assert [found[name]["code"] for name in ("dead.jpg", "pipe.jpg")] == ["unreadable_file"] * 2
    assert ended.err == "3 of 5 images were not answered\n"


def test_the_table_shows_the_containers_own_message(launch: Launch, runtime: Runtime, folder: Path) -> None:
    ended = launch("predict", "dogs", str(folder))
    assert ended.code == 1
    assert "unreadable_image (400): the bytes are no image" in ended.out.splitlines()[2]


def test_several_predictions_of_one_request_are_numbered(launch: Launch, runtime: Runtime, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text("two")
    ended = launch("predict", "dogs", str(request))
    assert [row.split()[0] for row in ended.out.splitlines()[1:]] == [f"{request}[0]", f"{request}[1]"]
    assert runtime.asked[0][1]["content-type"] == "application/json"


def test_a_busy_container_is_asked_again_later(launch: Launch, runtime: Runtime, folder: Path) -> None:
    runtime.busy = 3
    assert launch("predict", "dogs", str(folder / "a.jpg")).code == 0
    assert launch.slept == [1, 2, 4]
    runtime.busy = 100
    ended = launch("predict", "dogs", str(folder / "a.jpg"))
    assert (ended.code, "busy (503)" in ended.out) == (1, True)
    assert len(launch.slept) == 3 + 5


def test_an_answer_of_another_container_is_an_error_of_that_image(
    launch: Launch, runtime: Runtime, tmp_path: Path
) -> None:
    (tmp_path / "x.jpg").write_text("foreign")
    ended = launch("predict", "dogs", str(tmp_path / "x.jpg"))
    assert (ended.code, "no prediction of this project's container" in ended.out) == (1, True)


def test_an_endpoint_that_does_not_exist_ends_the_run_at_once(launch: Launch, runtime: Runtime, folder: Path) -> None:
    for index in range(50):
        (folder / f"more-{index}.jpg").write_text("good")
    ended = launch("predict", "cats", str(folder), "--parallel", "2")
    assert (ended.code, ended.out) == (1, "")
    assert "Endpoint cats of account 1 not found" in ended.err
    assert len(runtime.asked) < 10


def test_an_image_over_the_platforms_limit_is_not_sent(launch: Launch, runtime: Runtime, folder: Path) -> None:
    with (folder / "a.jpg").open("wb") as file:
        file.truncate(25 * 1024 * 1024 + 1)
    ended = launch("predict", "dogs", str(folder / "a.jpg"))
    assert (ended.code, "payload_too_large: over 25 MB" in ended.out) == (1, True)
    assert runtime.asked == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "give the endpoint's NAME"),
        (("dogs",), "no image"),
        (("dogs", "nowhere.jpg"), "neither a file nor a folder"),
        (("dogs", "--top-k", "0", "x"), "not a whole number from 1"),
        (("--url", "127.0.0.1:8080", __file__), "is no address"),
    ],
)
def test_what_cannot_be_asked_is_refused(launch: Launch, argv: tuple[str, ...], message: str) -> None:
    ended = launch("predict", *argv)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


def test_a_folder_without_images_is_refused(launch: Launch, tmp_path: Path) -> None:
    ended = launch("predict", "dogs", str(tmp_path))
    assert (ended.code, "holds no image" in ended.err) == (2, True)


def test_a_dry_run_shows_a_request_per_image(launch: Launch, folder: Path) -> None:
    ended = launch("predict", "dogs", str(folder), "-", "--dry-run")
    calls = [Call(**call) for call in json.loads(ended.out)]
    assert [problem for call in calls for problem in problems(call)] == []
    assert [call.parameters["Body"]["content of"] for call in calls][-1] == "/dev/stdin"
    assert calls[-1].parameters["ContentType"] == "application/octet-stream"
    assert len(calls) == 4


def test_no_server_is_one_sentence(launch: Launch, folder: Path) -> None:
    launch.environ.clear()
    ended = launch("predict", "--url", "http://127.0.0.1:9", str(folder))
    assert (ended.code, ended.out) == (1, "")
    assert "no answer from http://127.0.0.1:9: is the server running?" in ended.err


def test_what_is_read_from_standard_input_is_one_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "stdin").write_bytes(b"good")
    monkeypatch.setattr(predict, "_STDIN", tmp_path / "stdin")
    arguments = predict_arguments("--url", "http://127.0.0.1:9", "-")
    (call,) = predict.plan(arguments, settings=None)  # type: ignore[arg-type]  # it needs none
    assert call.parameters["Body"].read_bytes() == b"good"


def predict_arguments(*argv: str) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    return parser.parse_args(argv)


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The project's server as a process, on a tiny bundle."""
    root = tmp_path_factory.mktemp("predict")
    save_bundle(root)
    server = start(root)
    try:
        server.wait(is_ready)
        yield f"http://127.0.0.1:{server.port}"
    finally:
        stop_hard(server)


def test_the_projects_own_server_answers(launch: Launch, server_url: str, jpeg: bytes, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(6):
        (photos / f"{index}.jpg").write_bytes(jpeg)
    (photos / "6.jpg").write_bytes(b"no image")
    # No AWS at all: neither a region nor credentials are asked for.
    launch.environ.clear()
    ended = launch("predict", "--url", f"{server_url}/", str(photos), "--json", "--top-k", "2", "--parallel", "2")
    assert ended.code == 1
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert len({json.dumps(line["predictions"]) for line in lines[:6]}) == 1
    (found,) = lines[0]["predictions"]
    assert len(found["top_k"]) == 2
    assert found["label"].startswith("Breed ")
    assert lines[6]["error"]["code"] == "unreadable_image"
    assert lines[6]["error"]["status"] == 400


def test_the_same_by_invoke_endpoint(
    launch: Launch, runtime: Runtime, server_url: str, jpeg: bytes, tmp_path: Path, forwarding: Callable[[str], None]
) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    forwarding(server_url)
    through_aws = launch("predict", "dogs", str(tmp_path / "photo.jpg"))
    directly = launch("predict", "--url", server_url, str(tmp_path / "photo.jpg"))
    assert (through_aws.code, through_aws.out) == (0, directly.out)


@pytest.fixture
def forwarding(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the fake runtime pass requests on to a server, as the platform does."""
    import http.client
    from urllib.parse import urlsplit

    def begin(url: str) -> None:
        def answer(path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
            passed = ("content-type", "accept", "x-amzn-sagemaker-custom-attributes")
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
            connection.request("POST", "/invocations", body, {name: headers[name] for name in passed})
            response = connection.getresponse()
            content = json.load(io.BytesIO(response.read()))
            connection.close()
            return response.status, content

        monkeypatch.setattr(runtime, "answer", answer)

    return begin
