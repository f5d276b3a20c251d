"""The local platform with a real Docker engine: an image is a subject like a bare process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest
from local_test.simulator.channels import parse
from local_test.simulator.consoles import Quiet
from local_test.simulator.containers import ContainerRunning, ImageSubject
from local_test.simulator.jobs import Checkpoints, Request, run
from local_test.simulator.subjects import Command, Limits, Mount, Network, Start, SubjectError
from tests.container.engine import wait_for

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(600),
    # docker-py leaves the socket of a log that was followed to the end to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PROGRAM = """\
import http.server, json, os, pathlib, signal, socket, sys, time
command = sys.argv[1]
if command == "serve":
    print("up", flush=True)
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.end_headers(); self.wfile.write(b"hello")
    http.server.HTTPServer(("", int(os.environ.get("SAGEMAKER_BIND_TO_PORT", 8080))), Handler).serve_forever()
if "TASK" in os.environ:
    exec(os.environ["TASK"])
    sys.exit()
task = pathlib.Path("/opt/ml/task").read_text()
print("up", flush=True)
exec(task)
"""


@pytest.fixture(scope="module")
def tiny(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A small program on the base of the image under test: it executes what stands in /opt/ml/task."""
    tag = f"local-test-platform:{os.getpid()}"
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "Dockerfile").write_text(
        f'FROM {image}\nCOPY program.py /program.py\nLABEL a.label=yes\nENTRYPOINT ["python", "-u", "/program.py"]\n'
    )
    subprocess.run(["docker", "build", "--quiet", "--tag", tag, str(folder)], check=True, capture_output=True)
    yield tag
    subprocess.run(["docker", "image", "rm", "--force", tag], check=True, capture_output=True)


class Heard(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, host: str, text: str) -> None:
        self.lines.append(f"{host} {text}")


class Stage:
    def __init__(self, image: str, folder: Path) -> None:
        self.subject = ImageSubject(image)
        self.folder = folder

    def log(self, host: str = "algo-1") -> str:
        return (self.folder / f"{host}.log").read_text()

    @contextmanager
    def started(self, task: str, command: Command = Command.TRAIN, **options: object) -> Iterator[ContainerRunning]:
        host = str(options.get("host", "algo-1"))
        root = self.folder / host
        root.mkdir(exist_ok=True)
        (root / "task").write_text(task)
        running = self.subject.start(Start(command, root, self.folder / f"{host}.log", **options))
        try:
            yield running
        finally:
            running.close()


@pytest.fixture
def stage(tiny: str, tmp_path: Path) -> Stage:
    return Stage(tiny, tmp_path)


@pytest.fixture
def client(engine: None) -> Iterator[docker.DockerClient]:
    with contextlib.closing(docker.from_env()) as made:
        yield made


def left(client: docker.DockerClient) -> list[str]:
    marked = {"label": "local_test=subject"}
    return [thing.name for thing in client.containers.list(all=True, filters=marked)]


def test_mounts_are_real_and_what_was_made_goes_away(stage: Stage, client: docker.DockerClient, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_text("one")
    task = """
print(pathlib.Path("/opt/ml/input/data/train/a.txt").read_text(), os.environ["GIVEN"], socket.gethostname())
pathlib.Path("/opt/ml/written").write_text("by the subject")
try:
    pathlib.Path("/opt/ml/input/data/train/new").touch()
except OSError as error:
    print(error.strerror)
sys.exit(4)
"""
    mounts = [Mount(data, "input/data/train")]
    with stage.started(task, mounts=mounts, environment={"GIVEN": "too"}, network_isolation=True) as running:
        name = running.name
        assert name in left(client)
        assert running.wait(60) == 4
        assert running.exit_code() == 4
        assert stage.log() == "up\none too algo-1\nRead-only file system\n"
        assert running.memory_bytes() is None
        assert running.processes() == []
        assert running.written() == []
    assert name not in left(client)
    assert (stage.folder / "algo-1" / "written").read_text() == "by the subject"
    assert not (stage.folder / "algo-1" / "input").exists()
    assert stage.subject.labels["a.label"] == "yes"


def test_signals_limits_and_processes(stage: Stage) -> None:
    wait_up = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print('ready', flush=True); time.sleep(100)"
    limits = Limits(memory_bytes=200 * 2**20, cpus=64)
    with stage.started(wait_up, limits=limits) as running:
        wait_for(lambda: "ready" in stage.log(), 60)
        assert len(running.processes()) == 1
        memory = running.memory_bytes()
        assert memory is not None
        assert 2**20 < memory < 200 * 2**20
        running.terminate()
        assert running.wait(60) == 7
    with stage.started("print('deaf', flush=True); time.sleep(100)") as running:
        wait_for(lambda: "deaf" in stage.log(), 60)
        running.terminate()
        assert running.wait(1) is None, "no handler: the kernel drops the signal to process 1"
        running.kill()
        assert running.exit_code() == 137
    with stage.started("held = bytearray(400 * 2**20)", limits=limits) as running:
        assert running.wait(60) == 137


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("port", [None, 9000])
def test_serve_is_reached_at_its_address(stage: Stage, isolated: bool, port: int | None) -> None:
    with stage.started("", Command.SERVE, port=port, network_isolation=isolated) as running:

        def answer() -> bool:
            try:
                with urllib.request.urlopen(running.address, timeout=5) as got:
                    return bool(got.read() == b"hello")
            except OSError:
                return False

        wait_for(answer, 60)
        assert running.address.startswith("http://127.0.0.1:") != isolated


def test_hosts_find_each_other_by_name_and_nothing_else_isolated(stage: Stage, client: docker.DockerClient) -> None:
    with stage.subject.network(2) as network:
        assert network.hosts == ("algo-1", "algo-2")
        task = "print(socket.gethostbyname('algo-1') != socket.gethostbyname('algo-2'), flush=True); time.sleep(5)"
        listen = "time.sleep(100)"
        shared: dict[str, object] = {"network": network, "network_isolation": True}
        with stage.started(listen, host="algo-2", **shared), stage.started(task, host="algo-1", **shared):
            wait_for(lambda: "True" in stage.log(), 60)
            assert client.networks.get(network.name).attrs["Internal"]
    assert not client.networks.list(names=[network.name])
    with stage.subject.network(1) as unused:
        assert isinstance(unused, Network)


TRAINS = """
config = {file.stem: json.loads(file.read_text()) for file in pathlib.Path("/opt/ml/input/config").iterdir()}
me, hosts = config["resourceconfig"]["current_host"], config["resourceconfig"]["hosts"]
checkpoint = pathlib.Path(config["checkpointconfig"]["LocalPath"]) / me
found = checkpoint.exists()
# The second time the other host may have left already.
for host in hosts if not found else ():
    while True:
        try:
            socket.gethostbyname(host)
            break
        except OSError:
            time.sleep(0.1)
checkpoint.touch()
print("found", found, *sorted(file.name for file in pathlib.Path("/opt/ml/input/data/train").iterdir()), flush=True)
if not found:
    time.sleep(100)
pathlib.Path("/opt/ml/model", me).write_text(pathlib.Path("/opt/ml/input/data/stream_0").read_text())
"""


def test_a_job_on_two_hosts_survives_an_interruption(tiny: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a", "b", "c"):
        (photos / name).write_text(name)
    heard = Heard()

    def lose() -> bool:
        stored = {file.name for file in (tmp_path / "jobs" / "job-1" / "checkpoints").glob("algo-*")}
        return len(heard.lines) == 2 and stored == {"algo-1", "algo-2"}

    request = Request(
        "job-1",
        hosts=2,
        channels=[parse([f"train={photos}", "distribution=ShardedByS3Key"]), parse([f"stream={photos}", "mode=Pipe"])],
        environment={"TASK": TRAINS},
        checkpoints=Checkpoints(every_s=0.05),
        network_isolation=True,
    )
    record = run(request, ImageSubject(tiny), tmp_path / "jobs", heard, lose=lose)
    assert record.status == "Completed", heard.lines
    assert sorted(heard.lines) == [
        "algo-1 found False a c",
        "algo-1 found True a c",
        "algo-2 found False b",
        "algo-2 found True b",
    ]
    with tarfile.open(tmp_path / "jobs" / "job-1" / "output" / "model.tar.gz") as packed:
        assert packed.getnames() == ["algo-1", "algo-2"]


def test_files_of_root_are_handed_back(stage: Stage, tmp_path: Path) -> None:
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "file").touch()
    stage.subject.hand_back(folder, 12345, 12346)
    state = (folder / "file").stat()
    assert (state.st_uid, state.st_gid) == (12345, 12346)
    stage.subject.hand_back(folder, os.getuid(), os.getgid())


def test_what_is_not_there_is_named(engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SubjectError, match=r"there is no image no-such-image:1 here"):
        ImageSubject("no-such-image:1")
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such.sock")
    with pytest.raises(SubjectError, match="no Docker engine answers"):
        ImageSubject("dogbreed:latest")


def test_a_pause_is_a_start_of_a_container(stage: Stage, client: docker.DockerClient) -> None:
    assert 0 < stage.subject.pause_s() < 120
    # The tests of another file, which run beside these, may be in one of their own.
    wait_for(lambda: not client.containers.list(all=True, filters={"label": "local_test=pause"}), 60)
