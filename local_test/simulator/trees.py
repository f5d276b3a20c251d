"""The processes that belong to a started program: who they are, what they hold, and their end.

A container has a boundary; a bare program has descendants, a session, and a mark in the environment that it hands on.
Whoever shows one of the three belongs to it, so that a daemon that left its parent and session is found as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

MARK = "LOCAL_TEST_SUBJECT"
"""Variable whose value is handed on to every descendant."""

_END_S = 10.0


def find(leader: int, mark: str) -> Sequence[psutil.Process]:
    """Those that run, the leader first; without zombies."""
    children = set()
    with contextlib.suppress(psutil.Error):
        children = {child.pid for child in psutil.Process(leader).children(recursive=True)}
    found = [process for process in psutil.process_iter() if _belongs(process, leader, children, mark)]
    return sorted(found, key=lambda process: (process.pid != leader, process.pid))


def memory_bytes(processes: Sequence[psutil.Process]) -> int:
    """Resident memory together; what several share counts once where the system tells it (Linux's PSS)."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            info = process.memory_full_info()
            total += getattr(info, "pss", 0) or info.rss
    return total


def kill(leader: int, mark: str) -> None:
    """SIGKILL to all, until none is left: one may start another while it is killed."""
    deadline = time.monotonic() + _END_S
    while True:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
        left = find(leader, mark)
        if not left or time.monotonic() > deadline:
            return
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.01)


def hears(process: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for a signal; True where the system does not tell.

    The kernel gives the first process of a container only signals that it has a handler for; a bare process would be
    ended by the others (pid_namespaces(7)).
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return True
    caught = next((line.split()[1] for line in lines if line.startswith("SigCgt:")), "")
    return not caught or bool(int(caught, 16) >> (number - 1) & 1)


def _belongs(process: psutil.Process, leader: int, children: set[int], mark: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if process.pid == leader or process.pid in children or os.getsid(process.pid) == leader:
            return True
        return process.environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False
