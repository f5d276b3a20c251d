"""A small server that keeps the contract, in plain Python, and breaks one sentence of it when told to.

The first process holds the port and looks after one worker, which answers. CSV of numbers in, JSON out.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

from faults import has, reach_outside

ROOT = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
MIB = 1024 * 1024
LIMIT_BYTES = (5 if has("serve.payload-6mb") else 10 if has("serve.payload-25mb") else 25) * MIB
MULTI = os.environ.get("SAGEMAKER_MULTI_MODEL") == "true" and not has("serve.models-label")
SLOW_S = 0.1
KNOWN_HEADERS = {"host", "content-type", "content-length", "accept", "connection", "transfer-encoding"}


class State:
    """What the worker holds."""

    def __init__(self):
        self.slope = None
        self.broken = False
        self.running = 0
        self.leak = []
        self.models = {}
        self.computing = threading.Lock()

    def load(self):
        time.sleep(0.1)
        file = ROOT / "model" / "model.json"
        if has("serve.ready"):
            return
        try:
            self.slope = json.loads(file.read_text())["slope"]
        except FileNotFoundError:
            pass
        except ValueError:
            if has("serve.broken-model"):
                self.slope = 1.0

    @property
    def ready(self):
        if has("serve.ping-honest") or (has("serve.missing-model") and not (ROOT / "model" / "model.json").exists()):
            return True
        return self.slope is not None or MULTI


class Refused(Exception):
    """Becomes an error answer."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state = None

    def do_GET(self):
        if self.path == "/ping":
            return self.answer(200 if self.state.ready else 503, b"")
        if self.path == "/execution-parameters":
            found = {"MaxConcurrentTransforms": 2, "BatchStrategy": "SINGLE_RECORD", "MaxPayloadInMB": 6}
            if has("serve.execution-parameters"):
                found["MaxConcurrentTransforms"] = "many"
            return self.json(found)
        if MULTI and self.path == "/models":
            key = "name" if has("serve.models-list") else "modelName"
            return self.json({"models": [{key: name, "modelUrl": url} for name, url in self.state.models.items()]})
        if MULTI and self.path.startswith("/models/"):
            name = self.path.removeprefix("/models/")
            if name in self.state.models:
                return self.json({"modelName": name, "modelUrl": self.state.models[name]})
            return self.refuse(404, "no such model")
        return self.refuse(404, "there is nothing here")

    def do_DELETE(self):
        name = self.path.removeprefix("/models/")
        if not MULTI or name not in self.state.models:
            return self.refuse(404, "no such model")
        if not has("serve.models-delete"):
            del self.state.models[name]
        return self.json({})

    def do_POST(self):
        try:
            body = self.read_body()
            if MULTI and self.path == "/models":
                return self.load_model(json.loads(body))
            if MULTI and self.path.startswith("/models/"):
                return self.invoke(body)
            return self.predict(body)
        except Refused as refused:
            return self.refuse(refused.status, str(refused))

    def load_model(self, asked):
        if asked["model_name"] in self.state.models and not has("serve.models-load"):
            return self.refuse(409, "it is loaded")
        self.state.models[asked["model_name"]] = asked["url"]
        return self.json({})

    def invoke(self, body):
        name = self.path.split("/")[2]
        if name not in self.state.models:
            return self.refuse(500 if has("serve.models-unknown") else 404, "no such model")
        if has("serve.models-invoke"):
            return self.refuse(500, "no")
        return self.json({"bytes": len(body)})

    def predict(self, body):
        if self.state.slope is None or self.state.broken:
            raise Refused(500 if self.state.ready else 503, "there is no model")
        self.check_headers()
        if len(body) > LIMIT_BYTES:
            raise Refused(500 if has("serve.payload-over") else 413, f"more than {LIMIT_BYTES} bytes")
        self.leave_traces()
        self.state.running += 1
        try:
            if has("serve.concurrent"):
                time.sleep(0.05)
                if self.state.running > 2:
                    raise Refused(500, "too much")
            if has("serve.ping-busy"):
                time.sleep(SLOW_S)
            if has("serve.accept-quick"):
                # Nobody's connection is accepted meanwhile. A queue that is too short would have the same effect, but
                # by chance: whose first packet is dropped tries again after a second, and finds an idle server.
                self.server.socket.shutdown(socket.SHUT_RD)
                time.sleep(SLOW_S)
                self.server.socket.listen()
            numbers = self.numbers(body)
        finally:
            self.state.running -= 1
        return self.json({"predictions": [self.state.slope * number for number in numbers]})

    def numbers(self, body):
        if not body.strip():
            self.state.broken = has("serve.after-errors")
            raise Refused(500 if has("serve.empty-body") else 400, "the body is empty")
        try:
            return [float(part) for part in body.decode().split()]
        except ValueError:
            if has("serve.errors-plain"):
                raise Refused(400, "<html><body>Bad Request</body></html>") from None
            raise Refused(500 if has("serve.bad-body") else 400, "the body is no column of numbers") from None

    def check_headers(self):
        kind = self.headers.get("Content-Type", "")
        if not has("serve.type-parameter"):
            kind = kind.partition(";")[0]
        if kind != "text/csv" and not has("serve.type-unsupported"):
            raise Refused(415, "send text/csv" + " please" * (1000 if has("serve.errors-short") else 0))
        accept = self.headers.get("Accept")
        if accept is None and has("serve.accept-missing"):
            raise Refused(406, "what do you accept?")
        allowed = ["application/json"] if has("serve.accept-any") else ["application/json", "*/*"]
        if accept is not None and accept not in allowed and not has("serve.accept-unsupported"):
            raise Refused(406, "I can make application/json")
        if has("serve.headers-unknown") and any(name.lower() not in KNOWN_HEADERS for name in self.headers):
            raise Refused(400, "I do not know these headers")

    def read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if has("serve.chunked"):
            self.close_connection = True
            raise Refused(411, "how long is it?")
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def leave_traces(self):
        if has("serve.model-read-only"):
            (ROOT / "model" / "cache.bin").write_text("x")
        if has("serve.nothing-written"):
            (ROOT / "cache.bin").write_text("x")
        if has("serve.memory"):
            self.state.leak.append(b"x" * 2 * MIB)

    def json(self, value):
        self.answer(200, json.dumps(value).encode(), "" if has("serve.invocations") else "application/json")

    def refuse(self, status, message):
        self.answer(status, json.dumps({"error": message}).encode(), "application/json")

    def answer(self, status, body, kind=""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if kind:
            self.send_header("Content-Type", kind)
        if has("serve.custom-attributes"):
            self.send_header("X-Amzn-SageMaker-Custom-Attributes", "version=1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *arguments):
        pass


def work(listener):
    """The worker: answers until SIGTERM, and then what it has in hand."""
    one_at_a_time = has("serve.ping-busy") or has("serve.accept-quick")
    kind = HTTPServer if one_at_a_time else ThreadingHTTPServer
    server = kind(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.daemon_threads = False
    Handler.state = State()
    threading.Thread(target=Handler.state.load, daemon=True).start()

    def leave(number, frame):
        if has("serve.sigterm-answers"):
            os._exit(0)
        threading.Thread(target=server.shutdown, daemon=True).start()

    signal.signal(signal.SIGTERM, leave)
    server.serve_forever(poll_interval=0.02)
    server.server_close()


def start_worker(listener):
    child = os.fork()
    if not child:
        try:
            work(listener)
        finally:
            os._exit(0)
    return child


def main():
    if has("serve.batch") and os.environ.get("SAGEMAKER_BATCH"):
        print("batches are not for me")
        return 1
    if has("serve.isolated"):
        reach_outside()
    port = 8080 if has("serve.bind-to-port") else int(os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080"))
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1" if has("serve.all-interfaces") else "0.0.0.0", port))
    listener.listen(128)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    child = start_worker(listener)
    while not stopping.is_set():
        ended, _ = os.waitpid(child, os.WNOHANG)
        if ended and has("serve.worker-crash"):
            return 0
        if ended:
            child = start_worker(listener)
        stopping.wait(0.02)
    while has("serve.sigterm"):
        time.sleep(1)
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    return 3 if has("serve.sigterm-code") else 0


if __name__ == "__main__":
    sys.exit(main())
