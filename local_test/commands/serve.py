"""Serve a model as a SageMaker endpoint.

    python -m local_test serve dogs --process --model build/ml/model
    python -m local_test serve dogs --image dogbreed:latest --model model.tar.gz --instances 2
    python -m local_test serve many --process --models folder/of/tarballs --models-memory-mb 2000

Clients need nothing but the address:

    boto3.client("sagemaker-runtime", endpoint_url="http://127.0.0.1:8000").invoke_endpoint(EndpointName="dogs", ...)
    AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=http://127.0.0.1:8000 scripts/launch.py predict dogs photo.jpg

Ctrl-C, SIGTERM and `python -m local_test stop NAME` end it. Logs and events stay in build/platform/endpoints/NAME.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from local_test.cli import UsageError
from local_test.simulator import choosing, consoles, instance_types, state
from local_test.simulator.hosting import board, rules, service
from local_test.simulator.hosting.board import Board
from local_test.simulator.hosting.endpoint import Several
from local_test.simulator.hosting.events import Events
from local_test.simulator.hosting.fleet import NotInServiceError
from local_test.simulator.hosting.rules import MIB, Health, Invocations
from local_test.simulator.hosting.service import Asynchronous, Plan, Service
from local_test.simulator.hosting.unpacking import ArchiveError
from local_test.simulator.subjects import Limits

ENDPOINTS = state.PLATFORM / "endpoints"
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_CONTAINER_ROOT = "/opt/ml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="of the endpoint")
    choosing.add_arguments(parser)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=Path, metavar="TAR", help="model.tar.gz, or a folder with its content")
    model.add_argument("--models", type=Path, metavar="DIR", help="multi-model: a folder of such tarballs")
    parser.add_argument("--port", type=int, default=8000, help="of the endpoint, 0 for any (default %(default)s)")
    parser.add_argument(
        "--direct",
        type=int,
        metavar="PORT",
        help="another port, past the service: its connections go to an instance as they are, for its pages and /ping; "
        "0 for any",
    )
    add_instance_arguments(parser)
    parser.add_argument(
        "--bind-to-port", type=int, metavar="PORT", help="that the subject must listen on, as behind a pipeline"
    )
    numbers = parser.add_argument_group("the platform's numbers")
    numbers.add_argument("--payload-mb", type=float, metavar="MB", help="limit of a body: 25; 6 is the API model's")
    numbers.add_argument("--timeout", type=float, metavar="S", help="for an answer: 60, async 900")
    numbers.add_argument("--ping-every", type=float, default=5, metavar="S", help="default %(default)s")
    numbers.add_argument(
        "--ping-failures", type=int, default=3, metavar="N", help="in a row, then it is replaced (default %(default)s)"
    )
    kinds = parser.add_argument_group("kinds of endpoints")
    kinds.add_argument(
        "--serverless", type=int, metavar="GB", help="memory 1 to 6; 4 MB, 3 min to start, one request at an instance"
    )
    kinds.add_argument("--async", dest="asynchronous", action="store_true", help="InvokeEndpointAsync, 1 GB")
    kinds.add_argument(
        "--async-at-once", type=int, default=4, metavar="N", help="requests at one instance (default %(default)s)"
    )
    kinds.add_argument(
        "--s3", type=Path, default=state.PLATFORM / "s3", metavar="DIR", help="stands for S3 (%(default)s)"
    )
    kinds.add_argument("--models-memory-mb", type=int, metavar="MB", help="over it, idle models are unloaded")


def add_instance_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what endpoints and transform jobs have in common."""
    parser.add_argument("--instances", type=int, default=1, metavar="N", help="default %(default)s")
    parser.add_argument("--instance-type", metavar="ml.TYPE", help="its memory and processors; without, no limits")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="variable of the container")
    parser.add_argument(
        "--start-timeout", type=float, metavar="S", help="to the first 200 of /ping: 480, serverless 180"
    )
    parser.add_argument("--network-isolation", action="store_true", help="nothing outside can be reached (an image)")


def run(arguments: argparse.Namespace) -> int:
    """Serves until it is told to end. 1 when the endpoint did not come into service."""
    plan = _plan(arguments)
    running = state.runner(plan.folder)
    if running is not None:
        raise UsageError(
            f"the endpoint {plan.name} runs already (process {running}); stop it: local_test stop {plan.name}"
        )
    try:
        service.prepare(plan)
    except ArchiveError as error:
        raise UsageError(str(error)) from error
    with contextlib.ExitStack() as stack:
        screen = stack.enter_context(consoles.Screen()) if sys.stderr.isatty() else None
        events = Events(plan.folder / service.EVENTS, say=None if screen is None else _sayer(screen))
        try:
            served = Service(plan, events)
        except service.PortError as error:
            raise UsageError(str(error)) from error
        if screen is not None:
            stack.enter_context(Board(_drawer(screen, served, plan.name)))
        status, last = _serve(plan, served, events)
    print(consoles.table(board.HEADER, last))
    print(events.summary())
    return 1 if status == "Failed" else 0


def _serve(plan: Plan, served: Service, events: Events) -> tuple[str, list[tuple[str, ...]]]:
    """Until it is told to end; the endpoint's last status, and its table before the instances were ended."""
    events.tell("creating", f"endpoint {plan.name}: {plan.instances} x {plan.subject.title}, {served.address}")
    status = "Deleted"
    last: list[tuple[str, ...]] = []
    with stopping() as stop:
        try:
            if served.open(stop):
                direct = f", an instance itself at {served.direct_address}/" if served.direct_address else ""
                told = f"endpoint {plan.name} is InService at {served.address}{direct}; Ctrl-C ends it"
                events.tell("ready", told, good=True)
            stop.wait()
        except NotInServiceError as error:
            status = "Failed"
            events.tell("endpoint_failed", f"endpoint {plan.name} failed: {error}", good=False)
        except BaseException:
            status = "Failed"
            raise
        finally:
            try:
                last = served.table()
            finally:
                served.close(status)
    return status, last


def _sayer(screen: consoles.Screen) -> Callable[[str, bool | None], None]:
    styles = {True: "green", False: "red", None: ""}
    return lambda text, good: screen.say((text, styles[good]))


def _drawer(screen: consoles.Screen, served: Service, name: str) -> Callable[[], None]:
    return lambda: screen.draw(f"{name} at {served.address}", board.HEADER, served.table(), board.STYLES)


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set."""
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_environment(pairs: list[str]) -> dict[str, str]:
    """Variables from NAME=VALUE.

    Raises:
        UsageError: one is no such pair.
    """
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise UsageError(f"--env {pair!r} is not NAME=VALUE")
        found[name] = value
    return found


def read_limits(instance_type: str | None) -> Limits:
    """Of a named type.

    Raises:
        UsageError: there is none of that name.
    """
    if instance_type is None:
        return Limits()
    try:
        return instance_types.instance_type(instance_type).limits
    except instance_types.UnknownInstanceTypeError as error:
        raise UsageError(str(error)) from error


def check_name(name: str) -> str:
    """The name, if the platform allows it.

    Raises:
        UsageError: it does not.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"NAME {name!r} is not letters, digits and single hyphens between them, at most 63")
    return name


def at_least(option: str, value: float, least: float) -> None:
    """Refuses a number that is too small.

    Raises:
        UsageError: it is.
    """
    if value < least:
        raise UsageError(f"{option} {value:g} is too small; give {least:g} or more")


def _plan(arguments: argparse.Namespace) -> Plan:
    name = check_name(arguments.name)
    at_least("--instances", arguments.instances, 1)
    at_least("--async-at-once", arguments.async_at_once, 1)
    at_least("--ping-failures", arguments.ping_failures, 1)
    at_least("--ping-every", arguments.ping_every, 0.1)
    for option, value in (("--timeout", arguments.timeout), ("--start-timeout", arguments.start_timeout)):
        at_least(option, 1 if value is None else value, 1)
    at_least("--payload-mb", 1 if arguments.payload_mb is None else arguments.payload_mb, 0.001)
    _refuse_mixtures(arguments)
    serverless = arguments.serverless is not None
    return Plan(
        name,
        choosing.subject(arguments.image, arguments.process, gpus=arguments.gpus),
        ENDPOINTS / name,
        model=arguments.model,
        several=_several(arguments),
        instances=arguments.instances,
        environment=read_environment(arguments.env),
        limits=_limits(arguments),
        rules=_rules(arguments),
        health=Health(
            start_s=arguments.start_timeout or (rules.SERVERLESS_START_S if serverless else rules.START_S),
            every_s=arguments.ping_every,
            failures=arguments.ping_failures,
        ),
        port=arguments.port,
        bind_to_port=arguments.bind_to_port,
        network_isolation=arguments.network_isolation,
        read_only_disk=serverless,
        asynchronous=_asynchronous(arguments),
        direct_port=arguments.direct,
    )


def _refuse_mixtures(arguments: argparse.Namespace) -> None:
    chosen = {
        "--serverless": arguments.serverless is not None,
        "--async": arguments.asynchronous,
        "--models": arguments.models is not None,
    }
    together = [option for option, given in chosen.items() if given]
    if len(together) > 1:
        raise UsageError(f"{' and '.join(together)} exclude each other on SageMaker; give one of them")
    if arguments.serverless is not None and arguments.instance_type is not None:
        raise UsageError("--serverless has memory instead of an instance type; leave --instance-type out")
    if arguments.bind_to_port is not None and arguments.process is not None and arguments.instances > 1:
        raise UsageError("--bind-to-port: processes would share the port; give --instances 1, or --image")
    if arguments.models is not None and not arguments.models.is_dir():
        raise UsageError(f"--models {arguments.models} is no folder; name one that holds model tarballs")


def _limits(arguments: argparse.Namespace) -> Limits:
    if arguments.serverless is None:
        return read_limits(arguments.instance_type)
    try:
        return instance_types.serverless(arguments.serverless)
    except instance_types.UnknownInstanceTypeError as error:
        raise UsageError(f"--serverless: {error}") from error


def _rules(arguments: argparse.Namespace) -> Invocations:
    payload, answer_s, at_once = rules.PAYLOAD_BYTES, rules.ANSWER_S, None
    if arguments.serverless is not None:
        payload, at_once = rules.SERVERLESS_PAYLOAD_BYTES, 1
    if arguments.asynchronous:
        payload, answer_s, at_once = rules.ASYNC_PAYLOAD_BYTES, rules.ASYNC_ANSWER_S, arguments.async_at_once
    if arguments.payload_mb is not None:
        payload = int(arguments.payload_mb * MIB)
    return Invocations(payload, arguments.timeout or answer_s, at_once=at_once)


def _several(arguments: argparse.Namespace) -> Several | None:
    if arguments.models is None:
        return None
    limit_mb = arguments.models_memory_mb
    return Several(
        arguments.models,
        # A container sees its root elsewhere; a process where it is.
        inside=None if arguments.image is None else _CONTAINER_ROOT,
        limit_bytes=None if limit_mb is None else limit_mb * MIB,
    )


def _asynchronous(arguments: argparse.Namespace) -> Asynchronous | None:
    if not arguments.asynchronous:
        return None
    return Asynchronous(
        arguments.s3,
        f"s3://local/async/{arguments.name}",
        at_once=arguments.async_at_once,
        answer_s=arguments.timeout or rules.ASYNC_ANSWER_S,
    )
