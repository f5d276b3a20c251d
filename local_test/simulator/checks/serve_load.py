"""An endpoint under load, one of whose processes dies, and one that is stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from local_test.simulator.checks import pages
from local_test.simulator.checks.check import (
    BlockedError,
    NotApplicableError,
    Outcome,
    Status,
    check,
    failed,
    judge,
    passed,
)
from local_test.simulator.checks.client import Answer, HalfSent, NoAnswerError, connect_seconds
from local_test.simulator.checks.context import Context
from local_test.simulator.checks.servers import Endpoint, Server

_LOAD = "under load"
_CRASH = "a process that dies"
_STOP = "stopping an endpoint"
_BATCH = "batch transform"
_MIB = 1024 * 1024
# What a server may keep for itself: threads' stacks, caches, an allocator's habits.
_GROWTH_BYTES = 48 * _MIB

_BATCH_ENVIRONMENT = (
    ("SAGEMAKER_BATCH", "true"),
    ("SAGEMAKER_BATCH_STRATEGY", "SINGLE_RECORD"),
    ("SAGEMAKER_MAX_CONCURRENT_TRANSFORMS", "1"),
    ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "6"),
)


@dataclass(frozen=True)
class Load:
    """What came of many clients asking at once.

    Args:
        answers: statuses, or why there was no answer.
        pings: seconds, or what was wrong.
        accepts: seconds until a connection was accepted.
    """

    answers: Sequence[int | str]
    pings: Sequence[float | str]
    accepts: Sequence[float]


@check("serve.ping-busy", "/ping answers 200 within 2 s while many clients ask", pages.SERVE, _LOAD)
def ping_busy(context: Context) -> Outcome:
    """An instance that does not is replaced."""
    pings = _load(context).pings
    wrong = next((ping for ping in pings if isinstance(ping, str)), None)
    slowest = max((ping for ping in pings if not isinstance(ping, str)), default=0.0)
    return judge(wrong, f"{len(pings)} pings, the slowest {slowest * 1000:.0f} ms")


@check("serve.accept-quick", "Connections are accepted within 250 ms while many clients ask", pages.SERVE, _LOAD)
def accept_quick(context: Context) -> Outcome:
    """Half of them at least: a machine may stumble once."""
    accepts, limit_s = sorted(_load(context).accepts), context.patience.accept_s
    middle = accepts[len(accepts) // 2]
    late = sum(seconds > limit_s for seconds in accepts)
    return judge(
        f"{late} of {len(accepts)} took longer" if middle > limit_s else None, f"mostly {middle * 1000:.1f} ms"
    )


@check("serve.concurrent", "Many clients at once are answered, or sent away with 503", pages.SERVE, _LOAD)
def concurrent(context: Context) -> Outcome:
    """8 of them."""
    answers = _load(context).answers
    wrong = [answer for answer in answers if answer not in (200, 503)]
    if wrong:
        return failed(f"{len(wrong)} of {len(answers)} were answered otherwise; the first: {wrong[0]}")
    good = answers.count(200)
    return judge(None if good else "nobody was answered with 200", f"{good} of {len(answers)} answered with 200")


@check("serve.memory", "Memory does not grow with the number of requests", pages.SERVE, _LOAD)
def memory(context: Context) -> Outcome:
    """Coarse: 48 MiB in 200 equal requests, or what is answered in 30 s, after 50 that do not count."""
    server, patience = context.servers.answering(), context.patience
    _repeat(server, patience.repeats // 4, patience.repeats_s / 4)
    before = server.running.memory_bytes()
    repeats = _repeat(server, patience.repeats, patience.repeats_s)
    after = server.running.memory_bytes()
    if before is None or after is None:
        return failed("it ended")
    told = f"{(after - before) / _MIB:+.1f} MiB in {repeats} requests, to {after / _MIB:.0f} MiB"
    return judge(told if after - before > _GROWTH_BYTES else None, told)


@check("serve.batch", "Serves with the variables of a batch transform", pages.BATCH, _BATCH)
def batch(context: Context) -> Outcome:
    """SAGEMAKER_BATCH=true and what a job may set."""
    context.servers.seconds_until_ready()
    server = context.servers.tried(Endpoint(environment=_BATCH_ENVIRONMENT))
    if server.ready_s is None:
        return failed(f"it does not get ready{server.last_words}")
    good = isinstance(server.first, Answer) and server.first.status == 200
    return judge(None if good else f"/invocations: {server.first}")


@check("serve.chunked", "Reads a body that is sent in chunks", pages.BATCH, _BATCH)
def chunked(context: Context) -> Outcome:
    """As batch transform sends it where MaxPayloadInMB is 0."""
    server = context.servers.shared(Endpoint(environment=_BATCH_ENVIRONMENT))
    try:
        answer = server.post(chunks=3)
    except NoAnswerError as error:
        return failed(str(error))
    return judge(None if answer.status == 200 else str(answer))


@check("serve.worker-crash", "Is back within seconds when one of its processes is killed", pages.SERVE, _CRASH)
def worker_crash(context: Context) -> Outcome:
    """First the largest, who holds the model, and then one that the first process has started itself."""
    context.servers.seconds_until_ready()
    with context.servers.fresh() as server:
        if not server.wait_until_ready():
            raise BlockedError("/ping was never 200: see serve.ready")
        processes = server.running.processes()
        if len(processes) < 2:
            raise NotApplicableError("it is one process")
        largest = max(processes[1:], key=_resident)
        direct = _parent(largest) == processes[0]
        outcome = _recovery(server, largest, context.patience.recover_s)
        if outcome.status is not Status.PASSED:
            return outcome
        own = [process for process in server.running.processes()[1:] if _parent(process) == processes[0]]
        if direct or not own:
            return outcome
        again = _recovery(server, max(own, key=_resident), context.patience.recover_s)
        return again if again.status is not Status.PASSED else passed(f"{outcome.detail}, and {again.detail}")


@check("serve.sigterm", "Ends by itself after SIGTERM, within 30 s", pages.SERVE, _STOP)
def sigterm(context: Context) -> Outcome:
    """Then comes SIGKILL."""
    stopped = _stopped(context)
    if stopped.code is None:
        return failed(f"still running {stopped.seconds:.0f} s after SIGTERM")
    return passed(f"after {stopped.seconds:.1f} s")


@check("serve.sigterm-code", "Ends with exit code 0 after SIGTERM", pages.SERVE, _STOP)
def sigterm_code(context: Context) -> Outcome:
    """Anything else looks like a crash in the log."""
    stopped = _stopped(context)
    if stopped.code is None:
        raise BlockedError("it had to be killed: see serve.sigterm")
    return judge(f"exit code {stopped.code}" if stopped.code else None)


@check("serve.sigterm-answers", "A request in hand is answered when SIGTERM comes", pages.SERVE, _STOP)
def sigterm_answers(context: Context) -> Outcome:
    """Half of its body is there before the signal, and half comes after it."""
    answer = _stopped(context).answer
    good = isinstance(answer, Answer) and answer.status == 200
    return judge(None if good else f"the request in hand: {answer}")


@dataclass(frozen=True)
class _Stopped:
    code: int | None
    seconds: float
    answer: Answer | str


def _stopped(context: Context) -> _Stopped:
    context.servers.seconds_until_ready()
    return context.once("stopped endpoint", lambda: _stop(context))


def _stop(context: Context) -> _Stopped:
    with context.servers.fresh() as server:
        if not server.wait_until_ready():
            raise BlockedError("/ping was never 200: see serve.ready")
        answer: Answer | str
        headers = {"Content-Type": server.serving.content_type, "Accept": "*/*"}
        request = HalfSent(
            server.running.address, "/invocations", server.serving.request, headers, context.patience.stop_serve_s
        )
        time.sleep(context.patience.settle_s)
        began = time.monotonic()
        server.running.terminate()
        time.sleep(context.patience.settle_s)
        try:
            answer = request.finish()
        except NoAnswerError as error:
            answer = str(error)
        code = server.running.wait(max(0.0, context.patience.stop_serve_s - (time.monotonic() - began)))
        return _Stopped(code, time.monotonic() - began, answer)


def _recovery(server: Server, victim: int, within_s: float) -> Outcome:
    """Kills a process, and waits until the service is back."""
    told = _told(victim)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    last = "nothing was asked"
    while time.monotonic() < began + within_s:
        if (code := server.running.exit_code()) is not None:
            return failed(f"all of it ended, with exit code {code}{', as if all were well' if code == 0 else ''}")
        try:
            ping, answer = server.ping(), server.post()
        except NoAnswerError as error:
            last = str(error)
        else:
            seconds = time.monotonic() - began
            last = f"/ping: {ping}; /invocations: {answer}"
            if ping.status == answer.status == 200 and seconds > server.patience.notice_s:
                return passed(f"{told} was killed: back after {seconds:.1f} s at the latest")
        time.sleep(0.05)
    return failed(f"not within {within_s:g} s; {last}")


def _load(context: Context) -> Load:
    server = context.servers.answering()
    return context.once("load", lambda: _ask_at_once(server))


def _ask_at_once(server: Server) -> Load:
    patience = server.patience
    answers: list[int | str] = []
    pings: list[float | str] = []
    accepts: list[float] = []
    end = time.monotonic() + patience.load_s

    def ask() -> None:
        while time.monotonic() < end:
            try:
                answers.append(server.post().status)
            except NoAnswerError as error:
                answers.append(str(error))

    clients = [threading.Thread(target=ask) for _ in range(patience.clients)]
    for client in clients:
        client.start()
    while time.monotonic() < end or not pings:
        time.sleep(0.05)
        accepts.append(connect_seconds(server.running.address, patience.ping_s))
        try:
            answer = server.ping()
            pings.append(answer.seconds if answer.status == 200 else str(answer))
        except NoAnswerError as error:
            pings.append(str(error))
    for client in clients:
        client.join()
    return Load(answers, pings, accepts)


def _repeat(server: Server, times: int, within_s: float) -> int:
    """Asks so many times, or for so long; how often it did."""
    deadline = time.monotonic() + within_s
    for number in range(times):
        if time.monotonic() > deadline:
            return number
        with contextlib.suppress(NoAnswerError):
            server.post()
    return times


def _told(process: int) -> str:
    try:
        return " ".join(psutil.Process(process).cmdline()[:3])[:60]
    except psutil.Error:
        return f"process {process}"


def _parent(process: int) -> int | None:
    try:
        return psutil.Process(process).ppid()
    except psutil.Error:
        return None


def _resident(process: int) -> int:
    try:
        return int(psutil.Process(process).memory_info().rss)
    except psutil.Error:
        return 0


CHECKS = (ping_busy, accept_quick, concurrent, memory)
CHECKS_APART = (sigterm, sigterm_code, sigterm_answers, worker_crash, batch, chunked)
