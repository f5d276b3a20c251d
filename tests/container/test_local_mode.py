"""`launch.py --local` and the notebook, on the image: SageMaker SDK local mode with a real Docker engine and Compose.

Without an account: no AWS variable, and a configuration file that does not exist.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "train_and_deploy.ipynb"
QUICK = ("model=tiny", "pretrained=false", "trainable=all", "image-size=32", "batch-size=8")
SHORT, ENDLESS = (*QUICK, "epochs=2"), (*QUICK, "epochs=1000", "patience=0")


@pytest.fixture(autouse=True)
def compose(engine: None) -> None:
    """Skips what the SDK starts by docker-compose where there is none."""
    found = subprocess.run(["docker", "compose", "version"], capture_output=True)
    if found.returncode and shutil.which("docker-compose") is None:
        pytest.skip("there is neither `docker compose` nor `docker-compose`")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "data"
    draw = [sys.executable, ROOT / "local_test" / "make_data.py", folder, "--classes", "3", "--train", "12"]
    subprocess.run([*draw, "--valid", "4", "--test", "4"], check=True, capture_output=True)
    return folder


@dataclass(frozen=True)
class Launch:
    """Runs launch.py in a folder of its own, without an account."""

    folder: Path
    image: str

    def environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DOGBREED_"))}
        nowhere = str(self.folder / "nowhere")
        return kept | {
            "DOGBREED_IMAGE": self.image,
            "AWS_CONFIG_FILE": nowhere,
            "AWS_SHARED_CREDENTIALS_FILE": nowhere,
        }

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, ROOT / "scripts" / "launch.py", *argv],
            cwd=self.folder,
            env=self.environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *argv: str) -> subprocess.CompletedProcess[str]:
        with self.start(*argv) as process:
            out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)


def unique(word: str) -> str:
    """A name that no other test run on this engine has."""
    return f"{word}-{uuid.uuid4().hex[:8]}"


def containers(word: str) -> list[str]:
    """Names of the containers, running or not, of the Compose projects with the word in their names."""
    form = '{{.Names}} {{.Label "com.docker.compose.project"}}'
    listed = subprocess.run(["docker", "ps", "--all", "--format", form], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in listed.stdout.splitlines() if word in line.partition(" ")[2]]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def launch(image: str, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    return Launch(tmp_path_factory.mktemp("launch"), image)


@pytest.fixture(scope="module")
def job(launch: Launch, data: Path) -> str:
    """A job that has ended well."""
    name = unique("job")
    ended = launch("train", "--local", "--data", str(data), "--name", name, "--hp", *SHORT)
    assert ended.returncode == 0, ended.stderr
    # Live: the metrics of the epochs come from the container's log, the rest from the bundle.
    assert "epoch=2; train_loss=" in ended.stderr
    assert "metrics: train_loss=" in ended.stderr
    assert ended.stdout.splitlines()[-1] == f"build/local/{name}/model"
    return name


def test_a_job_leaves_its_bundle_and_its_report_and_nothing_else(launch: Launch, job: str) -> None:
    folder = launch.folder / "build" / "local" / job
    assert json.loads((folder / "model" / "bundle.json").read_text())["metrics"]["test_accuracy"] >= 0
    assert (folder / "model" / "model.safetensors").stat().st_size > 0
    assert "<html" in (folder / "output" / "data" / "insight" / "report.html").read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["model", "model.tar.gz", "output"]
    assert containers(job) == []


def test_a_job_that_fails_says_why_first(launch: Launch, data: Path) -> None:
    name = unique("job")
    ended = launch("train", "--local", "--data", str(data), "--name", name, "--quiet", "--hp", "model=tiny")
    assert ended.returncode == 1
    told = [line for line in ended.stderr.splitlines() if line.startswith("launch.py train: ")]
    assert told == [f"launch.py train: {name} failed: no pretrained weights exist for model=tiny; set pretrained=false"]
    assert containers(name) == []


def test_ctrl_c_stops_the_container_and_keeps_the_model(launch: Launch, data: Path) -> None:
    name = unique("job")
    with launch.start("train", "--local", "--data", str(data), "--name", name, "--hp", *ENDLESS) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch=2;" in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert out.splitlines() == [f"build/local/{name}/model"]
    assert (launch.folder / out.strip() / "bundle.json").is_file()
    assert containers(name) == []


# Strict: whoever makes the image train on several hosts finds this test, and takes the mark away.
def test_two_instances_end_with_one_bundle(launch: Launch, data: Path) -> None:
    name = unique("job")
    argv = ("--data", str(data), "--name", name, "--instance-count", "2", "--hp", *SHORT)
    ended = launch("train", "--local", *argv)
    assert ended.returncode == 0, ended.stderr
    assert (launch.folder / "build" / "local" / name / "model" / "bundle.json").is_file()
    # Metrics are those of the first host alone.
    assert ended.stderr.count("epoch=2; train_loss=") == 1


@pytest.fixture
def endpoint(launch: Launch, job: str) -> Iterator[str]:
    name, port = unique("dogs"), free_port()
    ended = launch("deploy", name, "--local", "--job", job, "--port", str(port))
    try:
        assert ended.returncode == 0, ended.stderr
        assert f"in service at http://127.0.0.1:{port}" in ended.stdout
        yield name
    finally:
        launch("delete", name, "--local")


def test_an_endpoint_answers_until_it_is_deleted(launch: Launch, endpoint: str, data: Path) -> None:
    photos = sorted((data / "test").rglob("*.jpg"))
    ended = launch("predict", endpoint, *(str(photo) for photo in photos[:2]), "--json")
    assert ended.returncode == 0, ended.stderr
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [answer["image"] for answer in answers] == [str(photo) for photo in photos[:2]]
    assert all(0 < answer["predictions"][0]["probability"] <= 1 for answer in answers)

    port = json.loads((launch.folder / "build/local/endpoints" / endpoint / "endpoint.json").read_text())["port"]
    listed = subprocess.run(["docker", "port", *containers(endpoint)], capture_output=True, text=True, check=True)
    assert listed.stdout.split("->")[1].strip() == f"127.0.0.1:{port}"

    assert launch("delete", endpoint, "--local").returncode == 0
    assert containers(endpoint) == []
    ended = launch("predict", endpoint, str(photos[0]), "--local")
    assert (ended.returncode, f"there is no local endpoint {endpoint}" in ended.stderr) == (2, True)


def test_a_model_that_cannot_be_served_is_said_to_at_once(launch: Launch, job: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(launch.folder / "build" / "local" / job / "model", model)
    (model / "model.safetensors").write_bytes(b"broken")
    name = unique("dogs")
    began = time.monotonic()
    ended = launch("deploy", name, "--local", "--model-data", str(model), "--port", str(free_port()))
    assert ended.returncode == 1
    assert time.monotonic() - began < 300, "it waited for --startup-timeout"
    assert "model.safetensors" in next(line for line in ended.stderr.splitlines() if line.startswith("launch.py"))
    assert containers(name) == []


def test_ctrl_c_while_an_endpoint_starts_leaves_nothing_running(launch: Launch, job: str, data: Path) -> None:
    name = unique("dogs")
    with launch.start("deploy", name, "--local", "--job", job, "--port", str(free_port())) as process:
        assert process.stderr is not None
        assert f"local endpoint {name}: " in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert containers(name) == []
    ended = launch("predict", name, str(data), "--local")
    assert f"there is no local endpoint {name}" in ended.stderr


def test_a_transform_answers_every_image_and_names_the_broken_one(
    launch: Launch, job: str, data: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(data / "test", photos)
    (photos / "broken.jpg").write_bytes(b"broken")
    images = sorted(path.relative_to(photos) for path in photos.rglob("*.jpg"))
    ended = launch("transform", str(photos), str(tmp_path / "answers"), "--local", "--job", job)
    assert ended.returncode == 1
    assert "broken.jpg: the image cannot be decoded" in ended.stderr
    assert f"{len(images) - 1} of {len(images)} images were answered; no answer for broken.jpg" in ended.stderr
    found = sorted((tmp_path / "answers").rglob("*.out"))
    assert [str(path.relative_to(tmp_path / "answers")) for path in found] == [
        f"{path}.out" for path in images if path.name != "broken.jpg"
    ]
    assert all(json.loads(path.read_bytes())["predictions"] for path in found)
    assert containers("dogbreed-transform") == []


def test_the_notebook_runs_from_the_data_to_the_deletion(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat = pytest.importorskip("nbformat", reason="there is no nbformat to read the notebook with")
    nbclient = pytest.importorskip("nbclient", reason="there is no nbclient to run the notebook with")
    pytest.importorskip("ipykernel", reason="there is no ipykernel to run the notebook in")
    pytest.importorskip("matplotlib", reason="there is no matplotlib for the notebook's pictures")
    project, port = unique("notebook"), free_port()
    for name in [name for name in os.environ if name.startswith(("AWS_", "DOGBREED_"))]:
        monkeypatch.delenv(name)
    # The kernel's own, which shows the pictures.
    monkeypatch.delenv("MPLBACKEND", raising=False)
    for name, value in {
        "COMPOSE_PROJECT_NAME": project,
        "DOGBREED_IMAGE": image,
        "NOTEBOOK_FOLDER": str(tmp_path / "work"),
        "PORT": str(port),
    }.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, 4)
    try:
        client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
        client.execute()
    finally:
        if left := containers(project):
            subprocess.run(["docker", "rm", "--force", *left], capture_output=True)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(str(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in outputs)
    assert "epoch=6; train_loss=" in text
    assert "InService" in text
    assert "'probability'" in text
    # The classes, the curves and the predictions.
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
