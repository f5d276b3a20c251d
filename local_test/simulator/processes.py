"""A pair of bare programs as a subject: `train` and `serve` of a folder, started on a temporary /opt/ml.

What a container would give them is stood in for as far as a process of this machine can have it:

- `SAGEMAKER_BASE_DIR` names the root; a program that does not know it cannot run this way. Paths below /opt/ml in the
  files of input/config and in the given environment become paths below the root.
- Mounts are links, so data is read where it lies, when it is read. Whether it was written to is looked up afterwards.
- The first process gets only signals that it has a handler for, and its end is the end of all, as in a container.
- `TMPDIR` is a folder of its own. /tmp itself is shared.
- Memory is looked at four times a second, and the largest process is killed when it is too much; processor time is
  limited to whole cores.
- Network isolation is not enforced.
- `labels.json` and `environment.json` beside the programs stand for LABEL and ENV of the Dockerfile.
- `process.json` holds variables that keep to this machine what a container's walls keep to it, such as a server to
  127.0.0.1, where alone a container's port is published.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from local_test.simulator import snapshots, trees
from local_test.simulator.subjects import Command, Limits, Mount, Network, Start, SubjectError

# What the platform or its toolkits set; that of the caller's shell is no part of a job.
_NOT_INHERITED = ("SM_", "SAGEMAKER_", "TRAINING_JOB_", "SMDEBUG_")
_LOOK_S = 0.25
_ROOT = "/opt/ml"


@dataclass(frozen=True)
class LoopbackNetwork(Network):
    """Names of the loopback device.

    Args:
        port: on which torch's processes meet, `MASTER_PORT`: networks of containers are apart, jobs of one machine
            would meet each other.
    """

    port: int = 0


class ProcessSubject:
    """Programs `train` and `serve` in a folder. Python programs run with this interpreter.

    Args:
        programs: the folder.
        as_contained: without the variables of process.json, as the programs run inside a container.
    """

    def __init__(self, programs: Path, *, as_contained: bool = False) -> None:
        self._programs = programs.resolve()
        if not self._programs.is_dir():
            raise SubjectError(f"{programs} is not a folder; name one that holds executables train and serve")
        self._labels = _table(self._programs / "labels.json")
        self._environment = _table(self._programs / "environment.json")
        if not as_contained:
            self._environment |= _table(self._programs / "process.json")
        self._pause_s: float | None = None

    @property
    def title(self) -> str:
        """Its folder, relative where that is shorter."""
        return f"process {os.path.relpath(self._programs)}/"

    @property
    def labels(self) -> Mapping[str, str]:
        """What labels.json holds."""
        return self._labels

    def start(self, start: Start) -> ProcessRunning:
        """Starts a program; see `Subject.start`."""
        command = self._command(start.command)
        port = (start.port or free_port()) if start.command is Command.SERVE else None
        scratch = Path(tempfile.mkdtemp(prefix="subject-"))
        mark = uuid.uuid4().hex
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        environment |= self._environment | {"SAGEMAKER_BASE_DIR": str(start.root), "TMPDIR": str(scratch)}
        if isinstance(start.network, LoopbackNetwork):
            environment["MASTER_PORT"] = str(start.network.port)
        if port:
            environment["SAGEMAKER_BIND_TO_PORT"] = str(port)
        environment |= {name: _moved(value, start.root) for name, value in start.environment.items()}
        environment[trees.MARK] = mark
        _move_config(start.root)
        links = [_link(start.root, mount) for mount in start.mounts]
        watched = {mount.target: mount.source for mount in start.mounts if mount.read_only}
        before = {target: snapshots.take(source) for target, source in watched.items()}
        start.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with start.log.open("ab") as log:
                process = subprocess.Popen(  # noqa: S603  what the user named
                    command,
                    cwd=scratch,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise SubjectError(f"{command[0]} cannot be started: {error.strerror}; is it an executable?") from error
        address = f"http://127.0.0.1:{port}" if port else ""
        return ProcessRunning(
            process,
            mark=mark,
            address=address,
            limits=start.limits,
            watched=watched,
            before=before,
            made=[*links, scratch],
        )

    @contextmanager
    def network(self, count: int) -> Iterator[Network]:
        """Names of the loopback; more than two of them exist on Linux only."""
        names = ["127.0.0.1", "localhost", *(f"127.0.0.{number}" for number in range(3, count + 1))][:count]
        interface = next((name for name in psutil.net_if_addrs() if name.startswith("lo")), "lo")
        yield LoopbackNetwork(tuple(sorted(names)), interface, port=free_port())

    def pause_s(self) -> float:
        """Time of a start of this interpreter."""
        if self._pause_s is None:
            began = time.monotonic()
            subprocess.run([sys.executable, "-c", "pass"], check=True)
            self._pause_s = time.monotonic() - began
        return self._pause_s

    def _command(self, command: Command) -> list[str]:
        program = self._programs / command
        if not program.is_file():
            raise SubjectError(f"{self._programs} holds no program named {command}; a subject has train and serve")
        with program.open("rb") as file:
            first_line = file.readline(200)
        if first_line.startswith(b"#!") and b"python" in first_line:
            return [sys.executable, str(program)]
        if not os.access(program, os.X_OK):
            raise SubjectError(f"{program} is not executable and does not begin with #! and python; chmod +x it")
        return [str(program)]


class ProcessRunning:
    """A started program and all that it started; see `Running`.

    Args:
        process: the first.
        mark: of all of them.
        address: base URL, or empty.
        limits: looked after until its end.
        watched: target -> folder of the mounts that are only read.
        before: what those held at the start.
        made: links and folders to remove at the end.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        *,
        mark: str,
        address: str,
        limits: Limits,
        watched: Mapping[str, Path],
        before: Mapping[str, snapshots.Snapshot],
        made: Sequence[Path],
    ) -> None:
        self._process = process
        self._mark = mark
        self._address = address
        self._watched = watched
        self._before = before
        self._made = made
        # Popen.poll is not to be called by two threads at once.
        self._lock = threading.Lock()
        self._swept = False
        if limits.cpus is not None:
            self._bind(limits.cpus)
        if limits.memory_bytes is not None:
            threading.Thread(target=self._look_after, args=(limits.memory_bytes,), daemon=True).start()

    @property
    def name(self) -> str:
        """The process's id."""
        return str(self._process.pid)

    @property
    def address(self) -> str:
        """Base URL, or empty for train."""
        return self._address

    def exit_code(self) -> int | None:
        """None while it runs; 128 + number for a signal."""
        with self._lock:
            code = self._process.poll()
            if code is None:
                return None
            if not self._swept:
                self._swept = True
                trees.kill(self._process.pid, self._mark)
        return code if code >= 0 else 128 - code

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None when it still runs."""
        deadline = time.monotonic() + timeout_s
        while (code := self.exit_code()) is None and time.monotonic() < deadline:
            time.sleep(min(0.02, max(0.0, deadline - time.monotonic())))
        return code

    def terminate(self) -> None:
        """SIGTERM to the first process, if it has a handler for it."""
        if self.exit_code() is None and trees.hears(self._process.pid, signal.SIGTERM):
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to all."""
        if self.exit_code() is None:
            trees.kill(self._process.pid, self._mark)
            self.wait(10)

    def memory_bytes(self) -> int | None:
        """Resident memory of all; None after the end."""
        return None if self.exit_code() is not None else trees.memory_bytes(trees.find(self._process.pid, self._mark))

    def processes(self) -> Sequence[int]:
        """Ids of all that run."""
        if self.exit_code() is not None:
            return []
        return [process.pid for process in trees.find(self._process.pid, self._mark)]

    def written(self) -> Sequence[str]:
        """Targets whose folders are not as they were."""
        return sorted(target for target, source in self._watched.items() if self._changed(target, source))

    def close(self) -> None:
        """Kills what runs; removes links and scratch."""
        self.kill()
        for path in self._made:
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)

    def _changed(self, target: str, source: Path) -> bool:
        try:
            return snapshots.take(source) != self._before[target]
        except FileNotFoundError:
            return True

    def _bind(self, cpus: float) -> None:
        # macOS has no affinity.
        if hasattr(os, "sched_setaffinity"):
            available = sorted(os.sched_getaffinity(0))
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self._process.pid, available[: max(1, math.ceil(cpus))])

    def _look_after(self, limit_bytes: int) -> None:
        """Kills the largest process when all together hold more than the limit, as the kernel does in a container."""
        while self.exit_code() is None:
            processes = trees.find(self._process.pid, self._mark)
            if trees.memory_bytes(processes) > limit_bytes:
                largest = max(processes, key=lambda process: trees.memory_bytes([process]))
                with contextlib.suppress(psutil.Error):
                    largest.kill()
            time.sleep(_LOOK_S)


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _moved(value: str, root: Path) -> str:
    """A path below /opt/ml as one below the root; anything else as it is."""
    return f"{root}{value.removeprefix(_ROOT)}" if value == _ROOT or value.startswith(f"{_ROOT}/") else value


def _move_config(root: Path) -> None:
    """Moves the paths in the strings of the platform's files, of which checkpointconfig.json has one."""
    for file in (root / "input" / "config").glob("*.json"):
        text = file.read_text(encoding="utf-8")
        moved = text.replace(f'"{_ROOT}/', f'"{root}/').replace(f'"{_ROOT}"', f'"{root}"')
        if moved != text:
            file.write_text(moved, encoding="utf-8")


def _link(root: Path, mount: Mount) -> Path:
    link = root / mount.target
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    elif link.is_dir():
        # The empty folder that stands for a mount point.
        link.rmdir()
    link.symlink_to(mount.source)
    return link


def _table(file: Path) -> dict[str, str]:
    """An object of strings in a JSON file; empty when there is none."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SubjectError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise SubjectError(f'{file} is not an object of strings, as in {{"name": "value"}}')
    return found
