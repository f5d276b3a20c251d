"""A mock AWS on a port of 127.0.0.1 (moto), the command line in this process, and hand-written clients for the rest.

moto answers every training job as completed at once, and knows neither StopTrainingJob nor names that are taken; for
those `scripted.Scripted` takes the clients' place, and holds every request against botocore's model of the service.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from scripts.launcher import cli  # noqa: E402  found by the line above
from scripts.launcher.aws import Aws, connect  # noqa: E402

REGION = "eu-west-1"
ROLE = "arn:aws:iam::111122223333:role/dogbreed"
BUCKET = "dogbreed-test"
IMAGE = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/dogbreed:0123abc"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Launch:
    """Runs `launch.py` in this process. `aws` takes the place of the mock AWS; `sleeps` are recorded, not slept."""

    capsys: pytest.CaptureFixture[str]
    environ: dict[str, str]
    aws: Aws | None = None
    slept: list[float] = field(default_factory=list)
    on_sleep: Callable[[float], None] | None = None

    def __call__(self, *argv: str) -> Ended:
        def sleep(seconds: float) -> None:
            self.slept.append(seconds)
            if self.on_sleep:
                self.on_sleep(seconds)

        self.capsys.readouterr()
        aws = self.aws
        try:
            code = cli.main(
                list(argv), environ=self.environ, connect=connect if aws is None else lambda region: aws, sleep=sleep
            )
        except SystemExit as error:  # argparse
            code = int(str(error.code))
        out, err = self.capsys.readouterr()
        return Ended(code, out, err)


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """An account without an AWS configuration of its own, and nowhere to go: port 9 of this machine discards."""
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    values = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_REGION": REGION,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = {"DOGBREED_ROLE": ROLE, "DOGBREED_BUCKET": BUCKET, "DOGBREED_IMAGE": IMAGE}
    return values | settings


@pytest.fixture
def launch(capsys: pytest.CaptureFixture[str], environ: dict[str, str]) -> Launch:
    """The command line without an AWS behind it."""
    return Launch(capsys, environ)


@pytest.fixture
def mock_aws(launch: Launch, moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Puts an empty mock AWS with one bucket behind the command line; makes clients of it for the test's own use."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_url)
    launch.environ["AWS_ENDPOINT_URL"] = moto_url
    requests.post(f"{moto_url}/moto-api/reset", timeout=10).raise_for_status()

    def client(service: str) -> Any:
        return boto3.client(service, region_name=REGION)

    client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    return client
