"""The process that executes calls by the SDK, and its log.

Knows how Compose writes the lines of its containers; does not know what the calls are about.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from scripts.launcher.local import engine
from scripts.launcher.local.folders import SCRATCH
from scripts.launcher.local.sdk import COMPLAINT
from scripts.launcher.plan import Call

TROUBLE = re.compile(r"\b(ERROR|CRITICAL)\b")
"""In a line of the log: the image says why something failed."""

_REPOSITORY = Path(__file__).resolve().parents[3]
# The engine gives a container 64 MB, too little for the processes that load images; training instances give more.
_SHARED_MEMORY = "2gb"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# `9tgd4wk1o2-algo-1-x7c2q | text`, more blanks where the names differ in length.
_CONTAINER = re.compile(r"\S*?(?P<host>algo-\d+)-\w+ *\| ?")
# What Compose says itself, in its first and its later versions.
_COMPOSE = re.compile(
    r"(Creating|Attaching to|Aborting on|Gracefully|Stopping|Killing) |(Container|Network) \S+ +\w+$|\[\+\] |"
    r"(\S+ exited with code )?\d+$"
)


@dataclass(frozen=True, slots=True)
class Task:
    """What is executed, and how it is found again.

    Attributes:
        calls: in order.
        folder: of the job or endpoint; the SDK works in a folder below it.
        project: name of the Compose project.
        image: that the calls run.
        grace_s: seconds from SIGTERM to SIGKILL.
    """

    calls: Sequence[Call]
    folder: Path
    project: str
    image: str
    grace_s: int


def start(task: Task, port: int, log: int | IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts `sdk` on the calls.

    Args:
        task: what to execute.
        port: of 127.0.0.1, for what serves.
        log: takes standard output and standard error.
    """
    scratch = task.folder / SCRATCH
    scratch.mkdir(parents=True)
    # Nothing of the account goes into the containers, which the SDK would give the credentials that it finds.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHON"))}
    environ |= {
        "AWS_EC2_METADATA_DISABLED": "true",
        "COMPOSE_PROJECT_NAME": task.project,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join((str(_REPOSITORY), str(_REPOSITORY / "container"))),
        "PYTHONUNBUFFERED": "1",
    }
    plan = {
        "scratch": str(scratch.resolve()),
        "port": port,
        "container": {"stop_grace_period": f"{task.grace_s}s", "shm_size": _SHARED_MEMORY},
        "calls": [{"operation": call.operation, "parameters": call.parameters} for call in task.calls],
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.launcher.local.sdk"],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environ,
        # Ctrl-C is for the command, which stops the containers; Compose would be quicker to kill them.
        start_new_session=True,
    )
    with _pipe(process.stdin) as pipe:
        pipe.write(json.dumps(plan).encode())
    return process


class Execution:
    """A task that is followed to its end; its containers and the SDK's files are gone when it is left.

    Attributes:
        code: exit code, once it was followed.
        complaint: what the SDK reported, empty when nothing; the containers' own words say more.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._process = start(task, engine.free_port(), subprocess.PIPE)
        self.code = -1
        self.complaint = ""

    def __enter__(self) -> Execution:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        _pipe(self._process.stdout).close()
        engine.remove(self._task.project)
        engine.remove_folder(self._task.folder / SCRATCH, self._task.image)

    def follow(self, tell: Callable[[str], None], interrupted: Callable[[], None]) -> None:
        """Tells every line until the process ends.

        Args:
            tell: takes one line of a container, or of the SDK.
            interrupted: called after Ctrl-C, before the containers are stopped; a second Ctrl-C is not caught.
        """
        try:
            self._read(tell)
        except KeyboardInterrupt:
            interrupted()
            self.stop()
            self._read(tell)
        self.code = self._process.wait()

    def stop(self) -> None:
        """SIGTERM to the containers; before there are any, to the process that would start them."""
        if not engine.stop(self._task.project, self._task.grace_s) and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)

    def _read(self, tell: Callable[[str], None]) -> None:
        for line in _pipe(self._process.stdout):
            text = plain(line)
            if COMPLAINT in text:
                self.complaint = text
            elif text:
                tell(text)


def plain(line: bytes) -> str:
    """A line of the log as the container wrote it, with the host before it unless it is the first; empty for Compose's.

    Args:
        line: as Compose writes it, with colours and the container's name.
    """
    text = _ANSI.sub("", line.decode(errors="replace")).strip()
    match = _CONTAINER.match(text)
    if match is None:
        return "" if _COMPOSE.match(text) else text
    host = match["host"]
    return ("" if host == "algo-1" else f"[{host}] ") + text[match.end() :]


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise AssertionError("the process was started without this pipe")
    return stream
