"""Endpoints of the local platform in this process, and a little subject that does what a test tells it to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from local_test.simulator.hosting import service
from local_test.simulator.hosting.events import Events
from local_test.simulator.hosting.rules import Health
from local_test.simulator.hosting.service import Plan, Service
from local_test.simulator.processes import ProcessSubject

PATIENCE_S = 120
# A ping that fails on a busy machine is no failure of the instance; the platform's own 2 s are a test of their own.
HEALTH = Health(start_s=PATIENCE_S, ping_s=30, accept_s=30, every_s=0.3, failures=2)

LITTLE = '''#!/usr/bin/env python3
"""Answers as the request's custom attributes say."""
import json, os, signal, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(os.environ["SAGEMAKER_BASE_DIR"])
MODELS, CAPACITY = {}, int(os.environ.get("CAPACITY", "99"))
if "STUBBORN" not in os.environ:
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
print("little subject", sys.argv, flush=True)

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/ping":
            return self.send(503 if (ROOT / "ill").exists() else 200, b"")
        if self.path == "/execution-parameters" and "PARAMETERS" in os.environ:
            return self.send(200, os.environ["PARAMETERS"].encode())
        name = self.path.removeprefix("/models/")
        self.send(200 if name in MODELS else 404, b"{}")

    def do_DELETE(self):
        self.send(200 if MODELS.pop(self.path.removeprefix("/models/"), None) else 404, b"{}")

    def do_POST(self):
        body = self.body()
        if self.path == "/models":
            given = json.loads(body)
            time.sleep(float(os.environ.get("LOADING_S", "0")))
            if len(MODELS) >= CAPACITY:
                return self.send(507, b"full")
            MODELS[given["model_name"]] = (Path(given["url"]) / "weights").read_text()
            return self.send(200, b"{}")
        if self.path.startswith("/models/"):
            name = self.path.removeprefix("/models/").removesuffix("/invoke")
            return self.send(200, MODELS[name].encode()) if name in MODELS else self.send(404, b"{}")
        do, _, value = self.headers.get("X-Amzn-SageMaker-Custom-Attributes", "").partition("=")
        if do == "sleep":
            time.sleep(float(value))
        if do == "exit":
            os._exit(int(value))
        if do == "status":
            return self.send(int(value), b"refused: " + b"x" * 4000)
        if do == "ill":
            (ROOT / "ill").touch()
        if do == "write":
            (ROOT / value).write_text("x")
        if do == "parts":
            return self.parts(int(value))
        if do == "session":
            return self.send(200, b"ok", {"X-Amzn-SageMaker-New-Session-Id": "s1; Expires=2030-01-01T00:00:00Z"})
        if "FAIL_FIRST" in os.environ:  # once for each body
            mark = ROOT / body.decode()
            if not mark.exists():
                mark.touch()
                return self.send(int(os.environ["FAIL_FIRST"]), b"not yet")
        if os.environ.get("KILLED_BY", "-").encode() == body:
            os._exit(9)
        if os.environ.get("SLOW", "-").encode() == body:
            time.sleep(100)
        if os.environ.get("REFUSED", "-").encode() == body:
            return self.send(400, b"bad")
        if "ECHO" in os.environ:
            return self.send(200, body)
        told = {"path": self.path, "headers": dict(self.headers), "bytes": len(body), "pid": os.getpid()}
        told["environment"] = {name: value for name, value in os.environ.items() if name.startswith("SAGEMAKER_")}
        self.send(200, json.dumps(told).encode(), {"X-Amzn-SageMaker-Custom-Attributes": "seen=1", "X-Secret": "1"})

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def parts(self, count):
        """That many, and then a stop; a negative number breaks off after them."""
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(abs(count)):
            self.wfile.write(b"6\\r\\npart %d\\r\\n" % number)
            self.wfile.flush()
            time.sleep(0.2)
        if count >= 0:
            self.wfile.write(b"0\\r\\n\\r\\n")
        self.close_connection = True

    def send(self, status, body, headers={}):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler).serve_forever()
'''


def little(folder: Path) -> ProcessSubject:
    """The little subject, its programs in ``folder/programs``."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "serve").write_text(LITTLE)
    return ProcessSubject(programs)


def model(folder: Path, text: str = "weights") -> Path:
    """A model that the little subject is content with."""
    made = folder / "a-model"
    made.mkdir(exist_ok=True)
    (made / "weights").write_text(text)
    return made


@dataclass
class Endpoint:
    """A running endpoint with a client of boto3's."""

    service: Service
    folder: Path
    client: Any

    def invoke(self, body: bytes = b"x", attributes: str | None = None, **more: str) -> dict[str, Any]:
        if attributes is not None:
            more["CustomAttributes"] = attributes
        return self.client.invoke_endpoint(EndpointName="dogs", Body=body, **more)

    @property
    def events(self) -> str:
        return (self.folder / service.EVENTS).read_text()


@contextmanager
def serving(plan: Plan, *, attempts: int = 1) -> Iterator[Endpoint]:
    """Runs an endpoint; its client tries as often as said."""
    service.prepare(plan)
    events = Events(plan.folder / service.EVENTS)
    served = Service(plan, events)
    runtime = client(served.address, attempts)
    try:
        assert served.open(threading.Event())
        yield Endpoint(served, plan.folder, runtime)
    finally:
        runtime.close()
        served.close()


def client(address: str, attempts: int = 1) -> Any:
    """boto3's own, with nothing but the address changed."""
    return boto3.client(
        "sagemaker-runtime",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id="nobody",
        aws_secret_access_key="nothing",
        config=Config(retries={"total_max_attempts": attempts, "mode": "standard"}, read_timeout=PATIENCE_S),
    )
