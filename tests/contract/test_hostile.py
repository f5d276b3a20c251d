"""Requests that mean harm: no 5xx, no traceback, and memory stays where it was. The real server, over sockets.

A few hundred made-up requests run with the suite; DOGBREED_FUZZ=10000 runs as many as it says.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin
from tests.contract.serving import save_bundle
from tests.server_process import PATIENCE_S, Server, is_ready, start, stop_hard

EXAMPLES = int(os.environ.get("DOGBREED_FUZZ", "300"))
MAX_PIXELS = 4_000_000
MIB = 1024 * 1024
MAX_GROWTH_BYTES = 48 * MIB
"""Of a worker: some arenas of the allocator and the largest image that is allowed. A leak of 5 kB a request is more."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    save_bundle(folder)
    # One allocator arena instead of one per thread, so that memory tells of leaks and not of threads.
    started = start(folder, DOGBREED_MAX_PIXELS=str(MAX_PIXELS), DOGBREED_MAX_WAITING="16", MALLOC_ARENA_MAX="1")
    try:
        started.wait(is_ready)
        yield started
        assert "Traceback" not in started.log
        assert "Booting worker" not in started.log.partition("ready after")[2], "a worker has died"
    finally:
        stop_hard(started)


def memory_bytes(server: Server) -> int:
    return sum(child.memory_info().rss for child in psutil.Process(server.process.pid).children(recursive=True))


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes, pixels: bytes = b"") -> bytes:
    """An RGB PNG whose header says what it likes."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def resized_header(image: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame header says that it is larger than it is."""
    place = re.search(rb"\xff[\xc0\xc2]..\x08", image, re.DOTALL).end()
    return image[:place] + struct.pack(">HH", height, width) + image[place + 4 :]


def repeated_scans(image: bytes, times: int) -> bytes:
    """A progressive JPEG whose last scan comes so many times more: less than 100 bytes each, whatever its size."""
    return image[:-2] + image[image.rindex(b"\xff\xda") : -2] * times + image[-2:]


PHOTO = Image.linear_gradient("L").resize((60, 50)).convert("RGB")
JPEG, PNG, GIF = encode(PHOTO, "JPEG"), encode(PHOTO, "PNG"), encode(PHOTO, "GIF")
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ROTATED = Image.Exif()
ROTATED[0x0112] = 6
FRAMES = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
TEXT = PngImagePlugin.PngInfo()
TEXT.add_text("Comment", "x" * 1000, zip=True)

REFUSED = {
    "a PNG of 3.6 billion pixels": png(60_000, 60_000),
    "a PNG of 2 billion columns": png(2**31 - 1, 1),
    "a PNG that is one pixel too large and compresses well": png(2000, 2001, pixels=b"\0" * (6001 * 2001)),
    "a PNG without columns": png(0, 5),
    "a PNG that inflates to more than it says, cut": png(50, 50, pixels=b"\0" * 100),
    "a comment that inflates to 200 MB": png(5, 5, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 200 * MIB))),
    "a JPEG of 4.2 billion pixels": resized_header(JPEG, 65_500, 65_500),
    "a JPEG of 1,200 scans": repeated_scans(encode(Image.new("RGB", (2000, 2000)), "JPEG", progressive=True), 1200),
    "a turned JPEG of 1,200 scans": repeated_scans(
        encode(Image.new("RGB", (2000, 2000)), "JPEG", progressive=True, exif=ROTATED), 1200
    ),
    "a GIF of 4.2 billion pixels": GIF[:6] + struct.pack("<HH", 65_535, 65_535) + GIF[10:],
    "a WebP of 268 million pixels": b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\x0f\0\0\0\0\0\0\0\0",
    "a BMP of 2 billion columns": b"BM"
    + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 2**31 - 1, 1, 1, 24, 0, 0, 0, 0, 0, 0),
    "a TIFF with a loop of directories": b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0",
    "a line of pixels that resizing would make 3.9 GB of": encode(Image.new("L", (20_000, 1)), "PNG"),
    "half a JPEG's header": JPEG[:20],
    "half a PNG": PNG[: len(PNG) // 2],
    "half a GIF": GIF[: len(GIF) // 2],
    "an SVG with an outer entity": b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "a pickle": b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.",
    "a zip archive": b"PK\x03\x04" + b"\0" * 100,
    "a path": b"/etc/passwd",
    "an address": b"http://169.254.169.254/latest/meta-data/",
}

ANSWERED = {
    "a JPEG with a script behind it": JPEG + b"<script>alert(1)</script>",
    "a GIF with a zip archive behind it": GIF + b"PK\x03\x04" + b"\0" * 100,
    "an animation": encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "an animated WebP": encode(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
    "16 bits": encode(Image.fromarray(np.linspace(0, 65535, 900, dtype=np.uint16).reshape(30, 30)), "PNG"),
    "CMYK": encode(PHOTO.convert("CMYK"), "JPEG"),
    "an ICC profile": encode(PHOTO, "JPEG", icc_profile=PROFILE),
    "an ICC profile that is none": encode(PHOTO, "JPEG", icc_profile=b"\xff" * 60_000),
    "EXIF orientation": encode(PHOTO, "JPEG", exif=ROTATED),
    "EXIF that is none": encode(PHOTO, "JPEG", exif=b"Exif\0\0" + b"\xff" * 500),
    "a palette with transparency": encode(PHOTO.convert("P"), "PNG", transparency=3),
    "a comment": encode(PHOTO, "PNG", pnginfo=TEXT),
    "one pixel": encode(Image.new("1", (1, 1)), "PNG"),
    "as many pixels as allowed": encode(Image.new("RGB", (2000, 2000)), "PNG"),
    "many directories": encode(PHOTO, "TIFF", save_all=True, append_images=[PHOTO] * 50),
}


@pytest.mark.parametrize("image", [pytest.param(image, id=name) for name, image in REFUSED.items()])
def test_what_is_no_image_or_too_large_a_one_is_a_400(server: Server, image: bytes) -> None:
    for content_type in ("image/jpeg", "application/octet-stream"):
        answer = server.send("POST", "/invocations", image, Content_Type=content_type)
        assert (answer.status, answer.error["code"]) == (400, "unreadable_image")
        assert "root:" not in answer.error["message"]


@pytest.mark.parametrize("image", [pytest.param(image, id=name) for name, image in ANSWERED.items()])
def test_odd_images_are_answered_whatever_their_content_type_says(server: Server, image: bytes) -> None:
    answer = server.send("POST", "/invocations", image, Content_Type="image/webp")
    assert answer.status == 200, answer.body


def test_bombs_leave_no_memory_behind(server: Server) -> None:
    bombs = [image for name, image in REFUSED.items() if "pixels" in name or "MB" in name or "large" in name]
    largest = encode(Image.new("RGB", (2000, 2000)), "PNG")
    for _ in range(3):
        server.send("POST", "/invocations", largest)
    before = memory_bytes(server)
    for image in [*bombs, largest] * 5:
        server.send("POST", "/invocations", image)
    assert memory_bytes(server) - before < MAX_GROWTH_BYTES


def test_clients_that_send_a_byte_a_second_take_no_slot(server: Server) -> None:
    """The server computes one request at a time here; each of the slow ones alone would take it for hours."""
    slow = []
    try:
        for _ in range(12):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
            connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
            slow.append(connection)
        for _ in range(5):
            for connection in slow:
                connection.sendall(b"\xff")
            assert server.send("POST", "/invocations", JPEG).status == 200
            assert server.send("GET", "/ping").status == 200
            metrics = server.send("GET", "/metrics").body.decode()
            assert "dogbreed_running_requests 0.0" in metrics
            assert "dogbreed_waiting_requests 0.0" in metrics
            time.sleep(0.2)
    finally:
        for connection in slow:
            connection.close()


def test_clients_that_send_a_byte_a_second_are_ended_and_leave_threads_for_ping(tmp_path: Path) -> None:
    """More of them than the server has threads; each has two seconds for its body."""
    save_bundle(tmp_path)
    besieged = start(tmp_path, SAGEMAKER_MODEL_SERVER_TIMEOUT="2", DOGBREED_MAX_WAITING="1")
    slow = []
    try:
        besieged.wait(is_ready)
        for _ in range(50):
            connection = socket.create_connection(("127.0.0.1", besieged.port), timeout=PATIENCE_S)
            connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nx")
            slow.append(connection)
        assert besieged.send("GET", "/ping").status == 200
        answers = [connection.recv(100).split(b" ", 2)[1] for connection in slow]
        assert set(answers) == {b"408", b"503"}
        assert besieged.send("POST", "/invocations", JPEG).status == 200
        assert "Traceback" not in besieged.log
    finally:
        for connection in slow:
            connection.close()
        stop_hard(besieged)


@pytest.mark.parametrize(
    "begun", [b"", b"POST /invocations HTTP/1.1\r\nHost: "], ids=["say nothing", "send half a head"]
)
def test_clients_that_are_slow_with_their_headers_hold_no_thread(tmp_path: Path, begun: bytes) -> None:
    """Many more than the server has threads, each of which gunicorn alone would give to one of them."""
    save_bundle(tmp_path)
    besieged = start(tmp_path, DOGBREED_MAX_WAITING="1")
    slow = []
    try:
        besieged.wait(is_ready)
        for _ in range(150):
            slow.append(socket.create_connection(("127.0.0.1", besieged.port), timeout=PATIENCE_S))
            slow[-1].sendall(begun)
        for _ in range(3):
            for connection in slow:
                connection.sendall(b"x" if begun else b"")
            ping = besieged.send("GET", "/ping")
            assert (ping.status, ping.elapsed_s < 10) == (200, True)
            assert besieged.send("POST", "/invocations", JPEG).status == 200
        # The slow one is answered when it is done.
        slow[0].sendall((b"" if begun else b"GET /ping HTTP/1.1\r\nHost: ") + b"x\r\nContent-Length: 0\r\n\r\n")
        assert slow[0].recv(100).split(b" ", 2)[1] == (b"400" if begun else b"200")
        assert "Traceback" not in besieged.log
    finally:
        for connection in slow:
            connection.close()
        stop_hard(besieged)


def test_a_head_of_many_pieces_is_one_request(server: Server) -> None:
    request = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        for _ in range(2):  # the second on the connection that was kept alive
            for start_of in range(0, len(request), 7):
                connection.sendall(request[start_of : start_of + 7])
                time.sleep(0.01)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        connection.sendall(request + request[:20])  # one and a half at once
        time.sleep(0.1)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        connection.sendall(request[20:])
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_head_without_end_is_refused(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\n")
        with contextlib.suppress(OSError):
            for number in range(20):
                connection.sendall(b"X-%d: " % number + b"x" * 8000 + b"\r\n")
                time.sleep(0.01)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100).startswith(b"HTTP/1.1 431 ")
    assert server.send("GET", "/ping").status == 200


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (b"cos\nsystem\n(S'touch pwned'\ntR.", "model.safetensors is not a safetensors file"),
        (None, "head.hidden_units=1000000000 is not a whole number from 0 to 8192"),
    ],
    ids=["a pickle", "a head of 10^9 units"],
)
def test_a_crafted_bundle_is_refused_with_the_reason_in_ping_and_in_the_log(
    tmp_path: Path, weights: bytes | None, reason: str
) -> None:
    save_bundle(tmp_path)
    file = tmp_path / "model" / "bundle.json"
    document = json.loads(file.read_text())
    if weights is None:
        document["head"]["hidden_units"] = 10**9
    else:
        (tmp_path / "model" / "model.safetensors").write_bytes(weights)
        document["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    file.write_text(json.dumps(document))
    bad = start(tmp_path)
    try:
        answer = bad.wait(lambda answer: answer.status == 200 or "loading" not in answer.error["message"])
        assert answer.status == 503
        assert reason in answer.error["message"]
        assert re.search(f"ERROR .*{re.escape(reason)}", bad.log)
        assert "Traceback" not in bad.log
        assert bad.stop() == 0
    finally:
        stop_hard(bad)


# Made-up requests


def spoilt(data: bytes) -> st.SearchStrategy[bytes]:
    """A good image with some bytes overwritten, cut or repeated."""

    def spoil(places: list[tuple[int, bytes]], end: int, times: int) -> bytes:
        content = bytearray(data)
        for place, new in places:
            content[place : place + len(new)] = new
        return bytes(content[:end]) * times

    places = st.lists(st.tuples(st.integers(0, len(data) - 1), st.binary(min_size=1, max_size=4)), max_size=4)
    return st.builds(spoil, places, st.just(len(data)) | st.integers(1, len(data)), st.sampled_from([1, 1, 1, 2]))


IMAGES = st.one_of(
    st.sampled_from([*REFUSED.values(), *ANSWERED.values()]).filter(lambda image: len(image) < 2000),
    *(spoilt(image) for image in (JPEG, PNG, GIF, encode(PHOTO, "WEBP"), encode(PHOTO, "TIFF"), encode(PHOTO, "BMP"))),
    st.binary(max_size=200),
)
ENCODED = IMAGES.map(lambda image: base64.b64encode(image).decode())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | ENCODED,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["images", "instances", "b64", "x"]) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())
FORM_PART = st.builds(
    lambda head, content: b"--xyz\r\n" + head + b"\r\n\r\n" + content + b"\r\n",
    st.sampled_from([b'Content-Disposition: form-data; name="f"; filename="../../x"', b"Content-Disposition: x", b""])
    | st.binary(max_size=20),
    IMAGES,
)
BODIES = st.one_of(
    st.tuples(st.just("application/json"), JSON),
    st.tuples(st.just("application/jsonlines"), st.lists(JSON, max_size=4).map(b"\n".join)),
    st.tuples(
        st.just("multipart/form-data; boundary=xyz"),
        st.lists(FORM_PART, max_size=3).map(b"".join).flatmap(lambda form: st.sampled_from([form, form + b"--xyz--"])),
    ),
    st.tuples(st.sampled_from(["image/jpeg", "image/png", ""]), IMAGES),
    st.tuples(st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30), IMAGES),
)
# Of a header: all that may stand in one, and what may not.
TOKEN = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=15)
VALUE = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=40)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "Accept",
                "X-Amzn-SageMaker-Custom-Attributes",
                "X-Amzn-SageMaker-Inference-Id",
                "X-Request-Id",
                "X-Forwarded-For",
                "X-Forwarded-Proto",
                "Expect",
                "Content-Encoding",
                "Cookie",
                "Range",
                "Upgrade",
                "Host",
                "SCRIPT_NAME",
            ]
        )
        | TOKEN,
        st.sampled_from(["top_k=1", "top_k=99999999999", "return=log_probabilities", "*/*", "text/csv;q=0.1", "gzip"])
        | VALUE,
    ),
    max_size=5,
)
METHODS = st.sampled_from(["POST"] * 6 + ["GET", "HEAD", "OPTIONS", "PUT", "TRACE", "CONNECT", "BREW", "post"])
PATHS = st.sampled_from(["/invocations"] * 6 + ["/ping", "/metrics", "/execution-parameters", "/", "*", "/models"]) | (
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30).map("/".__add__)
)
LENGTHS = st.sampled_from(["right"] * 8 + ["chunked", "none", "short", "-1", "1e9", "99999999999999999999", "0x10"])


def request(method: str, path: str, typed: tuple[str, bytes], headers: list[tuple[str, str]], length: str) -> bytes:
    content_type, body = typed
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    if length == "chunked":
        lines.append("Transfer-Encoding: chunked")
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    elif length != "none":
        lines.append(f"Content-Length: {({'right': len(body), 'short': len(body) // 2}).get(length, length)}")
    return "\r\n".join([*lines, "Host: x", "Connection: close"]).encode("latin-1") + b"\r\n\r\n" + body


def statuses(server: Server, sent: bytes) -> list[int]:
    """Of all the answers to what is sent on one connection, whose sending side is then closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        received = b""
        # A server may close a connection that it has refused, with bytes still on their way.
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65_536):
                received += part
    return [int(status) for status in re.findall(rb"(?:^|\n)HTTP/1\.1 (\d{3}) ", received)]


# RFC 9112 section 6.1 asks for 501 where a transfer coding is not known; gunicorn does so. It is the client's mistake.
ALLOWED_5XX = {501, 505}


@pytest.fixture(scope="module")
def grown(server: Server) -> Iterator[None]:
    """Memory after the made-up requests is what it was after the first of them."""
    for image in [*REFUSED.values(), *ANSWERED.values()]:
        server.send("POST", "/invocations", image)
    for _ in range(50):
        server.send("POST", "/invocations", JPEG)
    before = memory_bytes(server)
    yield
    grown = memory_bytes(server) - before
    print(f"memory: {before / MIB:.0f} MiB before, {grown / MIB:+.1f} MiB after {EXAMPLES} made-up requests")
    assert grown < MAX_GROWTH_BYTES
    assert server.ping().status == 200


@pytest.mark.usefixtures("grown")
@pytest.mark.timeout(3600)
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(method=METHODS, path=PATHS, typed=BODIES, headers=HEADERS, length=LENGTHS)
def test_made_up_requests_are_answered_by_something_else_than_5xx(
    server: Server,
    method: str,
    path: str,
    typed: tuple[str, bytes],
    headers: list[tuple[str, str]],
    length: str,
) -> None:
    found = statuses(server, request(method, path, typed, headers, length))
    assert all(status < 500 or status in ALLOWED_5XX for status in found)
    if length == "right" and not headers and path == "/invocations":
        assert len(found) == 1


@pytest.mark.usefixtures("grown")
@pytest.mark.timeout(3600)
@settings(max_examples=max(50, EXAMPLES // 10), suppress_health_check=list(HealthCheck))
@given(
    sent=st.binary(max_size=300)
    | st.lists(
        st.sampled_from(
            [
                b"POST /invocations HTTP/1.1\r\n",
                b"GET / HTTP/1.0\r\n",
                b"PRI * HTTP/2.0\r\n",
                b"Host: x\r\n",
                b"\r\n",
                b"\n",
                b"Content-Length: 5\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Transfer-Encoding: gzip\r\n",
                b"5\r\nhello\r\n",
                b"0\r\n\r\n",
                b"hello",
                b"\0",
                b": \r\n",
                b" x\r\n",
                b"X" * 9000,
            ]
        ),
        max_size=12,
    ).map(b"".join)
)
def test_what_is_hardly_http_is_no_5xx_either(server: Server, sent: bytes) -> None:
    assert all(status < 500 or status in ALLOWED_5XX for status in statuses(server, sent))
