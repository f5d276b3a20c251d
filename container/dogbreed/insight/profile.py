"""What a report tells of time and machine, made small: histograms and thinned series instead of samples.

Knows neither pages nor the loop; `of` takes what the rules looked at and gives plain values that JSON can hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dogbreed.insight.evidence import Evidence, SystemSamples
from dogbreed.insight.rules.machine import system_usage
from dogbreed.insight.timeline import Operator, histogram

_POINTS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Time and machine of a job.

    Attributes:
        seconds: kind of work -> seconds, see `timeline.KINDS`.
        steps: phase -> ``edges_ms``, ``counts`` (of the steps that are no outliers), ``outliers``, ``steps``,
            ``mean_ms``, ``p50_ms``, ``p95_ms`` and ``max_ms``.
        series: name (``CPU``, ``memory``, ``GPU 0``, ``GPU 0 memory``) -> up to 300 pairs of seconds since the first
            sample and percent, each the mean of its stretch.
        usage: see `rules.machine.system_usage`.
        operators: of the profiled steps, see `timeline.Operator`.
        workers: threads that loaded images, see `evidence.StepTimes`.
        worker_seconds: what decoding and augmenting took them, all together.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    steps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    series: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    usage: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)
    operators: Sequence[Mapping[str, Any]] = ()
    workers: int | None = None
    worker_seconds: float = 0.0


def of(evidence: Evidence, operators: Sequence[Operator] = ()) -> Profile:
    """The profile of a job from everything that was gathered."""
    system, taken = evidence.system, evidence.times
    sampled = system is not None and len(system.times_s) > 0
    return Profile(
        seconds={kind: round(seconds, 4) for kind, seconds in taken.seconds.items()} if taken else {},
        steps={phase: _steps(durations) for phase, durations in taken.steps.items() if len(durations)} if taken else {},
        series=_series(system) if system is not None and sampled else {},
        usage=system_usage(system) if system is not None and sampled else {},
        operators=tuple(asdict(one) for one in operators),
        workers=taken.workers if taken else None,
        worker_seconds=round(taken.worker_seconds, 4) if taken else 0.0,
    )


def _steps(durations_s: NDArray[np.float32]) -> dict[str, Any]:
    edges, counts, outliers = histogram(durations_s.tolist())
    p50, p95 = np.percentile(durations_s, [50, 95])
    named = {"mean": durations_s.mean(), "p50": p50, "p95": p95, "max": durations_s.max()}
    return {
        "edges_ms": [round(edge * 1000, 4) for edge in edges],
        "counts": counts,
        "outliers": outliers,
        "steps": len(durations_s),
        **{f"{name}_ms": round(float(value) * 1000, 4) for name, value in named.items()},
    }


def _series(system: SystemSamples) -> dict[str, list[tuple[float, float]]]:
    columns: dict[str, NDArray[np.float32]] = {"CPU": system.cpu.mean(axis=1), "memory": system.memory}
    for gpu in range(system.gpus):
        columns[f"GPU {gpu}"] = system.gpu[:, gpu]
        columns[f"GPU {gpu} memory"] = system.gpu_memory[:, gpu]
    # What NVML does not tell of a GPU is left out.
    columns = {name: values for name, values in columns.items() if not np.isnan(values).all()}
    parts = np.array_split(np.arange(len(system.times_s)), min(_POINTS, len(system.times_s)))
    moments = system.times_s - system.times_s[0]
    return {
        name: [
            (round(float(moments[part].mean()), 2), round(float(np.nanmean(values[part])), 2))
            for part in parts
            if not np.isnan(values[part]).all()
        ]
        for name, values in columns.items()
    }
