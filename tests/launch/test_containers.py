"""`launch.py tune --local --image`: what Docker is told of a trial, and that a container ends as a process does.

`docker` is a stand-in on PATH that notes what it is told and runs a quick trial on the folders that are mounted;
tests/container/test_tune.py runs the same with a real engine.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.launch.scripted import Scripted
from tests.launch.searched import TRAIN

from dogbreed.hyperparameters import SearchRange
from scripts.launcher.errors import SettingError
from scripts.launcher.search import local, trials
from scripts.launcher.search.containers import Containers
from scripts.launcher.search.process import Job, Order, Started
from scripts.launcher.search.space import Space

# A container's process is the client's own; `stop` finds it by its name.
DOCKER = """
import json, os, re, signal, sys
from pathlib import Path
here, told = Path(__file__).parent, sys.argv[1:]
with (here / "told").open("a") as log:
    log.write(json.dumps(told) + "\\n")
match told:
    case ["version", *_]:
        if (here / "no engine").exists():
            sys.exit("Cannot connect to the Docker daemon")
    case ["image", "inspect", name]:
        sys.exit(name != "dogbreed:1")
    case ["run", "--rm", "--name", name, *options, "dogbreed:1", "train"]:
        (model,) = [one for one in options if one.endswith(",target=/opt/ml/model")]
        (here / name).write_text(str(os.getpid()))
        environ = {"SAGEMAKER_BASE_DIR": os.path.dirname(re.search("source=(.*),target", model)[1])}
        os.execve(sys.executable, [sys.executable, "-S", "-E", str(here / "train.py")], environ)
    case ["stop", "--time", "120", name]:
        os.kill(int((here / name).read_text()), signal.SIGTERM)
    case _:
        sys.exit(f"docker knows no {told}")
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "docker.py").write_text(DOCKER)
    (folder / "train.py").write_text(TRAIN)
    (folder / "docker").write_text(f'#!/bin/sh\nexec {sys.executable} {folder / "docker.py"} "$@"\n')
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def order(tmp_path: Path) -> Order:
    for name in ("train", "valid"):
        (tmp_path / "photos" / name / "Beagle").mkdir(parents=True)
    (tmp_path / "resnet18.pth").write_bytes(b"w")
    job = Job(tmp_path / "photos", tmp_path / "resnet18.pth", tmp_path / "cache")
    return Order(job, tmp_path / "dogs" / "trial-000", {"lr": "0.03"}, [2, 3], "1")


def told(docker: Path, verb: str) -> list[list[str]]:
    lines = map(json.loads, (docker / "told").read_text().splitlines())
    return [line for line in lines if line[0] == verb]


def end(trial: Started) -> Started:
    deadline = time.monotonic() + 60
    while not trial.ended:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return trial


def test_a_container_has_the_platforms_mounts_its_cores_its_gpu_and_no_network(
    docker: Path, order: Order, tmp_path: Path
) -> None:
    trial = end(Started(order.folder, Containers("dogbreed:1").start(order)))
    assert trial.code == 0
    assert trial.metrics() == {"validation_accuracy": 1.0}
    assert [epoch for epoch, _ in trial.epochs()] == [1, 2, 3]
    ((*_, image, command),) = told(docker, "run")
    assert (image, command) == ("dogbreed:1", "train")
    options = set(told(docker, "run")[0])
    folder = order.folder
    assert {
        f"--mount=type=bind,source={folder}/input/config,target=/opt/ml/input/config,readonly",
        f"--mount=type=bind,source={tmp_path}/photos,target=/opt/ml/input/data/train,readonly",
        f"--mount=type=bind,source={tmp_path}/resnet18.pth,target=/opt/ml/input/data/pretrained/resnet18.pth,readonly",
        f"--mount=type=bind,source={folder}/model,target=/opt/ml/model",
        f"--mount=type=bind,source={folder}/output,target=/opt/ml/output",
        f"--mount=type=bind,source={tmp_path}/cache,target=/tmp/dogbreed",
        "--cpuset-cpus=2,3",
        "--env=OMP_NUM_THREADS=2",
        "--env=TRAINING_JOB_NAME=trial-000",
        "--gpus=device=1",
        "--network=none",
        f"--user={os.getuid()}:{os.getgid()}",
    } <= options


def test_images_that_are_links_are_mounted_one_by_one(docker: Path, order: Order, tmp_path: Path) -> None:
    (tmp_path / "photos" / "test").mkdir()
    links = local.without_test(tmp_path / "photos", tmp_path / "links")
    job = Job(links, None, tmp_path / "cache")
    end(Started(order.folder, Containers("dogbreed:1").start(Order(job, order.folder, {"lr": "0.03"}, [], None))))
    (run,) = told(docker, "run")
    assert [one for one in run if "/opt/ml/input/data" in one] == [
        f"--mount=type=bind,source={tmp_path}/photos/{name},target=/opt/ml/input/data/train/{name},readonly"
        for name in ("train", "valid")
    ]
    assert not [one for one in run if "gpus" in one or "cpuset" in one]


def test_a_search_runs_containers_and_stops_the_one_that_falls_behind(docker: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "Beagle").mkdir(parents=True)
    rates = (0.03, 0.031, 0.032, 0.033, 0.034, 0.89)
    space = Space({"lr": SearchRange(choices=rates)}, {"gamma": "0.1", "epochs": "8"})
    plan = local.Plan(
        name="dogs",
        folder=tmp_path / "dogs",
        space=space,
        objective=trials.Objective("validation_accuracy", "maximise"),
        strategy="Bayesian",
        prune=True,
        trials=6,
        parallel=1,
        seed=0,
        job=Job(tmp_path / "data", None, tmp_path / "cache"),
    )
    search = local.Search(plan, Containers("dogbreed:1"), lambda line: None)
    for lr in rates:
        search._study.enqueue_trial({"lr": f"{lr}"})
    search.run(lambda seconds: time.sleep(0.01))
    assert len(told(docker, "run")) == 6
    stopped = [one for one in search.trials() if one.status == "Stopped"]
    assert "0.89" in [one.hyperparameters["lr"] for one in stopped]
    assert len(told(docker, "stop")) == len(stopped)
    names = {run[run.index("--name") + 1] for run in told(docker, "run")}
    assert len(names) == 6
    assert {stop[-1] for stop in told(docker, "stop")} <= names
    assert search.best() is not None


def test_a_container_that_docker_cannot_start_is_a_failed_trial(docker: Path, order: Order) -> None:
    starter = Containers("dogbreed:1")
    (docker / "docker.py").write_text("import sys; print('docker: no device driver'); sys.exit(125)")
    trial = end(Started(order.folder, starter.start(order)))
    assert trial.code == 125
    assert trial.reason() == "docker: no device driver"


def test_without_an_engine_or_the_image_it_is_one_sentence(docker: Path) -> None:
    with pytest.raises(SettingError, match="the image dogbreed:2 is not on this machine: `make build` makes"):
        Containers("dogbreed:2")
    (docker / "no engine").touch()
    with pytest.raises(SettingError, match="--local needs a running Docker engine: Cannot connect"):
        Containers("dogbreed:1")


def test_the_command_takes_the_image_and_not_that_of_the_account(
    launch: Any, docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "Beagle").mkdir(parents=True)
    launch.aws = Scripted()
    launch.environ["DOGBREED_IMAGE"] = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/dogbreed:1"
    words = ["tune", "--local", "--data", "photos", "--search", "lr", "--trials", "1", "--name", "dogs"]
    (planned,) = json.loads(launch(*words, "--dry-run").out)
    assert planned["parameters"]["Image"] is None
    ended = launch(*words, "--image", "dogbreed:2")
    assert (ended.code, "the image dogbreed:2 is not on this machine" in ended.err) == (2, True)
    launch.on_sleep = lambda seconds: time.sleep(0.01)
    ended = launch(*words, "--image", "dogbreed:1")
    assert ended.code == 0, ended.err
    assert len(told(docker, "run")) == 1
