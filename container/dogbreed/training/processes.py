"""The processes of a job on this host: started together, stopped together, and a lost one explained.

One process for each GPU, started by torchrun's own elastic launcher on every host of the job; they meet at the first
host. A stop signal is handed on to all of them, and they agree among themselves on the step after which they stop.

Sources: torch.distributed.launcher; AWS docs, your-algorithms-training-algo-running-container (peers may not be
resolvable at once).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dogbreed.errors import ConfigurationError, JobError

logger = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_MEETING_TIMEOUT_S = 900
_NAME_TIMEOUT_S = 300.0


def run_all(command: list[str], *, hosts: tuple[str, ...], rank: int, processes: int, port: int) -> None:
    """Runs ``command`` in all processes of this host and returns when they have all ended well.

    Args:
        command: program and arguments; the processes find their rank in the environment.
        hosts: of the job; the first one leads.
        rank: of this host among them.
        processes: on this host.
        port: of the first host, where all meet; a free one is taken when there is only one host.

    Raises:
        JobError: a process failed or was killed.
        ConfigurationError: another host's name cannot be resolved.
    """
    if len(hosts) == 1:
        hosts, port = ("localhost",), _free_port()
    else:
        logger.info(
            "host %d of %d (%s) with %d processes; all meet at %s:%d",
            rank + 1, len(hosts), hosts[rank], processes, hosts[0], port,
        )  # fmt: skip
        wait_for_name(hosts[0])
    config = LaunchConfig(
        min_nodes=len(hosts),
        max_nodes=len(hosts),
        nproc_per_node=processes,
        run_id="dogbreed",
        rdzv_backend="static",
        rdzv_endpoint=f"{hosts[0]}:{port}",
        rdzv_configs={"rank": rank, "timeout": _MEETING_TIMEOUT_S},
        # A process that ran out of memory would do so again; a lost machine is the platform's to replace, and the job
        # goes on from its checkpoint then.
        max_restarts=0,
        monitor_interval=0.2,
    )
    # Its advice on signals is for those who have no handlers of their own.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.ERROR)
    logging.getLogger("torch.distributed.elastic.agent.server.api").addFilter(is_no_farewell)
    _Launch(config, command, hosts[rank]).run()


def is_no_farewell(record: logging.LogRecord) -> bool:
    """Whether a line of the launcher's says anything but that another host was gone before it could be waved to.

    When this host's processes have ended the launcher waits for those of the others, at the first host's store. The
    first host may be done a moment earlier and take the store along: a traceback in the log of a job without fault.
    """
    return not str(record.msg).startswith("Error waiting on exit barrier")


def wait_for_name(
    host: str,
    *,
    timeout_s: float = _NAME_TIMEOUT_S,
    resolve: Callable[[str, None], object] = socket.getaddrinfo,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Returns when a host's name can be resolved, which may lag behind the start of a job.

    Raises:
        ConfigurationError: it still cannot after ``timeout_s``.
    """
    end, pause = clock() + timeout_s, 0.5
    while True:
        try:
            resolve(host, None)
            return
        except OSError as error:
            if clock() >= end:
                raise ConfigurationError(
                    f"the name of host {host} (resourceconfig.json) cannot be resolved after {timeout_s:.0f} s "
                    f"({error}); the hosts of a job must see each other: check the job's subnets and security groups"
                ) from error
        sleep(pause)
        pause = min(2 * pause, 10.0)


def unblock_stop_signals() -> None:
    """Lets stop signals through, which a process is started without until its handlers stand."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


class _Launch:
    """One run of the elastic launcher, in a thread, so that the signal handlers stay ours."""

    def __init__(self, config: LaunchConfig, command: list[str], host: str) -> None:
        self._config = config
        self._command = command
        self._host = host
        self._stop = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        before = {number: signal.signal(number, self._request_stop) for number in _STOP_SIGNALS}
        thread = threading.Thread(target=self._work, name="launcher", daemon=True)
        thread.start()
        told: set[int] = set()
        try:
            while thread.is_alive():
                thread.join(0.2)
                if self._stop.is_set():
                    self._hand_on(told)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if isinstance(self._error, ChildFailedError):
            raise JobError(self._explain(self._error)) from None
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        # Inherited by the processes: a signal that comes before their handlers stand waits instead of killing them.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            elastic_launch(self._config, self._command[0])(*self._command[1:])
        except BaseException as error:  # handed to the thread that waits
            self._error = error

    def _request_stop(self, number: int, _frame: FrameType | None) -> None:
        text = f"{signal.Signals(number).name}: handing it on to the processes of this host\n"
        os.write(sys.stderr.fileno(), text.encode())
        self._stop.set()

    def _hand_on(self, told: set[int]) -> None:
        children = {child.pid for child in psutil.Process().children()} - told
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        told |= children

    def _explain(self, error: ChildFailedError) -> str:
        """The first process that failed, in words; what it knew itself stands in the failure file already."""
        rank, failure = error.get_first_failure()
        of = f"process {rank} on {self._host}"
        if failure.exitcode >= 0:
            return f"{of} ended with exit code {failure.exitcode}; its last lines above say why"
        name = signal.Signals(-failure.exitcode).name
        hint = "; when memory ran out, lower batch-size or num-workers" if name == "SIGKILL" else ""
        return f"{of} was killed by {name}{hint}"


def interface_towards(host: str) -> str | None:
    """Name of the network interface through which another host is reached; None when it cannot be told.

    Asks the routing table (a UDP socket's `connect` sends nothing), because a host's own name may resolve to its
    loopback address, which gloo would then offer to the others.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        own = probe.getsockname()[0]
        for name, addresses in psutil.net_if_addrs().items():
            if any(address.address == own for address in addresses):
                return name
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
