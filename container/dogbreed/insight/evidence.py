"""What rules look at: plain values, gathered while a job runs and judged by `rules`.

Knows neither smdebug nor files nor rules. Everything here is small and bounded, however long the job.

Legend: T samples in time, C CPU cores, G GPUs, M answers, U units (channels or features) of an activation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Point(NamedTuple):
    """A loss and its place.

    Attributes:
        step: train steps done before it, so the first train loss has step 0.
        value: in nats; NaN and infinity are possible.
    """

    step: int
    value: float


Series = tuple[Point, ...]
"""Points in the order of their steps."""


@dataclass(frozen=True, slots=True)
class Losses:
    """What a job saved of its losses.

    Attributes:
        train: one point per saved batch.
        evaluation: one point per validation pass, the mean over the pass.
    """

    train: Series
    evaluation: Series


class Reading(NamedTuple):
    """What was kept of one tensor at one train step.

    Attributes:
        step: train steps done before it.
        values: name of a statistic -> number. Every tensor has ``min``, ``max``, ``mean``, ``variance``, ``abs_mean``
            and ``zeros`` (share of elements that are 0, in [0, 1]). Of up to 4096 elements, evenly spread: ``p5`` and
            ``p95`` (percentiles), and for weights since the reading before ``change`` (mean of absolute differences),
            ``largest_change`` (their maximum) and ``before`` (mean of absolute values then).
        units: float32 [U], for outputs of ReLU the share of batch and image positions at which a unit was above 0, for
            inputs of Tanh and Sigmoid the share at which it was within its thresholds; else None.
    """

    step: int
    values: Mapping[str, float]
    units: NDArray[np.float32] | None = None


Readings = tuple[Reading, ...]
"""Readings of one tensor in the order of their steps."""

Tensors = Mapping[str, Mapping[str, Readings]]
"""Collection (``gradients``, ``weights``, ``relu_input``, ``relu_output``, ``tanh_input``, ``sigmoid_input``) -> tensor
-> readings."""


def _none() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Class indices that the criterion has seen.

    Attributes:
        train_labels: int64 [M], true classes of training, over all epochs up to a limit.
        labels: int64 [M], true classes of the last whole validation pass.
        predictions: int64 [M], largest logits of the same.
        evaluated: answers of all validation passes together.
    """

    train_labels: NDArray[np.int64] = field(default_factory=_none)
    labels: NDArray[np.int64] = field(default_factory=_none)
    predictions: NDArray[np.int64] = field(default_factory=_none)
    evaluated: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemSamples:
    """What the machine did, sampled at a fixed interval.

    Attributes:
        times_s: float64 [T], seconds since the epoch.
        cpu: float32 [T, C], use of each core that the job may use, in percent.
        iowait: float32 [T], share of those cores' time spent waiting for input and output, in percent.
        memory: float32 [T], of the container's limit, in percent.
        gpu: float32 [T, G], use in percent, of the job's GPUs; NaN where it is not known.
        gpu_memory: float32 [T, G], memory in use in percent; likewise.
        network_bytes_s: float32 [T], received and sent.
        disk_bytes_s: float32 [T], read and written.
        interval_s: between samples.
    """

    times_s: NDArray[np.float64]
    cpu: NDArray[np.float32]
    iowait: NDArray[np.float32]
    memory: NDArray[np.float32]
    gpu: NDArray[np.float32]
    gpu_memory: NDArray[np.float32]
    network_bytes_s: NDArray[np.float32]
    disk_bytes_s: NDArray[np.float32]
    interval_s: float

    @property
    def gpus(self) -> int:
        """G."""
        return int(self.gpu.shape[1])

    @property
    def cores(self) -> int:
        """C."""
        return int(self.cpu.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Where the time of a job went.

    Attributes:
        started_s: when the clock started, in seconds of that clock.
        now_s: when this was taken.
        first_step_s: when the first train step began, or None.
        seconds: kind of work -> seconds spent on it in the whole job; see `timeline.KINDS`.
        steps: phase (``train``, ``validation``, ``calibration``, ``test``) -> float32 seconds of each of its newest
            steps.
        longest_silence_s: longest time in which nothing was told, the time until `now_s` included.
        workers: threads that load images, of the process that is watched; 0 where what trains loads them itself, None
            where it reads stored outputs and there are none to load.
        worker_seconds: what decoding and augmenting took those threads, all together.
        processes: of this host, each with so many threads.
    """

    started_s: float
    now_s: float
    first_step_s: float | None
    seconds: Mapping[str, float]
    steps: Mapping[str, NDArray[np.float32]]
    longest_silence_s: float
    workers: int | None = None
    worker_seconds: float = 0.0
    processes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that is known of a job at one moment.

    Attributes:
        losses: of the criterion.
        tensors: statistics of gradients, weights and activations.
        answers: labels and predictions.
        system: of the machine, or None when it was not sampled.
        times: of the loop, or None when it was not measured.
        labels: class names in the order of their indices, or none.
        missing: why something is not there, for the words of a verdict: collection, ``losses``, ``answers``, ``system``
            or ``times`` -> a sentence.
        ongoing: more may come: the job still runs.
    """

    losses: Losses = Losses(train=(), evaluation=())
    tensors: Tensors = field(default_factory=dict)
    answers: Answers = field(default_factory=Answers)
    system: SystemSamples | None = None
    times: StepTimes | None = None
    labels: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    ongoing: bool = False
