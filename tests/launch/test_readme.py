"""The README's AWS section: its commands are run in order, from the upload to the deletion, against the mock AWS.

moto completes the training job at once and runs no container, so the test puts there what a job would leave behind,
and answers InvokeEndpoint by hand.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import string
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.launch.conftest import REGION, REPOSITORY, Ended, Launch
from tests.launch.scripted import Scripted, problems

from scripts.launcher.aws import Aws
from scripts.launcher.plan import Call

# Another file may be named, to try a section before it is in the README.
README = Path(os.environ.get("DOGBREED_TEST_README", REPOSITORY / "README.md"))
PROGRAM = (".venv/bin/python", "scripts/launch.py")
ORDER = ("upload", "train", "status", "report", "deploy", "predict", "delete")


class Terminal(io.StringIO):
    """Somebody who answers."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def section() -> str:
    found = re.search(r"<!-- aws -->(.*)<!-- /aws -->", README.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        pytest.fail(f"{README.name} has no section between <!-- aws --> and <!-- /aws -->")
    return found[1]


@pytest.fixture
def commands(section: str, launch: Launch) -> list[list[str]]:
    """The arguments of every launch.py line, after the variables of the section were set."""
    for name, value in re.findall(r"^export (\w+)=([^$\s]+)", section, re.MULTILINE):
        launch.environ[name] = value
    # As build_and_push.sh prints it.
    launch.environ["DOGBREED_IMAGE"] = f"111122223333.dkr.ecr.{REGION}.amazonaws.com/dogbreed@sha256:{'0' * 64}"
    code = "".join(re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    lines = [string.Template(line).substitute(launch.environ) for line in code.splitlines() if "launch.py" in line]
    words = [shlex.split(line, comments=True) for line in lines]
    assert [tuple(one[:2]) for one in words] == [PROGRAM] * len(words)
    return [one[2:] for one in words]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the section speaks of."""
    for name in ("photos/dogs/Beagle/a.jpg", "photos/dogs/Pug/b.jpg", "photos/photo.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)


def test_the_programs_that_the_section_runs_are_there(section: str) -> None:
    (targets,) = re.findall(r"^make (.+?)\s*#", section, re.MULTILINE)
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert [target for target in targets.split() if f"\n{target}:" not in makefile] == []
    for program in (*re.findall(r"\$\((\S+)\)", section), PROGRAM[1]):
        assert os.access(REPOSITORY / program, os.X_OK), program


def test_the_section_prints_the_variables_that_the_stack_prints(section: str) -> None:
    template = (REPOSITORY / "infrastructure" / "dogbreed.yaml").read_text(encoding="utf-8")
    printed = re.findall(r"^    Description: (\w+)$", template.partition("\nOutputs:")[2], re.MULTILINE)
    exported = re.findall(r"^export (\w+)=[^$]", section, re.MULTILINE)
    assert printed
    assert sorted(exported) == sorted(printed)


@pytest.mark.usefixtures("photos")
def test_every_command_has_a_dry_run_whose_requests_the_service_would_take(
    launch: Launch, commands: list[list[str]]
) -> None:
    for argv in commands:
        ended = launch(*argv, "--dry-run")
        assert (ended.code, ended.err) == (0, ""), argv
        # A ${name} is what only AWS's answer to an earlier request tells.
        found = [Call(**call) for call in json.loads(ended.out)]
        assert [problem for call in found if "${" not in str(call) for problem in problems(call)] == []
        assert found


@pytest.mark.usefixtures("photos")
def test_the_commands_lead_from_the_data_to_the_deletion(
    launch: Launch, mock_aws: Callable[[str], Any], commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuple(argv[0] for argv in commands) == ORDER
    bucket = launch.environ["DOGBREED_BUCKET"]
    s3, sagemaker = mock_aws("s3"), mock_aws("sagemaker")
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    runtime = Scripted(InvokeEndpoint=_answer)
    launch.aws = Aws(lambda service: runtime.client(service) if service == "sagemaker-runtime" else mock_aws(service))
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    ended: dict[str, Ended] = {}

    def run(name: str) -> str:
        """Runs the next command, which must be this one; returns the last line of its output."""
        argv = commands[len(ended)]
        assert argv[0] == name
        ended[name] = launch(*argv)
        assert ended[name].code == 0, ended[name].err
        return ended[name].out.splitlines()[-1]

    uri = run("upload")
    keys = {found["Key"] for found in s3.list_objects_v2(Bucket=bucket)["Contents"]}
    assert keys == {"dogbreed/data/dogs/Beagle/a.jpg", "dogbreed/data/dogs/Pug/b.jpg"}

    model = run("train")
    assert "cost: 1 x ml.g4dn.xlarge for at most 60 min" in ended["train"].err
    job = sagemaker.describe_training_job(TrainingJobName="dogs-1")
    assert job["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] == uri
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == model

    run("status")
    assert "dogs-1" in ended["status"].out
    assert "Completed" in ended["status"].out

    s3.put_object(Bucket=bucket, Key="dogbreed/jobs/dogs-1/output/output.tar.gz", Body=_output())
    page = Path(run("report"))
    assert page.read_bytes() == b"<p>report</p>"
    assert opened == [page.resolve().as_uri()]

    assert run("deploy") == "it costs money until: launch.py delete dogs"
    config = sagemaker.describe_endpoint(EndpointName="dogs")["EndpointConfigName"]
    (variant,) = sagemaker.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"]
    container = sagemaker.describe_model(ModelName=variant["ModelName"])["PrimaryContainer"]
    assert (container["Image"], container["ModelDataUrl"]) == (launch.environ["DOGBREED_IMAGE"], model)

    assert "Beagle  75.0%" in run("predict")
    (asked,) = runtime.asked("InvokeEndpoint")
    assert (asked["EndpointName"], asked["ContentType"]) == ("dogs", "image/jpeg")

    assert "nothing is costing money" in run("delete")
    assert len(ended) == len(commands)
    for listing, key in (("endpoints", "Endpoints"), ("endpoint_configs", "EndpointConfigs"), ("models", "Models")):
        assert getattr(sagemaker, f"list_{listing}")()[key] == []


def _answer(**asked: Any) -> dict[str, Any]:
    best = {"label": "Beagle", "index": 0, "probability": 0.75}
    return {"Body": io.BytesIO(json.dumps({"predictions": [{**best, "top_k": [best]}]}).encode())}


def _output() -> bytes:
    """What a job uploads as its output.tar.gz."""
    content = b"<p>report</p>"
    info = tarfile.TarInfo("insight/report.html")
    info.size = len(content)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
