"""What a running server counts, and its text for Prometheus.

Knows prometheus-client and nothing of HTTP or models. Given a folder, the processes of a server share their counts
through mapped files in it and every one of them answers for all; without one, a process counts for itself.

prometheus-client decides when it is imported how values are kept, by PROMETHEUS_MULTIPROC_DIR: that is why it is
imported in the constructor and not above. `environment.share_metrics` sets the variable.

Sources: prometheus.io, Exposition formats, and Metric and label naming; SageMaker's ContainerMetricsConfig scrapes
`/metrics` on the container's port.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

# Seconds. From what a small network takes on a GPU to the platform's 60 s for an answer.
_LATENCIES_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class StageObserver(Protocol):
    """What an engine tells, if it is given one of these. Called from any thread; must not raise."""

    def decoded(self, images: int, seconds: float) -> None:
        """So many images took so long to become the network's input."""

    def computed(self, images: int, seconds: float) -> None:
        """So many images went through the network together, and took so long."""


class Metrics:
    """The counts of one server; a `StageObserver`. Thread-safe.

    Args:
        folder: where the processes of a server share their counts; None counts for this process alone.
    """

    def __init__(self, folder: Path | None = None) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._folder = folder
        # Not the library's global one: several apps in one process, as tests have them, would collide in it.
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "dogbreed_requests", "Answers by route and HTTP status.", ["route", "status"], registry=registry
        )
        self._latency = Histogram(
            "dogbreed_request_seconds",
            "From a request's headers to its answer's, by route.",
            ["route"],
            buckets=_LATENCIES_S,
            registry=registry,
        )
        self._images = Histogram(
            "dogbreed_request_images", "Images in one request.", buckets=_BATCHES, registry=registry
        )
        self._waiting = Gauge(
            "dogbreed_waiting_requests",
            "Requests that wait for their turn.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._running = Gauge(
            "dogbreed_running_requests", "Requests that are computed.", registry=registry, multiprocess_mode="livesum"
        )
        self._decode = Histogram(
            "dogbreed_decode_seconds", "Decoding one image.", buckets=_LATENCIES_S, registry=registry
        )
        self._engine = Histogram(
            "dogbreed_engine_seconds", "One batch in the network.", buckets=_LATENCIES_S, registry=registry
        )
        self._batch = Histogram(
            "dogbreed_engine_images", "Images in one batch of the network.", buckets=_BATCHES, registry=registry
        )
        self._model = Gauge(
            "dogbreed_model_info",
            "1 for what is served.",
            ["backbone", "classes", "device", "engine", "version"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._models = Gauge(
            "dogbreed_loaded_models",
            "Models that a multi-model endpoint holds.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        # Looking a labelled value up takes as long as counting in it. Both values at once: another thread that finds a
        # key finds all that belongs to it.
        self._values_of: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered. ``route`` is a pattern of ours, never a client's path: there is no end to those."""
        found = self._values_of.get((route, status))
        if found is None:
            found = self._requests.labels(route, str(status)), self._latency.labels(route)
            self._values_of[route, status] = found
        requests, latency = found
        requests.inc()
        latency.observe(seconds)

    def asked(self, images: int) -> None:
        """A request held so many images."""
        self._images.observe(images)

    def passing(self, gate: AbstractContextManager[object]) -> AbstractContextManager[None]:
        """Goes through the gate, and counts who waits before it and who is behind it."""
        return _Passing(gate, self._waiting, self._running)

    def decoded(self, images: int, seconds: float) -> None:
        """See `StageObserver`; counts the mean of the images."""
        for _ in range(images):
            self._decode.observe(seconds / images)

    def computed(self, images: int, seconds: float) -> None:
        """See `StageObserver`."""
        self._engine.observe(seconds)
        self._batch.observe(images)

    def serves(self, facts: Mapping[str, object]) -> None:
        """A model is loaded: backbone, classes, device, engine and version, as far as known."""
        names = ("backbone", "classes", "device", "engine", "version")
        self._model.labels(*(str(facts.get(name, "")) for name in names)).set(1)

    def holds(self, models: int) -> None:
        """A multi-model endpoint has so many models loaded."""
        self._models.set(models)

    def render(self) -> tuple[bytes, str]:
        """The text for Prometheus, of all processes, and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, multiprocess

        if self._folder is None:
            return generate_latest(self._registry), CONTENT_TYPE_LATEST
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=str(self._folder))  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


class _Passing(AbstractContextManager[None]):
    """A class and no generator, which would be more calls at every request."""

    __slots__ = ("_gate", "_running", "_waiting")

    def __init__(self, gate: AbstractContextManager[object], waiting: Gauge, running: Gauge) -> None:
        self._gate = gate
        self._waiting = waiting
        self._running = running

    def __enter__(self) -> None:
        self._waiting.inc()
        try:
            self._gate.__enter__()
        finally:
            self._waiting.dec()
        self._running.inc()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._running.dec()
        return self._gate.__exit__(kind, error, trace)


def remove_counts(pids: Collection[int], folder: Path) -> None:
    """Removes what processes of a server that has ended have left in a folder, and nothing else that is in it."""
    for file in folder.glob("*.db"):
        # prometheus-client writes `counter_17.db` and `gauge_livesum_17.db`.
        pid = file.stem.rpartition("_")[2]
        if pid.isdecimal() and int(pid) in pids:
            file.unlink(missing_ok=True)


def forget_process(pid: int, folder: Path) -> None:
    """A process of the server has ended: what it was doing is not done any more; what it has counted stays."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(pid, path=str(folder))  # type: ignore[no-untyped-call]
