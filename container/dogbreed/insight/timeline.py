"""Where a job's time goes: marks in the loop, shares for the report and the rules, and a trace for Perfetto.

    timeline.start_pass("train")                   the pass itself is what evaluation and the frozen part are timed by
    for batch in batches:
        timeline.mark("data")                      since the mark before, the loop waited for data
        ...; timeline.mark("forward")
        with timeline.span("checkpoint"): ...      or a stretch of its own
        timeline.step()                            the step is over
    timeline.end_pass()

A mark is one entry in a list: it waits for nothing, and is reckoned up with many others, because a training step of a
small network takes less than a millisecond and has five of them. Work on a GPU goes on after the call that ordered it;
with `event` the stretches of a train step are timed on the device, by events that are read when the pass is over.
Memory is bounded. Knows nothing of the loop, of rules or of pages.

Source: the Trace Event Format, as Perfetto and chrome://tracing read it.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from dogbreed.insight.evidence import StepTimes

logger = logging.getLogger(__name__)

DEFAULT_SKIP, DEFAULT_STEPS = 20, 3
"""Train steps before those whose operators are profiled, and how many these are."""

KINDS = (
    "data",
    "copy",
    "forward",
    "backward",
    "optimizer",
    "evaluation",
    "checkpoint",
    "frozen part",
    "initialization",
    "other",
)
"""Kinds of work, in the order of a report. ``data`` is waiting for data; ``other`` is what no mark tells."""

ON_DEVICE = frozenset({"copy", "forward", "backward", "optimizer"})
_FOLD_MARKS = 512
_FOLD_S = 1.0
"""Marks are reckoned up at the latest when there are so many, or after so long, at a step's end."""
_STEP = ""
"""Stands in the list of marks for the end of a step."""
_KEPT_STEPS = 20_000
_KEPT_SPANS = 20_000
"""First stretches, and newest ones, that are kept for the trace; the last of the first are kept in one piece."""
_PASS_KINDS = {
    "validation": "evaluation",
    "calibration": "evaluation",
    "test": "evaluation",
    "features": "frozen part",
}


class Event(Protocol):
    """A point in a device's queue, such as `torch.cuda.Event(enable_timing=True)`."""

    def record(self) -> object:
        """Puts the point behind what was ordered so far."""

    def elapsed_time(self, end: Any) -> float:  # noqa: ANN401  another event of the same kind
        """Milliseconds to a later point; both must have been reached."""

    def synchronize(self) -> object:
        """Waits for the point."""


class Span(NamedTuple):
    """One stretch of work.

    Attributes:
        kind: of work, see `KINDS`.
        start_s: on the timeline's clock.
        seconds: how long it took.
        phase: of the pass, empty between passes.
        step: train steps done before.
    """

    kind: str
    start_s: float
    seconds: float
    phase: str
    step: int


class Timeline:
    """Collects stretches of work.

    Args:
        clock: seconds, monotonic.
        event: makes an event on the device that trains; None for a CPU.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        *,
        event: Callable[[], Event] | None = None,
    ) -> None:
        self._clock = clock
        self._event = event
        self._workers: int | None = None
        self._worker_seconds: Callable[[], float] = float
        self._processes = 1
        self._started = self._last = self._step_start = self._alive = clock()
        # What was marked and is not reckoned up yet: a kind of work, or `_STEP`, and the time at its end.
        self._marks: list[tuple[str, float]] = []
        self._folded_s = -math.inf
        self._wall_start = time.time() - self._started
        self._first_step: float | None = None
        self._first_pass: float | None = None
        self._silence = 0.0
        self._phase = ""
        self._pass_start = self._started
        self._in_pass = 0.0
        self._step = 0
        self._seconds: dict[str, float] = {}
        self._steps: dict[str, deque[float]] = {}
        # Fields of spans: made to `Span` when they are written.
        self._first: list[tuple[str, float, float, str, int]] = []
        self._newest: deque[tuple[str, float, float, str, int]] = deque(maxlen=_KEPT_SPANS)
        self._device_before: Event | None = None
        self._device_pending: list[tuple[str, Event, Event]] = []

    def start_pass(self, phase: str) -> None:
        """A pass begins: ``train``, ``validation``, ``calibration``, ``test`` or ``features``."""
        now = self._clock()
        self._fold(now)
        self._live(now)
        if self._first_pass is None:
            self._first_pass = now
            self._count("initialization", now - self._started)
            self._keep("initialization", self._started, now - self._started, "", 0)
        self._phase = phase
        self._pass_start = self._last = self._step_start = now
        self._in_pass = 0.0
        self._device_before = self._stamp()

    def end_pass(self) -> None:
        """The pass is over."""
        now = self._clock()
        self._fold(now)
        self._live(now)
        if not self._phase:
            return
        spent = now - self._pass_start
        kind = _PASS_KINDS.get(self._phase)
        if kind is None:
            self._resolve()
            self._count("other", max(0.0, spent - self._in_pass))
        else:
            self._count(kind, max(0.0, spent - self._in_pass))
        self._keep(kind or "train pass", self._pass_start, spent, "passes", self._step)
        self._phase = ""
        self._last = now

    def mark(self, kind: str) -> None:
        """The time since the mark, step or pass start before was spent on this."""
        self._marks.append((kind, self._clock()))
        if self._event is not None and self._phase == "train":
            self._mark_device(kind)

    @contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """The time in this block was spent on this; marks go on behind it."""
        start = self._clock()
        self._fold(start)
        try:
            yield
        finally:
            now = self._clock()
            self._fold(now)
            self._reckon([(kind, now)], start)
            # What came before the block belongs to the next mark.
            self._last += now - start
            self._alive = now

    def add(self, kind: str, start_s: float, seconds: float) -> None:
        """A stretch that was timed elsewhere, on this timeline's clock."""
        self._fold(self._clock())
        self._reckon([(kind, start_s + seconds)], start_s)

    def load_by(self, threads: int, seconds: Callable[[], float], *, processes: int = 1) -> None:
        """Images are loaded by so many threads (0: the training's own), as in each of the processes of this host.

        Args:
            threads: of this process.
            seconds: what decoding and augmenting took them so far, all together; asked from any thread.
            processes: of this host.
        """
        self._workers, self._worker_seconds, self._processes = threads, seconds, processes

    def go_on(self, steps: int) -> None:
        """So many train steps were done before this timeline began; they are in none of its times."""
        self._step = steps

    def step(self) -> None:
        """A batch of the running pass is done."""
        now = self._clock()
        self._marks.append((_STEP, now))
        if self._first_step is None or now - self._folded_s >= _FOLD_S or len(self._marks) >= _FOLD_MARKS:
            self._fold(now)

    def times(self) -> StepTimes:
        """Everything but the newest second, for the rules; all of it after a pass. May be called from any thread."""
        now = self._clock()
        seconds = dict(self._seconds)
        return StepTimes(
            started_s=self._started,
            now_s=now,
            first_step_s=self._first_step,
            seconds={kind: seconds[kind] for kind in (*KINDS, *sorted(set(seconds) - set(KINDS))) if kind in seconds},
            steps={phase: np.array(list(steps), dtype=np.float32) for phase, steps in list(self._steps.items())},
            longest_silence_s=max(self._silence, now - self._alive),
            workers=self._workers,
            worker_seconds=self._worker_seconds(),
            processes=self._processes,
        )

    def write_trace(self, file: Path) -> None:
        """Writes the kept stretches as a trace; open it at ui.perfetto.dev or chrome://tracing.

        Raises:
            OSError: the file cannot be written.
        """
        spans = [Span(*one) for one in (*self._first, *self._newest)]
        rows = {
            name: number
            for number, name in enumerate(("passes", "train", "validation", "calibration", "test", "features", ""), 1)
        }
        events: list[dict[str, object]] = [
            {"ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": {"name": "dogbreed training"}},
            *(
                {"ph": "M", "pid": 1, "tid": number, "name": "thread_name", "args": {"name": name or "between passes"}}
                for name, number in rows.items()
            ),
        ]
        events += [
            {
                "ph": "X",
                "pid": 1,
                "tid": rows.get(one.phase, len(rows)),
                "name": one.kind,
                "ts": round((one.start_s - self._started) * 1e6, 1),
                "dur": round(one.seconds * 1e6, 1),
                "args": {"step": one.step},
            }
            for one in spans
        ]
        document = {
            "displayTimeUnit": "ms",
            "otherData": {"start_time_since_epoch_in_micros": round((self._wall_start + self._started) * 1e6)},
            "traceEvents": events,
        }
        file.write_text(json.dumps(document), encoding="utf-8")

    def _fold(self, now: float) -> None:
        """Reckons up what was marked."""
        marks, self._marks = self._marks, []
        self._folded_s = now
        self._last = self._reckon(marks, self._last)

    def _reckon(self, marks: Sequence[tuple[str, float]], last: float) -> float:
        """Adds stretches up that follow each other from ``last`` on; returns where they end."""
        phase, seconds = self._phase, self._seconds
        trains = phase in ("", "train")
        on_device = ON_DEVICE if self._event is not None and phase == "train" else frozenset[str]()
        keep = (self._first if len(self._first) < _KEPT_SPANS else self._newest).append
        for kind, end in marks:
            if kind is _STEP:
                self._end_step(end)
            else:
                spent = end - last
                keep((kind, last, spent, phase, self._step))
                if trains or kind == "checkpoint":
                    self._in_pass += spent
                    if kind not in on_device:
                        seconds[kind] = seconds.get(kind, 0.0) + spent
            last = end
        return last

    def _end_step(self, now: float) -> None:
        self._live(now)
        if self._phase == "train":
            if self._first_step is None:
                self._first_step = self._step_start
            self._step += 1
        steps = self._steps.get(self._phase)
        if steps is None:
            steps = self._steps[self._phase] = deque(maxlen=_KEPT_STEPS)
        steps.append(now - self._step_start)
        self._step_start = now

    def _live(self, now: float) -> None:
        """A sign of life."""
        self._silence = max(self._silence, now - self._alive)
        self._alive = now

    def _count(self, kind: str, seconds: float) -> None:
        self._seconds[kind] = self._seconds.get(kind, 0.0) + seconds

    def _keep(self, kind: str, start_s: float, seconds: float, phase: str, step: int) -> None:
        spans = self._first if len(self._first) < _KEPT_SPANS else self._newest
        spans.append((kind, start_s, seconds, phase, step))

    def _stamp(self) -> Event | None:
        if self._event is None:
            return None
        stamp = self._event()
        stamp.record()
        return stamp

    def _mark_device(self, kind: str) -> None:
        now = self._stamp()
        if kind in ON_DEVICE and self._device_before is not None and now is not None:
            self._device_pending.append((kind, self._device_before, now))
            if len(self._device_pending) >= _KEPT_STEPS:
                self._resolve()
        self._device_before = now

    def _resolve(self) -> None:
        """Reads the device's times; waits for the last one, so it is done when a pass is over."""
        pending, self._device_pending = self._device_pending, []
        if pending:
            pending[-1][2].synchronize()
        for kind, start, end in pending:
            self._count(kind, start.elapsed_time(end) / 1000)


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of the profiled steps.

    Attributes:
        name: of the operator.
        calls: how often it ran.
        cpu_s: seconds of CPU time in the operator itself.
        device_s: seconds on the GPU in the operator itself.
    """

    name: str
    calls: int
    cpu_s: float
    device_s: float


class OperatorProfile:
    """torch.profiler over a few train steps; call `step` after each.

    Args:
        skip: train steps before, at which kernels are chosen and caches filled.
        steps: that are profiled.
        device: ``cuda`` or ``cpu``.
    """

    def __init__(self, *, skip: int = DEFAULT_SKIP, steps: int = DEFAULT_STEPS, device: str = "cpu") -> None:
        self._skip = skip
        self._steps = steps
        self._device = device
        self._done = 0
        self._profiler: Any = None
        self._finished: Any = None

    def step(self) -> None:
        """A train step is done. Begins, or ends, the profile when it is time; else costs nothing."""
        self._done += 1
        if self._done == self._skip:
            self._start()
        elif self._done == self._skip + self._steps:
            self.stop()

    def stop(self) -> None:
        """Ends the profile early; what was profiled stays."""
        if self._profiler is not None:
            profiler, self._profiler = self._profiler, None
            try:
                profiler.__exit__(None, None, None)
            except Exception as error:
                logger.warning("the operators are not profiled: %s: %s", type(error).__name__, error)
            else:
                self._finished = profiler

    def operators(self, limit: int = 12) -> tuple[Operator, ...]:
        """The operators that took longest, on the GPU where there is one; empty when no step was profiled."""
        if self._finished is None:
            return ()
        rows = [
            Operator(
                row.key,
                int(row.count),
                row.self_cpu_time_total / 1e6,
                getattr(row, "self_device_time_total", 0.0) / 1e6,
            )
            for row in self._finished.key_averages()
            if not row.key.startswith(("ProfilerStep", "cudaDeviceSynchronize"))
        ]
        return tuple(sorted(rows, key=lambda one: (one.device_s, one.cpu_s), reverse=True)[:limit])

    def write_trace(self, file: Path) -> None:
        """Writes the profiled steps as a trace; does nothing when there are none."""
        if self._finished is not None:
            self._finished.export_chrome_trace(str(file))

    def _start(self) -> None:
        # What torch.profiler.profile is made of; that one imports the whole compiler to ask for a setting of it.
        from torch.autograd import profiler

        started = profiler.profile(
            use_device="cuda" if self._device == "cuda" else None, use_kineto=True, acc_events=True
        )
        try:
            started.__enter__()  # type: ignore[no-untyped-call]
        except Exception as error:  # another profiler is active, or the driver forbids it
            logger.warning("the operators are not profiled: %s: %s", type(error).__name__, error)
            return
        self._profiler = started


def histogram(durations_s: Sequence[float], *, bins: int = 40) -> tuple[list[float], list[int], int]:
    """Edges, counts and number of outliers (over mean and 3 standard deviations), which are left out of the counts."""
    values = np.asarray(durations_s, dtype=np.float64)
    if not len(values):
        return [], [], 0
    inside = values[values <= values.mean() + 3 * values.std()]
    low, high = float(inside.min()), float(inside.max())
    counts, edges = np.histogram(
        inside, bins=min(bins, max(5, math.isqrt(len(inside)))), range=(low, max(high, low + 1e-9))
    )
    return edges.tolist(), counts.tolist(), len(values) - len(inside)


def shares(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    """Kinds with their share of all the time, largest first."""
    total = sum(seconds.values())
    return (
        sorted(((kind, one / total) for kind, one in seconds.items() if one > 0), key=lambda one: -one[1])
        if total
        else []
    )
