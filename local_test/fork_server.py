"""Starts training jobs without starting Python anew: each is a fork of this process, which has imported everything.

    python -m local_test.fork_server

Importing torch and what stands on it costs several times what teaching a head on stored features does; a search of many
small jobs pays it once. A job so started is still a process of its own, with its own session, folder, environment, log
and exit code, and runs what `container/train` runs.

Reads one JSON object a line and writes one a line. First `{"ready": ""}`, or why nothing can be forked here. Then:

    {"folder", "data", "weights", "hyperparameters", "environ", "cores", "log"}  ->  {"pid"} or {"error"}
    {"stop": pid, "signal": "SIGTERM"}                                           ->  nothing
    a job has ended                                                              ->  {"ended": pid, "code"}

Ends with its input, or when whoever started it dies; its jobs then get SIGTERM. Only a process with one thread that has
not begun to use CUDA can be forked: both are looked at before every fork.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import IO, Any

from dogbreed.__main__ import main as dogbreed
from dogbreed.deferred import defer_compiler
from local_test.stage import StageError, stage

_POLL_S = 0.05
# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_TASKS = Path("/proc/self/task")


def serve(orders: int, answers: IO[str]) -> None:
    """Starts what it is told to until its input ends.

    Args:
        orders: file descriptor to read from.
        answers: takes a line for each order that wants one, and for each job that has ended.
    """

    def answer(said: Mapping[str, object]) -> None:
        answers.write(json.dumps(said) + "\n")
        answers.flush()

    jobs: dict[int, ForkProcess] = {}
    own = (orders, answers.fileno())
    heard = b""
    answer({"ready": why_not()})
    while True:
        readable, _, _ = select.select([orders], [], [], _POLL_S if jobs else None)
        for pid, job in list(jobs.items()):
            if job.exitcode is not None:
                del jobs[pid]
                answer({"ended": pid, "code": job.exitcode})
        if not readable:
            continue
        more = os.read(orders, 2**16)
        if not more:
            for pid in jobs:
                _signal(jobs, pid, signal.SIGTERM)
            return
        *lines, heard = (heard + more).split(b"\n")
        for order in map(json.loads, lines):
            if "stop" in order:
                _signal(jobs, order["stop"], signal.Signals[order["signal"]])
                continue
            try:
                job = _start(order, own)
            except (OSError, StageError) as error:
                answer({"error": str(error)})
                continue
            jobs[job.ident or 0] = job
            answer({"pid": job.ident})


def prepare() -> None:
    """Imports what a job imports, and keeps the garbage collector from touching, and so copying, those pages."""
    defer_compiler()
    from dogbreed.training import job

    del job
    gc.collect()
    gc.freeze()


def why_not() -> str:
    """Why this process cannot be forked; empty when it can."""
    torch = sys.modules.get("torch")
    if sys.platform != "linux":
        return f"{sys.platform} does not let a process go on after a fork"
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is in use, which a fork cannot use any more"
    threads = len(list(_TASKS.iterdir()))
    return f"there are {threads} threads, of which a fork has one" if threads > 1 else ""


def _start(order: Mapping[str, Any], own: Sequence[int]) -> ForkProcess:
    """Lays the job's folder out and starts it. Raises `StageError` or `OSError`, whose sentence is for the user."""
    if refused := why_not():
        raise StageError(f"no job can be forked: {refused}")
    weights = Path(order["weights"]) if order["weights"] else None
    stage(Path(order["folder"]), data=Path(order["data"]), weights=weights, hyperparameters=order["hyperparameters"])
    job = multiprocessing.get_context("fork").Process(target=_train, args=(order, os.getpid(), own))
    job.start()
    return job


def _train(order: Mapping[str, Any], parent: int, pipes: Sequence[int]) -> None:
    """What the fork does: becomes a process that owes nothing to this one, and trains."""
    for one in pipes:  # so that their other ends see when the parent is gone
        os.close(one)
    os.setsid()  # Ctrl-C is for whoever gives the orders
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before it could be told
        sys.exit(1)
    os.environ.clear()
    os.environ.update(order["environ"])
    if order["cores"]:
        os.sched_setaffinity(0, order["cores"])
    _redirect(os.devnull, os.O_RDONLY, 0)
    _redirect(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 1)
    os.dup2(1, 2)
    sys.exit(dogbreed(["train"]))


def _redirect(path: str, flags: int, to: int) -> None:
    opened = os.open(path, flags, 0o666)
    os.dup2(opened, to)
    os.close(opened)


def _signal(jobs: Mapping[int, ForkProcess], pid: int, number: signal.Signals) -> None:
    """To the job and all that it has started; nobody else can have its id, for it is waited for here."""
    if pid not in jobs:
        return
    try:
        os.killpg(pid, number)
    except ProcessLookupError:  # it has no session of its own yet
        os.kill(pid, number)


def main() -> int:
    """The command. Returns its exit code."""
    prepare()
    # A job writes to its log, where this process writes answers.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        serve(os.dup(0), answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
