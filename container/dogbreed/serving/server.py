"""The entry point of an endpoint: the one place that knows the order of events.

    environment -> gunicorn opens the port -> each worker forks -> the model loads behind the port -> requests

gunicorn runs in this process, so that a container's PID 1 is what receives SIGTERM. A worker is one process with its
own copy of the model and as many threads as may hold a request; torch is imported in the worker only, because its
threads and CUDA do not survive a fork. With several GPUs each worker is shown one of them, and there is one worker for
each unless the user says how many; the one process of a multi-model endpoint puts each model on the GPU with most room.

Does not know how a request is read, nor how a model predicts.

Sources: AWS developer guide, your-algorithms-inference-code (TCP accept within 250 ms, `/ping` within 2 s, SIGKILL
30 s after SIGTERM).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import shutil
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from dogbreed import collector, logs
from dogbreed.environment import (
    PORT_VARIABLE,
    SERVING_STOP_GRACE_S,
    ServingEnvironment,
    SharedCounts,
    available_memory_bytes,
    read_serving_environment,
    share_metrics,
    show_gpu,
)
from dogbreed.errors import ConfigurationError
from dogbreed.gpus import visible_gpus
from dogbreed.serving import payload
from dogbreed.serving.admission import Gate
from dogbreed.serving.app import App, Settings, create_app
from dogbreed.serving.board import Board
from dogbreed.serving.lifecycle import ModelLifecycle
from dogbreed.serving.loading import load_now, load_predictor, release_memory
from dogbreed.serving.metrics import Metrics, forget_process, remove_counts
from dogbreed.serving.models import ModelRegistry
from dogbreed.serving.worker import STAYING_THREADS, Worker

if TYPE_CHECKING:
    from dogbreed.serving.predictor import Predictor

_LOGGER = logging.getLogger(__name__)

_STOP_GRACE_S = SERVING_STOP_GRACE_S - 5
"""For the requests in hand after SIGTERM; the rest of the platform's time is for leaving."""

# A client that stops sending in the middle of a request, or reading in that of an answer, gives its thread back then.
_STALLED_CLIENT_S = 20
# What a connection holds of answers that its client has not read; Linux gives at most `net.core.wmem_max`.
_ANSWERS_BYTES = 512 * 1024
# Threads beyond the requests that run or wait: for /ping, for bodies on their way in and for refusals.
_SPARE_THREADS = 16
# Of these, what is left for /ping and for refusals when slow clients hold all others.
_PING_THREADS = 8
# Requests beyond the CPUs that are let in where an engine is quicker with several images at once.
_GATHERED = 32
# Of a request's time, what is left for computing when it has waited as long as it may.
_COMPUTING_S = 5.0
# Longer than the minute that load balancers keep an idle connection, so that it is they who close it.
_KEEP_ALIVE_S = 75
# Of a worker, as long as it may have so many descriptors beside those of its libraries and files.
_CONNECTIONS = 1000
_OTHER_DESCRIPTORS = 128
# Importing torch from a cold disk holds the interpreter, and gunicorn must not take that for a hang.
_MIN_HEARTBEAT_S = 120
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the usual place for gunicorn's heartbeat file, which is unlinked at once


def main() -> int:
    """Serves until SIGTERM.

    Returns:
        The exit code: 0 after a stop, 1 with one line on stderr when it cannot start.
    """
    collector.resume()
    try:
        environment = read_serving_environment()
        default_accept = payload.media_type(environment.default_accept)
        if default_accept not in payload.ANSWER_TYPES:
            raise ConfigurationError(
                f"the default Accept {environment.default_accept!r} cannot be produced; give one of "
                f"{', '.join(payload.ANSWER_TYPES)}"
            )
        _refuse_taken_port(environment.host, environment.port)
    except ConfigurationError as error:
        print(f"dogbreed: {error}", file=sys.stderr)
        return 1
    logs.configure(environment.log_level, as_json=environment.json_logs)
    _Server(environment, default_accept, share_metrics(), visible_gpus(environment.gpus)).run()
    return 0


def _refuse_taken_port(host: str, port: int) -> None:
    """Raises `ConfigurationError` where somebody listens: gunicorn tries for five seconds, and says nothing of use."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gunicorn binds
            tried.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"port {port} is in use; stop the server that has it, or give another port by {PORT_VARIABLE} (make "
                f"serve: PORT=)"
            ) from error
        # Any other mistake in the address is gunicorn's to tell.


class _Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn, configured from values instead of files and a command line."""

    def __init__(
        self,
        environment: ServingEnvironment,
        default_accept: str,
        shared: SharedCounts | None,
        gpus: Sequence[str],
    ) -> None:
        self._environment = environment
        self._default_accept = default_accept
        self._shared = shared
        self._metrics_folder = shared.folder if shared is not None else None
        self._ended: set[int] = set()
        # The one process of several models has them on all GPUs.
        self._gpus = () if environment.multi_model else gpus
        self._workers = environment.workers or max(1, len(self._gpus))
        # Workers share the CPUs.
        self._slots = max(1, environment.cpus // self._workers)
        self._model: ModelLifecycle | None = None
        self._loading: threading.Thread | None = None
        self.board = Board()
        self._threads = self._slots + _GATHERED + environment.max_waiting + _SPARE_THREADS
        super().__init__(prog="dogbreed")

    def is_ready(self) -> bool:
        """Whether this worker can predict now; asked by `Worker`. One of many models is ready for any."""
        return self._environment.multi_model or (self._model is not None and self._model.status() is None)

    def is_loading(self) -> bool:
        """Whether a thread of this worker may be in native code that loads the model; asked by `Worker`."""
        return self._loading is not None and self._loading.is_alive()

    def load_config(self) -> None:
        """Called by gunicorn, at the start and on SIGHUP."""
        environment = self._environment
        settings = {
            "bind": f"{environment.host}:{environment.port}",
            "workers": self._workers,
            "worker_class": Worker,
            "threads": self._threads + STAYING_THREADS,
            "worker_connections": _most_connections(self._threads + STAYING_THREADS),
            "timeout": max(environment.request_timeout_s, _MIN_HEARTBEAT_S),
            "graceful_timeout": _STOP_GRACE_S,
            "keepalive": _KEEP_ALIVE_S,
            "worker_tmp_dir": str(_SHARED_MEMORY) if os.access(_SHARED_MEMORY, os.W_OK) else None,
            "accesslog": None,  # the app logs each invocation; /ping every five seconds is noise
            "loglevel": environment.log_level,
            "logger_class": _PlainLogger,
            "control_socket_disable": True,  # it would be a file in the home folder
            # Nobody is in front that may rewrite paths; a SCRIPT_NAME header from 127.0.0.1 would be a 500.
            "forwarded_allow_ips": "",
            "forwarder_headers": "",
            "when_ready": _limit_stalls,
            "pre_fork": self._give_gpu,
            "post_fork": _show_gpu,
            "worker_exit": self._leave,
            "child_exit": self._forget,
            "on_exit": self._clean_up,
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> App:
        """Called by gunicorn in every worker, after the fork."""
        environment = self._environment
        metrics = Metrics(self._metrics_folder)
        # An answer that would come after the platform has given up is not worth computing.
        patience_s = max(1.0, environment.request_timeout_s - _COMPUTING_S)
        gate = Gate(self._slots, environment.max_waiting, patience_s=patience_s)
        model = self._several_models(metrics) if environment.multi_model else self._one_model(metrics, gate)
        settings = Settings(
            max_payload_bytes=environment.max_payload_bytes,
            default_accept=self._default_accept,
            processes=self._workers,
            page=environment.page,
            card=environment.paths.model / "MODEL_CARD.md",
            emf_namespace=environment.emf_namespace,
            item_errors=environment.batch_transform,
            request_timeout_s=float(environment.request_timeout_s),
            body_patience_s=float(environment.request_timeout_s),
            max_bodies=self._threads - _PING_THREADS,
        )
        return create_app(model, gate, settings, metrics=metrics)

    def _load(self, folder: Path, metrics: Metrics) -> Predictor:
        environment = self._environment
        return load_predictor(
            folder,
            metrics,
            max_pixels=environment.max_pixels,
            engine=environment.engine,
            precision=environment.precision,
            streams=self._slots,
            low_latency=environment.low_latency,
            heat_maps=environment.heat_maps,
            shared=environment.multi_model,
        )

    def _one_model(self, metrics: Metrics, gate: Gate) -> ModelLifecycle:
        def load() -> Predictor:
            predictor = self._load(self._environment.paths.model, metrics)
            gate.widen(min(predictor.concurrent, self._slots + _GATHERED))
            return predictor

        self._model = ModelLifecycle(load, stuck_after_s=float(self._environment.request_timeout_s))
        self._loading = self._model.start()
        return self._model

    def _several_models(self, metrics: Metrics) -> ModelRegistry:
        environment = self._environment
        return ModelRegistry(
            lambda folder: load_now(
                lambda: self._load(folder, metrics), stuck_after_s=float(environment.request_timeout_s)
            ),
            root=environment.paths.models,
            release=release_memory,
            available_bytes=available_memory_bytes,
            budget_bytes=environment.models_budget_bytes,
            evict=environment.evict_models,
            copies=2 if environment.low_latency else 1,
            patience_s=float(environment.request_timeout_s),
        )

    def _give_gpu(self, arbiter: Any, worker: Any) -> None:  # noqa: ANN401  gunicorn has no types
        """Called by gunicorn before it forks: the worker gets the GPU that fewest of the living ones have."""
        if len(self._gpus) > 1:
            given = Counter(other.gpu for other in arbiter.WORKERS.values())
            worker.gpu = min(self._gpus, key=lambda gpu: given[gpu])

    def _leave(self, _arbiter: Any, worker: Any) -> None:  # noqa: ANN401  gunicorn has no types
        """Called by gunicorn as the last thing in a worker that ends, and in the first process of one that is gone.

        While the model loads, a thread is in torch's native code. Python would take the interpreter away from under
        it, and the process would end by SIGABRT or SIGSEGV. Files that a worker has are unlinked or closed by now.
        """
        if worker.pid == os.getpid() and self.is_loading():
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(_exit_code(sys.exc_info()[1]))

    def _forget(self, _arbiter: Any, worker: Any) -> None:  # noqa: ANN401  gunicorn has no types
        """Called by gunicorn when a worker has ended, however it did."""
        self.board.write(worker.age, False)
        self._ended.add(worker.pid)
        if self._metrics_folder is not None:
            forget_process(worker.pid, self._metrics_folder)

    def _clean_up(self, arbiter: Any) -> None:  # noqa: ANN401  gunicorn has no types
        """Called by gunicorn at the end, in the first process only."""
        if self._shared is None:
            return
        folder = self._shared.folder
        if not self._shared.named:
            shutil.rmtree(folder, ignore_errors=True)
            return
        with contextlib.suppress(OSError):
            remove_counts({*arbiter.WORKERS, *self._ended}, folder)
            if self._shared.made:
                folder.rmdir()  # if nobody has put anything else there


def _most_connections(threads: int) -> int:
    """How many connections a worker may have; takes all descriptors that this process may have (getrlimit(2))."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ValueError, OSError):  # macOS takes no infinity
        most = now
    wanted = max(_CONNECTIONS, 2 * threads)
    return wanted if most == resource.RLIM_INFINITY else max(1, min(wanted, most - _OTHER_DESCRIPTORS))


class _PlainLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's log through our root logger, one format for all."""

    def setup(self, cfg: Any) -> None:  # noqa: ANN401  gunicorn has no types
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True

    def exception(self, msg: str, *arguments: Any, **settings: Any) -> None:  # noqa: ANN401  gunicorn has no types
        """Called by gunicorn for errors; that a client has stalled (`_limit_stalls`) is none of the server's."""
        if isinstance(sys.exc_info()[1], BlockingIOError):
            self.debug("Ignored a client that stalled")
        else:
            super().exception(msg, *arguments, **settings)


def _show_gpu(_arbiter: Any, worker: Any) -> None:  # noqa: ANN401  gunicorn has no types
    """Called by gunicorn in a worker, before CUDA wakes in it."""
    if worker.gpu is not None:
        show_gpu(worker.gpu)
        _LOGGER.info("process %d uses GPU %s", worker.pid, worker.gpu)


def _exit_code(error: BaseException | None) -> int:
    """What Python would make of the exception that ends a process."""
    if error is None or (isinstance(error, SystemExit) and error.code is None):
        return 0
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1


def _limit_stalls(arbiter: Any) -> None:  # noqa: ANN401  gunicorn has no types
    """Gives the listening sockets time limits, which every connection inherits (socket(7)), and room for answers.

    gunicorn's threads read and write without one: a few clients that stop sending, or reading, would hold every thread,
    and /ping with them. With room for an answer no thread waits for whoever reads slowly.
    """
    for listener in arbiter.LISTENERS:
        for limit in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            listener.sock.setsockopt(socket.SOL_SOCKET, limit, struct.pack("ll", _STALLED_CLIENT_S, 0))
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ANSWERS_BYTES)


if __name__ == "__main__":
    sys.exit(main())
