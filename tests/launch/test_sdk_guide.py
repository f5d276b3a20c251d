"""docs/sdk.md: its Python and its shell lines are run as they stand, and send what launch.py would send.

A server on 127.0.0.1 stands for SageMaker, because what matters is the request as it arrives, which moto does not keep.
Nothing can leave the machine: where a proxy is asked for, there is none.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.launch.conftest import REPOSITORY, Launch
from tests.launch.scripted import problems

from scripts.launcher.plan import Call

GUIDE = (REPOSITORY / "docs" / "sdk.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
(SDK_CONFIGURATION,) = re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
(SHELL,) = re.findall(r"^```bash\n(scripts/.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
EXPORTED = dict(re.findall(r"^export (\w+)=(\S+)$", GUIDE, re.MULTILINE))
ARN = "arn:aws:sagemaker:eu-west-1:111122223333"


@dataclass
class Service:
    """A server that speaks as much SageMaker as starting and describing a job takes.

    Attributes:
        requests: every request, in order.
    """

    requests: list[Call] = field(default_factory=list)
    url: str = ""

    def sent(self, operation: str) -> dict[str, Any]:
        """The parameters of the one request of this operation, which the service would take."""
        (call,) = [call for call in self.requests if call.operation == operation]
        assert problems(call) == []
        return dict(call.parameters)

    def answer(self, call: Call) -> dict[str, Any]:
        name = next(iter(call.parameters.values()))
        if "Tuning" in call.operation:
            described = {"HyperParameterTuningJobName": name, "HyperParameterTuningJobStatus": "InProgress"}
            return {"HyperParameterTuningJobArn": f"{ARN}:hyper-parameter-tuning-job/{name}", **described}
        described = {"TrainingJobName": name, "TrainingJobStatus": "Completed", "SecondaryStatus": "Completed"}
        return {"TrainingJobArn": f"{ARN}:training-job/{name}", **described}


@pytest.fixture(scope="module")
def serve() -> Iterator[Any]:
    """Makes services; they end with the module."""
    servers: list[ThreadingHTTPServer] = []

    def start() -> Service:
        service = Service()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                call = Call("sagemaker", self.headers["X-Amz-Target"].removeprefix("SageMaker."), body)
                service.requests.append(call)
                content = json.dumps(service.answer(call)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Stays silent."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        service.url = f"http://127.0.0.1:{servers[-1].server_port}"
        return service

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run(command: list[str], service: Service, folder: Path) -> None:
    """Runs a program of the guide with the variables of the guide, and an account of its own."""
    (folder / "config.yaml").write_text(SDK_CONFIGURATION)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SAGEMAKER_", "SM_"))}
    nowhere = "http://127.0.0.1:9"
    environment: Mapping[str, str] = {
        **kept,
        **EXPORTED,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_CONFIG_FILE": str(folder / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "no-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": service.url,
        "AWS_PAGER": "",
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(folder / "config.yaml"),
        "HTTPS_PROXY": nowhere,
        "HTTP_PROXY": nowhere,
        "NO_PROXY": "127.0.0.1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY / "container"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def sdk(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """What the Python of the guide sends; run once, since importing the SDK takes seconds."""
    service: Service = serve()
    run([sys.executable, "-c", "\n".join(PYTHON)], service, tmp_path_factory.mktemp("sdk"))
    return service


@pytest.fixture
def ours(launch: Launch) -> dict[str, Any]:
    """The request of launch.py, by the arguments that the guide gives it."""
    launch.environ |= EXPORTED
    line = SHELL.replace("\\\n", " ").partition("|")[0]
    ended = launch(*shlex.split(line)[1:])
    assert ended.code == 0, ended.err
    (call,) = json.loads(ended.out)
    assert problems(Call(**call)) == []
    found: dict[str, Any] = call["parameters"]
    return found


def test_the_model_trainer_starts_the_job_that_launch_starts(sdk: Service, ours: dict[str, Any]) -> None:
    sent = sdk.sent("CreateTrainingJob")
    assert sent.pop("TrainingJobName").startswith("dogbreed-")
    del ours["TrainingJobName"]
    # The SDK spells out the default.
    assert sent["OutputDataConfig"].pop("CompressionType") == "GZIP"
    assert sent == ours
    assert all(isinstance(value, str) for value in sent["HyperParameters"].values())


def test_the_tuner_searches_with_the_same_image_channels_and_metrics(sdk: Service, ours: dict[str, Any]) -> None:
    sent = sdk.sent("CreateHyperParameterTuningJob")
    definition, configuration = sent["TrainingJobDefinition"], sent["HyperParameterTuningJobConfig"]
    del ours["AlgorithmSpecification"]["EnableSageMakerMetricsTimeSeries"]
    for channel in ours["InputDataConfig"]:
        del channel["InputMode"]  # that of the algorithm holds
    same = ("AlgorithmSpecification", "InputDataConfig", "OutputDataConfig", "ResourceConfig", "StoppingCondition")
    assert {name: definition[name] for name in same} == {name: ours[name] for name in same}
    metrics = {metric["Name"] for metric in definition["AlgorithmSpecification"]["MetricDefinitions"]}
    assert configuration["HyperParameterTuningJobObjective"]["MetricName"] in metrics
    searched = {one["Name"] for ranges in configuration["ParameterRanges"].values() for one in ranges}
    fixed = definition["StaticHyperParameters"]
    assert searched & set(fixed) == set()
    assert searched | set(fixed) == set(ours["HyperParameters"]) | {"optimizer"}


def test_what_the_tuner_tries_is_allowed(sdk: Service, launch: Launch) -> None:
    launch.environ |= EXPORTED
    sent = sdk.sent("CreateHyperParameterTuningJob")
    ranges = sent["HyperParameterTuningJobConfig"]["ParameterRanges"]
    tried = [
        f"{one['Name']}={one[end]}" for one in ranges["ContinuousParameterRanges"] for end in ("MinValue", "MaxValue")
    ]
    tried += [f"{one['Name']}={value}" for one in ranges["CategoricalParameterRanges"] for value in one["Values"]]
    for pair in tried:
        ended = launch("train", "--data", "s3://my-bucket/dogs/", "--hp", pair, "--dry-run")
        assert (ended.code, ended.err) == (0, "")


@pytest.mark.skipif(not (shutil.which("aws") and shutil.which("jq")), reason="needs the programs aws and jq")
def test_the_command_line_sends_the_printed_request(serve: Any, ours: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "scripts").symlink_to(REPOSITORY / "scripts")
    service: Service = serve()
    run(["bash", "-euo", "pipefail", "-c", SHELL], service, tmp_path)
    assert service.sent("CreateTrainingJob") == ours
    assert [call.operation for call in service.requests] == ["CreateTrainingJob", "DescribeTrainingJob"]
