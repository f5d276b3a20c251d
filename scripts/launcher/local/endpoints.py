"""Endpoints on this machine: start, wait, find, delete.

An endpoint outlives the command that started it: the SDK's process holds its container, and ends with it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict

from scripts.launcher.context import Context
from scripts.launcher.errors import OutcomeError, SettingError
from scripts.launcher.local import engine, folders
from scripts.launcher.local.folders import Endpoint
from scripts.launcher.local.process import TROUBLE, Task, plain, start
from scripts.launcher.plan import Call
from scripts.launcher.waiting import Progress, wait

# The platform's (your-algorithms-inference-code).
_GRACE_S = 30
_POLL_S = 1.0
_LOG = "log.txt"


def deploy(calls: Sequence[Call], endpoint: Endpoint, context: Context) -> int:
    """Starts an endpoint, in the place of the one of that name, and waits until it can predict.

    Args:
        calls: CreateModel first, then what makes the endpoint of it.
        endpoint: what they describe.
        context: ``arguments.startup_timeout`` is how long to wait, in seconds.

    Raises:
        SettingError: it cannot run here.
        OutcomeError: it did not start; why stands first.
    """
    engine.check(endpoint.image)
    if folders.find_endpoint(endpoint.name) is not None:
        context.say(f"replaces the local endpoint {endpoint.name}")
        delete(endpoint.name, endpoint.image)
    _check_port(endpoint.port)
    # What an attempt that failed has left.
    engine.remove_folder(endpoint.folder, endpoint.image)
    endpoint.folder.mkdir(parents=True)
    model, *others = calls
    task = Task(
        [folders.unpacked(model, endpoint.folder), *others],
        endpoint.folder,
        _project(endpoint.name),
        endpoint.image,
        _GRACE_S,
    )
    log = endpoint.folder / _LOG
    with log.open("wb") as file:
        process = start(task, endpoint.port, file)
    (endpoint.folder / folders.DESCRIPTION).write_text(json.dumps(asdict(endpoint)) + "\n", encoding="utf-8")
    waited_s = 0.0

    def ask() -> str | None:
        nonlocal waited_s
        reason = ping(endpoint.port)
        if reason is None:
            return None
        lines = [text for line in log.read_bytes().splitlines() if (text := plain(line))]
        trouble = [line for line in lines if TROUBLE.search(line)]
        if process.poll() is not None or trouble or waited_s >= context.arguments.startup_timeout:
            why = [*trouble, *(lines[-1:] if process.poll() is not None else []), f"{reason}, after {waited_s:.0f} s"]
            raise OutcomeError(f"{why[0]}\nlocal endpoint {endpoint.name} did not start; its log is {log}")
        waited_s += _POLL_S
        return reason

    try:
        wait(ask, Progress(f"local endpoint {endpoint.name}"), context.sleep, every_s=_POLL_S)
    except BaseException:
        # First what would still start a container.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _end(endpoint.name)
        # The log stays, to be read.
        (endpoint.folder / folders.DESCRIPTION).unlink()
        raise
    # It goes on without this process, which has nothing to wait for.
    process.returncode = 0
    print(
        f"local endpoint {endpoint.name} is in service at {endpoint.url}: launch.py predict {endpoint.name} photo.jpg\n"
        f"it runs until: launch.py delete {endpoint.name} --local"
    )
    return 0


def delete(name: str, image: str) -> None:
    """Stops an endpoint's container as the platform would, and forgets the endpoint."""
    _end(name)
    engine.remove_folder(folders.endpoint_folder(name), image)


def ping(port: int) -> str | None:
    """None when the server on the port can predict, else why not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ping")
        response = connection.getresponse()
        body = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return "the container is starting"
    finally:
        connection.close()
    if response.status == 200:
        return None
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"/ping answers {response.status}"


def _end(name: str) -> None:
    engine.stop(_project(name), _GRACE_S)
    engine.remove(_project(name))


def _check_port(port: int) -> None:
    if engine.is_free(port):
        return
    others = [folders.find_endpoint(name) for name in folders.endpoint_names()]
    holders = [f"the local endpoint {other.name}" for other in others if other and other.port == port]
    raise SettingError(f"port {port} is taken by {(holders or ['another program'])[0]}; give another by --port")


def _project(name: str) -> str:
    return f"dogbreed-endpoint-{name}".lower()
