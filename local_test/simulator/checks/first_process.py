"""What the first process of a subject is: the program itself, or something in front of it."""

from __future__ import annotations

from pathlib import Path

import psutil

from local_test.simulator.subjects import Running

_IN_FRONT = frozenset({"sh", "bash", "dash", "ash", "zsh", "tini", "tini-static", "docker-init", "dumb-init"})


def first_process(running: Running) -> str:
    """Its command line; empty where this machine does not tell."""
    processes = running.processes()
    if not processes:
        return ""
    try:
        return " ".join(psutil.Process(processes[0]).cmdline())
    except psutil.Error:
        return ""


def problem_of_first_process(command_line: str) -> str | None:
    """Why SIGTERM would not reach the program, which AWS's page demands; None when nothing is in front of it."""
    program = Path(command_line.partition(" ")[0]).name
    if program in _IN_FRONT:
        return f"the first process is {command_line[:200]!r}; write the ENTRYPOINT in exec form, or `exec` the program"
    return None
