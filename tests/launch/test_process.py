"""The script as a process of its own, with a real Ctrl-C, against a server that answers as SageMaker and S3 would."""

import http.server
import json
import signal
import subprocess
import sys
import threading
import time

import pytest
from tests.launch.conftest import REPOSITORY

SCRIPT = [sys.executable, str(REPOSITORY / "scripts" / "launch.py")]
PATIENCE_S = 60
ANSWERS = {
    "CreateTrainingJob": {"TrainingJobArn": "arn"},
    "DescribeTrainingJob": {
        "TrainingJobName": "dogs-1",
        "TrainingJobStatus": "InProgress",
        "SecondaryStatus": "Training",
    },
    "DescribeLogStreams": {"logStreams": []},
}


class Service(http.server.BaseHTTPRequestHandler):
    """A job that never ends, and an S3 whose second object never arrives."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.headers["X-Amz-Target"].rpartition(".")[2])
        self.reply(json.dumps(ANSWERS[self.server.asked[-1]]).encode())

    def do_GET(self):
        self.reply(b"<ListBucketResult/>")

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)
        if len(self.server.asked) == 2:
            self.server.released.wait(PATIENCE_S)
        self.reply(b"")

    def reply(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def service(environ):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.asked = []
    server.released = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def interrupt_when(server, what, *argv, environ):
    """Runs the script, sends SIGINT once the server was asked ``what``, and returns its exit code and output."""
    with subprocess.Popen(
        [*SCRIPT, *argv], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + PATIENCE_S
        while not what(server.asked):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        # What is under way may finish; nothing more may begin.
        threading.Timer(0.2, server.released.set).start()
        out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out, err


def test_ctrl_c_while_following_leaves_the_job(service, environ):
    code, out, err = interrupt_when(
        service,
        lambda asked: "DescribeLogStreams" in asked,
        *("train", "--data", "s3://bucket/dogs", "--name", "dogs-1"),
        environ=environ,
    )
    assert code == 130
    assert out == ""
    assert err.splitlines()[-1].startswith("dogs-1 goes on, and goes on costing")
    assert "Traceback" not in err
    assert "StopTrainingJob" not in service.asked


def test_ctrl_c_while_uploading_keeps_what_is_done(service, environ, tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
    code, out, err = interrupt_when(
        service, lambda asked: len(asked) == 2, "upload", str(tmp_path), "--workers", "1", environ=environ
    )
    assert code == 130
    assert out == ""
    assert "2 of 5 files were sent and stay; the same command sends the rest" in err
    assert "Traceback" not in err
    assert len(service.asked) == 2
