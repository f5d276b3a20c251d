"""An endpoint gets ready, says so truly, and leaves the disk as it is."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import urlsplit

from local_test.simulator.checks import pages
from local_test.simulator.checks.check import NotApplicableError, Outcome, check, failed, judge, passed
from local_test.simulator.checks.client import Answer, NoAnswerError
from local_test.simulator.checks.context import Context
from local_test.simulator.checks.first_process import first_process as first_process_of
from local_test.simulator.checks.first_process import problem_of_first_process
from local_test.simulator.checks.jobs import files_in
from local_test.simulator.checks.servers import Endpoint, Model, Server

_GROUP = "an endpoint"
_MODELS = "an endpoint without a usable model"

BIND_LABEL = "com.amazonaws.sagemaker.capabilities.accept-bind-to-port"
# Any but the default.
_OTHER_PORT = 18081
_POLL_S = 0.1


@check("serve.ready", "Starts by the word `serve`, and /ping is 200 within the start-up window", pages.SERVE, _GROUP)
def ready(context: Context) -> Outcome:
    """8 minutes, unless the variant says otherwise."""
    server = context.servers.tried()
    if server.ready_s is not None:
        return passed(f"after {server.ready_s:.1f} s")
    code = server.running.exit_code()
    if code is not None:
        return failed(f"it ended with exit code {code}{server.last_words}")
    try:
        last = f"/ping was {server.ping()}"
    except NoAnswerError as error:
        last = str(error)
    return failed(f"not after {context.patience.ready_s:g} s: {last}{server.last_words}")


@check("serve.ping-honest", "/ping is not 200 before /invocations can answer", pages.SERVE, _GROUP)
def ping_honest(context: Context) -> Outcome:
    """Traffic comes with the first 200."""
    first = context.servers.shared().first
    good = isinstance(first, Answer) and first.status == 200
    return judge(None if good else f"right after the first 200 of /ping, /invocations: {first}")


@check("serve.first-process", "The program is the first process: no shell and no init before it", pages.SERVE, _GROUP)
def first_process(context: Context) -> Outcome:
    """Or SIGTERM goes to what is."""
    found = first_process_of(context.servers.shared().running)
    if not found:
        raise NotApplicableError("this machine does not tell its processes")
    return judge(problem_of_first_process(found), found[:120])


@check("serve.all-interfaces", "Listens on all interfaces", pages.SERVE, _GROUP)
def all_interfaces(context: Context) -> Outcome:
    """What listens on 127.0.0.1 is not heard from outside its container."""
    address = context.servers.shared().running.address
    if context.contained:
        return passed("reached from outside the container")
    found = _listening(urlsplit(address).port or 0)
    if not found:
        raise NotApplicableError("this machine does not tell who listens")
    return judge(None if found & {"00000000", "0" * 32} else "it listens on 127.0.0.1 alone; bind to 0.0.0.0")


@check("serve.bind-to-port", "Listens where SAGEMAKER_BIND_TO_PORT says", pages.PIPELINE, "an endpoint on another port")
def bind_to_port(context: Context) -> Outcome:
    """Of a process nothing else is ever asked."""
    return judge(None if _binds(context) else _promise(context))


@check(
    "serve.bind-label",
    "Carries the label accept-bind-to-port if, and only if, it honours it",
    pages.PIPELINE,
    "an endpoint on another port",
)
def bind_label(context: Context) -> Outcome:
    """Without it pipelines and multi-container endpoints refuse the image."""
    labels = context.subject.labels
    if not labels and not context.contained:
        raise NotApplicableError("the programs have no labels.json that would stand for an image's labels")
    labelled = labels.get(BIND_LABEL) == "true"
    if labelled == _binds(context):
        return passed("labelled, and honoured" if labelled else "neither labelled nor honoured")
    return failed(
        f"{BIND_LABEL}=true, and the port is not honoured" if labelled else f"honoured; add LABEL {BIND_LABEL}=true"
    )


@check("serve.broken-model", "/ping is not 200 with model files that cannot be read", pages.SERVE, _MODELS)
def broken_model(context: Context) -> Outcome:
    """Every file of the model is cut in half and garbled."""
    return _without(context, Model.BROKEN)


@check("serve.missing-model", "/ping is not 200 without a model", pages.SERVE, _MODELS)
def missing_model(context: Context) -> Outcome:
    """The model folder is empty."""
    return _without(context, Model.MISSING)


@check("serve.model-read-only", "Works with a model folder that is only read", pages.SERVE, _GROUP)
def model_read_only(context: Context) -> Outcome:
    """As it is mounted in hosting."""
    server = context.servers.answering()
    return judge("it wrote into the model folder" if server.running.written() else None)


@check("serve.nothing-written", "Leaves nothing below /opt/ml", pages.SERVE, _GROUP)
def nothing_written(context: Context) -> Outcome:
    """Scratch is /tmp."""
    server = context.servers.answering()
    left = [name for name in files_in(server.root) if name != "model"]
    return judge(f"left {', '.join(left[:5])}" if left else None)


@check("serve.isolated", "Needs no network", pages.ISOLATION, "an endpoint without a network")
def isolated(context: Context) -> Outcome:
    """EnableNetworkIsolation; only a container can be held in one."""
    if not context.contained:
        raise NotApplicableError("bare programs cannot be kept from the network")
    context.servers.seconds_until_ready()
    server = context.servers.tried(Endpoint(isolated=True))
    if server.ready_s is None:
        return failed(f"without a network it does not get ready{server.last_words}")
    answered = isinstance(server.first, Answer) and server.first.status == 200
    return judge(None if answered else f"without a network /invocations: {server.first}")


def _binds(context: Context) -> bool:
    def look() -> bool:
        if not context.contained:
            return context.servers.tried().ready_s is not None
        unpromised_s = context.servers.unpromised_s()
        promised = context.subject.labels.get(BIND_LABEL) == "true"
        server = context.servers.tried(Endpoint(port=_OTHER_PORT), None if promised else unpromised_s)
        return server.ready_s is not None

    return context.once("binds", look)


def _promise(context: Context) -> str:
    if context.subject.labels.get(BIND_LABEL) == "true" or not context.contained:
        return "nobody answers on the port that it names"
    raise NotApplicableError("it carries no label that would promise so; it cannot be part of a pipeline")


def _without(context: Context, model: Model) -> Outcome:
    """Watches an endpoint for twice the time in which it gets ready with a good model."""
    watch_s = max(context.patience.broken_s, 2 * context.servers.seconds_until_ready())
    last = "the port stayed closed"
    with context.servers.fresh(Endpoint(model=model)) as server:
        while time.monotonic() < server.began + watch_s:
            if (code := server.running.exit_code()) is not None:
                return passed(f"it ended with exit code {code}")
            try:
                answer = server.ping()
            except NoAnswerError as error:
                last = str(error)
            else:
                last = f"/ping was {answer}"
                if answer.status == 200:
                    return _ready_without(server, model)
            time.sleep(_POLL_S)
    return passed(last)


def _ready_without(server: Server, model: Model) -> Outcome:
    try:
        answer = server.post()
    except NoAnswerError as error:
        return failed(f"/ping is 200, and {error}")
    if answer.status == 200 and model is Model.MISSING:
        raise NotApplicableError("it answers without a model folder: it carries a model of its own")
    return failed(f"/ping is 200; /invocations: {answer}")


def _listening(port: int) -> set[str]:
    """Local addresses, as /proc/net has them, on which somebody listens on this port."""
    found = set()
    for file in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        try:
            lines = file.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            address, _, number = fields[1].partition(":")
            if fields[3] == "0A" and int(number, 16) == port:
                found.add(address)
    return found


CHECKS = (
    ready,
    ping_honest,
    first_process,
    all_interfaces,
    model_read_only,
    nothing_written,
)
CHECKS_APART = (bind_to_port, bind_label, broken_model, missing_model, isolated)
