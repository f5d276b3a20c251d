from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from local_test.simulator.choosing import OWN_PROGRAMS, subject
from local_test.simulator.processes import LoopbackNetwork, ProcessRunning, ProcessSubject
from local_test.simulator.subjects import Command, Limits, Mount, Start, SubjectError
from tests.unit.local_test.programs import programs


class Stage:
    """A folder with programs, a root and a log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "ml"
        self.root.mkdir()
        self.log = folder / "log.txt"
        self.running: list[ProcessRunning] = []

    def start(self, train: str = "", command: Command = Command.TRAIN, **options: object) -> ProcessRunning:
        made = ProcessSubject(programs(self.folder / "programs", train=train))
        self.running.append(made.start(Start(command, self.root, self.log, **options)))
        return self.running[-1]

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    for running in made.running:
        running.close()


def test_a_program_gets_its_root_and_its_variables_and_hands_over_log_and_exit_code(stage, monkeypatch):
    monkeypatch.setenv("SM_MODEL_DIR", "/elsewhere")
    monkeypatch.setenv("SAGEMAKER_BATCH", "true")
    running = stage.start(
        """
        import os, sys
        print(os.environ["SAGEMAKER_BASE_DIR"], os.environ["GIVEN"], sorted(n for n in os.environ if n[:2] == "SM"))
        print("SAGEMAKER_BATCH" in os.environ, os.environ["TMPDIR"] == os.getcwd(), file=sys.stderr)
        sys.exit(3)
        """,
        environment={"GIVEN": "too"},
    )
    assert running.wait(60) == 3
    assert sorted(stage.log.read_text().splitlines()) == sorted([f"{stage.root} too []", "False True"])
    assert running.address == ""


def test_what_the_folder_says_for_the_dockerfile(stage):
    folder = programs(stage.folder / "programs", train="import os; print(os.environ['FROM_IMAGE'], os.environ['HOST'])")
    (folder / "labels.json").write_text('{"a.label": "true"}')
    (folder / "environment.json").write_text('{"FROM_IMAGE": "yes", "HOST": "everywhere"}')
    (folder / "process.json").write_text('{"HOST": "here"}')
    made = ProcessSubject(folder)
    assert made.labels == {"a.label": "true"}
    stage.running.append(made.start(Start(Command.TRAIN, stage.root, stage.log)))
    assert stage.running[0].wait(60) == 0
    assert stage.log.read_text() == "yes here\n"
    stage.running.append(
        ProcessSubject(folder, as_contained=True).start(Start(Command.TRAIN, stage.root, stage.folder / "log"))
    )
    assert stage.running[1].wait(60) == 0
    assert (stage.folder / "log").read_text() == "yes everywhere\n"


@pytest.mark.parametrize("name", ["labels.json", "environment.json", "process.json"])
def test_a_table_that_is_none_is_named(tmp_path, name):
    folder = programs(tmp_path)
    (folder / name).write_text('{"a": 1}')
    with pytest.raises(SubjectError, match=f"{name} is not an object of strings"):
        ProcessSubject(folder)


def test_this_projects_tables_say_what_its_dockerfile_says():
    dockerfile = (OWN_PROGRAMS / "Dockerfile").read_text()
    for name, value in json.loads((OWN_PROGRAMS / "labels.json").read_text()).items():
        assert f"{name}={value}" in dockerfile
    for name, value in json.loads((OWN_PROGRAMS / "environment.json").read_text()).items():
        assert f"{name}={value}" in dockerfile


def test_a_program_of_another_language_is_executed(stage):
    folder = programs(stage.folder / "programs")
    (folder / "train").write_text("#!/bin/sh\necho shell\n")
    with pytest.raises(SubjectError, match="is not executable"):
        ProcessSubject(folder).start(Start(Command.TRAIN, stage.root, stage.log))
    (folder / "train").chmod(0o755)
    stage.running.append(ProcessSubject(folder).start(Start(Command.TRAIN, stage.root, stage.log)))
    assert stage.running[0].wait(60) == 0
    assert stage.log.read_text() == "shell\n"


def test_no_folder_and_no_program_are_named(tmp_path):
    with pytest.raises(SubjectError, match=r"nowhere is not a folder"):
        subject(None, tmp_path / "nowhere")
    with pytest.raises(SubjectError, match="holds no program named train"):
        subject(None, tmp_path).start(Start(Command.TRAIN, tmp_path, tmp_path / "log"))


def test_mounts_are_links_and_writing_below_a_read_only_one_is_told(stage, tmp_path):
    data, free = tmp_path / "data", tmp_path / "free"
    for folder in (data, free):
        (folder / "class").mkdir(parents=True)
        (folder / "class" / "a.txt").write_text("one")
    mounts = [Mount(data, "input/data/train"), Mount(free, "checkpoints", read_only=False)]
    (stage.root / "input/data/train").mkdir(parents=True)
    running = stage.start(
        """
        import os, pathlib, time
        root = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"])
        print((root / "input/data/train/class/a.txt").read_text())
        (root / "checkpoints/class/new").write_text("fine")
        """,
        mounts=mounts,
    )
    assert running.wait(60) == 0
    assert running.written() == []
    assert stage.log.read_text() == "one\n"
    (data / "class" / "a.txt").write_text("two")
    assert running.written() == ["input/data/train"]
    running.close()
    assert not list((stage.root / "input/data").iterdir())
    assert (data / "class" / "a.txt").exists()
    assert running.written() == ["input/data/train"]


def test_sigterm_reaches_only_who_has_a_handler(stage):
    running = stage.start("import time; print('up', flush=True); time.sleep(100)")
    stage.until(lambda: "up" in stage.log.read_text())
    running.terminate()
    assert running.wait(0.5) is None, "the first process of a container without a handler does not hear of it"
    running.kill()
    assert running.exit_code() == 137


def test_a_handler_hears_sigterm(stage):
    running = stage.start(
        """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        print("up", flush=True)
        time.sleep(100)
        """
    )
    stage.until(lambda: "up" in stage.log.read_text())
    running.terminate()
    assert running.wait(60) == 7


CHILDREN = """
    import subprocess, sys, time
    sleep = [sys.executable, "-c", "import time; time.sleep(100)"]
    child = subprocess.Popen(sleep)
    # Leaves the session, and its parent ends.
    daemon = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], start_new_session=True).pid, flush=True)"
    subprocess.run([sys.executable, "-c", daemon, *sleep], check=True)
    print("up", child.pid, flush=True)
    {end}
"""


def test_all_processes_are_known_and_end_together(stage):
    running = stage.start(CHILDREN.format(end="time.sleep(100)"))
    stage.until(lambda: "up" in stage.log.read_text())
    first, *others = running.processes()
    assert first == int(running.name)
    daemon, child = stage.log.read_text().split("\nup ")
    assert sorted(others) == sorted([int(daemon), int(child)])
    memory = running.memory_bytes()
    assert memory is not None
    assert memory > 5 * 2**20
    running.kill()
    assert running.exit_code() == 137
    assert running.memory_bytes() is None
    assert running.processes() == []
    assert not [process for process in others if psutil.pid_exists(process) and is_alive(process)]


def test_the_end_of_the_first_is_the_end_of_all(stage):
    running = stage.start(CHILDREN.format(end="sys.exit(0)"))
    assert running.wait(60) == 0
    daemon, child = (int(number) for number in stage.log.read_text().split("\nup "))
    assert not is_alive(daemon)
    assert not is_alive(child)


def is_alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_too_much_memory_is_the_end_of_a_process(stage):
    running = stage.start(
        "import time; held = bytearray(200 * 2**20); print('held', flush=True); time.sleep(100)",
        limits=Limits(memory_bytes=100 * 2**20),
    )
    assert running.wait(60) == 137


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_cpus_are_limited_to_whole_cores(stage):
    running = stage.start(
        "import os, time; time.sleep(0.5); print(len(os.sched_getaffinity(0)))", limits=Limits(cpus=0.5)
    )
    assert running.wait(60) == 0
    assert stage.log.read_text() == "1\n"


def test_serve_is_reached_at_its_address(stage):
    running = stage.start(command=Command.SERVE)
    stage.until(lambda: "serving" in stage.log.read_text())

    def answers() -> bool:
        try:
            with urllib.request.urlopen(running.address, timeout=5) as answer:
                return bool(answer.read().decode() == str(stage.root))
        except OSError:
            return False

    stage.until(answers)
    assert running.exit_code() is None
    scratch = Path(psutil.Process(int(running.name)).cwd())
    running.close()
    running.close()
    assert running.exit_code() == 137
    assert not scratch.exists()


def test_hosts_are_names_of_the_loopback(stage):
    made = ProcessSubject(programs(stage.folder / "programs"))
    with made.network(3) as network, made.network(2) as other:
        assert network.hosts == ("127.0.0.1", "127.0.0.3", "localhost")
        assert network.name == ""
        assert network.interface == "lo" or sys.platform != "linux"
        assert isinstance(network, LoopbackNetwork)
        assert isinstance(other, LoopbackNetwork)
        assert other.hosts == ("127.0.0.1", "localhost")
        assert network.port != other.port
        running = stage.start("import os; print(os.environ['MASTER_PORT'])", network=network)
        assert running.wait(60) == 0
        assert stage.log.read_text() == f"{network.port}\n"


def test_a_pause_is_a_start_of_the_interpreter(tmp_path):
    made = ProcessSubject(programs(tmp_path))
    assert 0.001 < made.pause_s() < 60
    assert made.pause_s() == made.pause_s()
