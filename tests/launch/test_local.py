"""`--local` without Docker: what it plans, what it refuses, how it reads Compose's log, and where predict looks.

tests/container/test_local_mode.py runs the same commands on the image.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import tarfile
from pathlib import Path

import pytest
from tests.launch.conftest import REPOSITORY, Launch

from scripts.launcher.errors import SettingError
from scripts.launcher.local import folders, transforms
from scripts.launcher.local.process import plain


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: Launch) -> Path:
    """A folder to work in, without an account: no region, no role, no bucket, no image, no credentials."""
    monkeypatch.chdir(tmp_path)
    launch.environ.clear()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    (tmp_path / "photos" / "Beagle").mkdir(parents=True)
    (tmp_path / "photos" / "Beagle" / "a.jpg").write_bytes(b"a")
    return tmp_path


@pytest.fixture
def model(here: Path) -> Path:
    folder = here / "build" / "local" / "j1" / "model"
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text("{}")
    return folder


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def endpoint(name: str, port: int) -> None:
    folder = folders.endpoint_folder(name)
    folder.mkdir(parents=True)
    content = {"name": name, "port": port, "image": "dogbreed:latest", "model": "build/local/j1/model"}
    (folder / "endpoint.json").write_text(json.dumps(content))


def planned(launch: Launch, *argv: str) -> list[dict[str, object]]:
    ended = launch(*argv, "--dry-run")
    assert ended.code == 0, ended.err
    return [call["parameters"] for call in json.loads(ended.out)]


def test_training_is_planned_without_an_account(launch: Launch, here: Path) -> None:
    (here / "resnet18.pth").write_bytes(b"w")
    argv = ("--data", "photos", "--weights", "resnet18.pth", "--instance-count", "2", "--name", "j1")
    (found,) = planned(launch, "train", "--local", *argv, "--hp", "lr=0.01")
    assert found["AlgorithmSpecification"]["TrainingImage"] == "dogbreed:latest"
    assert found["ResourceConfig"] == {"InstanceType": "local", "InstanceCount": 2}
    assert found["HyperParameters"] == {"lr": "0.01"}
    sources = {one["ChannelName"]: one["DataSource"]["S3DataSource"]["S3Uri"] for one in found["InputDataConfig"]}
    assert sources == {"train": f"file://{here}/photos", "pretrained": f"file://{here}/resnet18.pth"}
    assert found["OutputDataConfig"] == {"S3OutputPath": f"file://{here}/build/local/j1"}
    assert not (here / "build").exists()


@pytest.mark.usefixtures("model")
def test_an_endpoint_is_planned_without_an_account(launch: Launch, here: Path) -> None:
    model, config, made = planned(launch, "deploy", "dogs", "--local", "--job", "j1", "--image", "dogbreed:1")
    assert model["PrimaryContainer"]["Image"] == "dogbreed:1"
    assert model["PrimaryContainer"]["ModelDataUrl"] == f"file://{here}/build/local/j1/model"
    assert config["ProductionVariants"][0]["InstanceType"] == "local"
    assert made == {"EndpointName": "dogs", "EndpointConfigName": config["EndpointConfigName"]}


@pytest.mark.usefixtures("model")
def test_a_transform_is_planned_without_an_account(launch: Launch, here: Path) -> None:
    _, job = planned(launch, "transform", "photos", "answers", "--local", "--job", "j1")
    assert job["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"] == f"file://{here}/photos"
    assert job["TransformOutput"]["S3OutputPath"] == f"file://{here}/answers"


def test_the_guide_s_commands_are_understood(launch: Launch, here: Path) -> None:
    guide = (REPOSITORY / "docs" / "aws.md").read_text(encoding="utf-8")
    section = guide.partition("## Without an account: --local")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line.removeprefix("scripts/launch.py ")) for line in block.splitlines()]
    assert [argv[0] for argv in commands] == ["train", "deploy", "predict", "transform", "delete"]
    for name in (
        "photos/dogs/Beagle/a.jpg",
        "photos/photo.jpg",
        "resnet18.pth",
        "build/local/dogs-1/model/bundle.json",
    ):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("{}")
    endpoint("dogs", 8080)
    for argv in commands:
        assert planned(launch, *argv), argv


DATA = ("--data", "photos")


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("deploy", "dogs", "--job", "j9"), "`launch.py train --local --name j9` makes it"),
        (("deploy", "dogs", "--job", "j1", "--autoscale", "1:2"), "--autoscale is for the account"),
        (("deploy", "dogs", "--job", "j1", "--kms-key", "k"), "--kms-key is for the account"),
        (("deploy", "dogs", "--job", "j1", "--port", "70000"), "70000 is not a port"),
        (("deploy", "dogs", "--model-data", "photos"), "photos holds no bundle.json"),
        (("predict", "dogs", "photos"), "there is no local endpoint dogs here; local endpoints: none"),
        (("delete", "dogs", "--all-configs"), "--all-configs is for the account"),
        (("train",), "no data: give --data FOLDER"),
        (("train", "--data", "nowhere"), "--data nowhere: there is no such file or folder"),
        (("train", "--data", "s3://bucket/key"), "with --local give a folder of this machine"),
        (("train", *DATA, "--weights", "w.pth"), "--weights w.pth: there is no such file or folder"),
        (("train", *DATA, "--spot"), "--spot is for the account"),
        (("train", *DATA, "--instance-type", "ml.g5.xlarge"), "with --local give local or local_gpu"),
        (("train", *DATA, "--hp", "lr=fast"), "lr"),
        (("transform", "s3://bucket/photos", "answers", "--job", "j1"), "INPUT s3://bucket/photos: with --local give"),
        (("transform", "photos", "answers", "--job", "j1", "--keep-model"), "--keep-model is for the account"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_used_is_one_sentence(launch: Launch, argv: tuple[str, ...], sentence: str) -> None:
    # `predict NAME --local FILE` is not understood by argparse: positional arguments stand together.
    ended = launch(*argv, "--local", "--dry-run")
    assert ended.code == 2
    assert sentence in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.usefixtures("here")
def test_a_path_that_compose_would_split_is_refused(launch: Launch) -> None:
    Path("a:b").mkdir()
    ended = launch("train", "--local", "--data", "a:b", "--dry-run")
    assert (ended.code, "cannot mount a path with ':' in it" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("docker", "compose", "sentence"),
    [
        (None, "exit 0", "there is no `docker` command here"),
        ('echo "Cannot connect to the Docker daemon" >&2; exit 1', "exit 0", "Cannot connect to the Docker daemon"),
        ('[ "$1" = version ]', None, "neither `docker compose` nor `docker-compose` is here"),
        ('[ "$1" != image ]', "exit 0", "the image dogbreed:latest is not on this machine: `make build` makes"),
    ],
    ids=["no client", "no engine", "no compose", "no image"],
)
def test_what_docker_lacks_is_one_sentence(
    launch: Launch, here: Path, monkeypatch: pytest.MonkeyPatch, docker: str | None, compose: str | None, sentence: str
) -> None:
    programs = here / "programs"
    programs.mkdir()
    for name, script in (("docker", docker), ("docker-compose", compose)):
        if script is not None:
            program(programs, name, script)
    monkeypatch.setenv("PATH", str(programs))
    ended = launch("train", "--local", *DATA, "--name", "j2")
    assert ended.code == 2
    assert sentence in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not (here / "build").exists()


@pytest.mark.usefixtures("model")
def test_a_job_is_not_written_over_another(launch: Launch) -> None:
    ended = launch("train", "--local", *DATA, "--name", "j1")
    assert ended.code == 2
    assert "build/local/j1 exists already: give another --name" in ended.err


@pytest.mark.usefixtures("model")
def test_a_port_that_is_taken_is_named_with_who_has_it(
    launch: Launch, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(here / "programs", "docker", "exit 0")
    monkeypatch.setenv("PATH", str(here / "programs"), prepend=os.pathsep)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        ended = launch("deploy", "dogs", "--local", "--job", "j1", "--port", str(port))
        assert (ended.code, f"port {port} is taken by another program" in ended.err) == (2, True)
        endpoint("cats", port)
        ended = launch("deploy", "dogs", "--local", "--job", "j1", "--port", str(port))
        assert f"port {port} is taken by the local endpoint cats; give another by --port" in ended.err


@pytest.mark.usefixtures("here")
def test_predict_finds_a_local_endpoint_by_its_name_alone(launch: Launch) -> None:
    endpoint("dogs", 8123)
    (request,) = planned(launch, "predict", "dogs", "photos")
    assert request["Url"] == "http://127.0.0.1:8123/invocations"
    assert request["Body"] == {"content of": "photos/Beagle/a.jpg"}


@pytest.mark.usefixtures("here")
def test_an_endpoint_that_does_not_run_is_said_to(launch: Launch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    endpoint("dogs", port)
    ended = launch("predict", "dogs", "photos")
    assert ended.code == 2
    assert "the local endpoint dogs is not running any more: `launch.py deploy dogs --local" in ended.err


@pytest.mark.usefixtures("here")
def test_predict_of_another_name_still_asks_aws(launch: Launch) -> None:
    endpoint("dogs", 8123)
    (request,) = planned(launch, "predict", "cats", "photos")
    assert request["EndpointName"] == "cats"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"\x1b[36mu8uorcdhit-algo-1-578jo |\x1b[0m epoch=1;\r\n", "epoch=1;"),
        (b"i52bmrheal-algo-2-9iwzp  | epoch=1;\n", "[algo-2] epoch=1;"),
        (b"CreateModel failed in local mode: no\n", "CreateModel failed in local mode: no"),
        *(
            (line, "")
            for line in (b"Attaching to a\n", b"x exited with code 1\n", b"\x1b[0mAborting on container exit...\n")
        ),
        *((line, "") for line in (b" Container a-algo-1-b  Created\n", b"1\n", b"[+] Running 1/1\n")),
    ],
)
def test_the_log_is_that_of_the_container(line: bytes, text: str) -> None:
    assert plain(line) == text


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("filters", [True, False])
def test_an_archive_does_not_lead_out_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filters: bool
) -> None:
    if not filters:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    with tarfile.open("good.tar.gz", "w:gz") as tar:
        tar.add("photos")
    folders.extract(Path("good.tar.gz"), Path("good"))
    assert sorted(path.name for path in Path("good").rglob("*")) == sorted(
        path.name for path in [Path("photos"), *Path("photos").rglob("*")]
    )
    with tarfile.open("model.tar.gz", "w:gz") as tar:
        tar.add("photos", arcname="../escaped")
    with pytest.raises(SettingError, match="cannot be unpacked"):
        folders.extract(Path("model.tar.gz"), Path("model"))
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b'{"predictions": [{"label": "pug", "index": 0, "probability": 0.9}]}', None),
        (b'{"predictions": [{"error": {"code": "unreadable_image", "message": "it is cut off"}}]}', "it is cut off"),
        (b'{"error": {"code": "unreadable_image", "message": "it is cut off"}}', "it is cut off"),
        (b"image,rank,label,index,probability,error\n0,,,,,it is cut off\n", "it is cut off"),
        (b"image,rank,label,index,probability,error\n0,1,pug,0,0.9,\n", None),
        (b"image,rank,label,index,probability\n0,1,pug,0,0.9\n", None),
    ],
)
def test_an_entry_with_an_error_is_no_answer(answer: bytes, reason: str | None) -> None:
    assert transforms._refusal(answer) == reason
