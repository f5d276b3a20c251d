"""Trials as forks of one process that has imported everything: `local_test/fork_server.py`, seen from the search.

A trial is a process of its own, as in `process`, for a fraction of the CPU time. Where a process cannot be forked, the
server says so and trials are started as `process` does. Called from one thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from scripts.launcher.errors import OutcomeError
from scripts.launcher.search.process import (
    GRACE_S,
    LOG,
    Order,
    Processes,
    Running,
    die_with_parent,
    environ_of,
    import_path,
)

_POLL_S = 0.05


class Forks:
    """Starts trials as forks; see `process.Starter`.

    The server is started with the first trial, and again after it was lost.

    Args:
        folder: for the server's log.
    """

    def __init__(self, folder: Path) -> None:
        self._log = folder / "fork-server.log"
        self._server: _Server | None = None
        self._processes = Processes()

    def start(self, order: Order) -> Running:
        """See `process.Starter`."""
        if self._server is not None and self._server.lost:
            self.close()
        if self._server is None:
            self._server = _Server(order, self._log)
        if self._server.refuses:
            return self._processes.start(order)
        return self._server.start(order)

    def close(self) -> None:
        """See `process.Starter`."""
        if self._server is not None:
            self._server.close()
        self._server = None


class _Server:
    """The server's process, and the codes of the trials that have ended.

    Attributes:
        refuses: why it cannot fork; empty when it can.
        codes: exit codes by process id.
        lost: it has ended unasked; the trials that ran have then got SIGTERM.
    """

    def __init__(self, order: Order, log: Path) -> None:
        with log.open("wb") as complaints:
            self._process = subprocess.Popen(  # noqa: S603  our own
                [order.job.python, "-m", "local_test.fork_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                # OpenMP reads its number of threads when it is loaded, so that all trials have the first one's.
                # numpy's OpenBLAS would start its threads right then, and training has no use for them.
                env=environ_of(order) | {"PYTHONPATH": import_path(), "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  the search has one thread
            )
        self._orders, self._answers = _pipe(self._process.stdin), _pipe(self._process.stdout)
        self._heard = b""
        self.codes: dict[int, int] = {}
        self.lost = False
        self._complaints = log
        try:
            self.refuses: str = self._answer()["ready"]
        except OutcomeError:
            self.close()
            raise

    def start(self, order: Order) -> Running:
        """Asks for a trial."""
        job = order.job
        job.cache.mkdir(parents=True, exist_ok=True)
        answer = self._ask(
            {
                "folder": str(order.folder.absolute()),
                "data": str(job.data.absolute()),
                "weights": str(job.weights.absolute()) if job.weights else "",
                "hyperparameters": dict(order.hyperparameters),
                "environ": environ_of(order),
                "cores": list(order.cores),
                "log": str((order.folder / LOG).absolute()),
            }
        )
        if "error" in answer:
            raise OutcomeError(answer["error"])
        return _Fork(self, answer["pid"])

    def signal(self, pid: int, name: str) -> None:
        """Sends a trial a signal, unless it has ended."""
        self._write({"stop": pid, "signal": name})

    def hear(self, timeout_s: float = 0.0) -> list[dict[str, Any]]:
        """Takes the ends of trials in, and returns the other answers that came within the time."""
        ready, _, _ = select.select([self._answers], [], [], 0 if self.lost else timeout_s)
        if not ready or self.lost:
            return []
        more = os.read(self._answers.fileno(), 2**16)
        self.lost = not more
        *lines, self._heard = (self._heard + more).split(b"\n")
        others = []
        for said in map(json.loads, lines):
            if "ended" in said:
                self.codes[said["ended"]] = said["code"]
            else:
                others.append(said)
        return others

    def close(self) -> None:
        """Ends the server, which ends by itself when nobody can tell it anything more."""
        with contextlib.suppress(BrokenPipeError):  # what it was not told any more
            self._orders.close()
        self._answers.close()
        self._process.wait()

    def _ask(self, order: Mapping[str, object]) -> dict[str, Any]:
        self._write(order)
        return self._answer()

    def _write(self, order: Mapping[str, object]) -> None:
        try:
            self._orders.write(json.dumps(order).encode() + b"\n")
            self._orders.flush()
        except BrokenPipeError:
            self.lost = True

    def _answer(self) -> dict[str, Any]:
        while not self.lost:
            for said in self.hear(timeout_s=_POLL_S):
                return said
        raise OutcomeError(f"the process that starts the trials has ended; see {self._complaints}")


class _Fork:
    """See `process.Running`."""

    def __init__(self, server: _Server, pid: int) -> None:
        self._server = server
        self.pid = pid

    def poll(self) -> int | None:
        """See `process.Running`."""
        self._server.hear()
        if self.pid not in self._server.codes and self._server.lost and not Path(f"/proc/{self.pid}").exists():
            # Nobody is left who could say how it ended.
            self._server.codes[self.pid] = 1
        return self._server.codes.get(self.pid)

    def stop(self) -> None:
        """See `process.Running`."""
        self._server.signal(self.pid, "SIGTERM")

    def wait(self) -> None:
        """See `process.Running`."""
        deadline = time.monotonic() + GRACE_S
        while self.poll() is None:
            if time.monotonic() > deadline:
                self._server.signal(self.pid, "SIGKILL")
                deadline += GRACE_S
            self._server.hear(timeout_s=_POLL_S)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ValueError("the process was started without this pipe")
    return pipe
