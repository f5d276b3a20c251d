"""Small synthetic evidence for the tests of rules."""

from __future__ import annotations

import numpy as np

from dogbreed.insight.evidence import (
    Answers,
    Evidence,
    Losses,
    Point,
    Reading,
    StepTimes,
    SystemSamples,
)


def reading(step, *, units=None, **values):
    """A healthy reading, changed by `values`."""
    given = {"min": -1.0, "max": 1.0, "mean": 0.01 * step, "variance": 0.3, "abs_mean": 0.5, "zeros": 0.0} | values
    return Reading(step, given, None if units is None else np.array(units, dtype=np.float32))


def tensors(collection, **named):
    """Evidence with one collection; names have `__` for a dot."""
    return Evidence(tensors={collection: {name.replace("__", "."): tuple(one) for name, one in named.items()}})


def losses(train=(), evaluation=(), every=1):
    return Losses(
        tuple(Point(place * every, value) for place, value in enumerate(train)),
        tuple(Point((place + 1) * every, value) for place, value in enumerate(evaluation)),
    )


def answers(train=(), labels=(), predictions=(), evaluated=None):
    def array(values):
        return np.array(values, dtype=np.int64)

    return Evidence(
        answers=Answers(
            train_labels=array(train),
            labels=array(labels),
            predictions=array(predictions),
            evaluated=len(labels) if evaluated is None else evaluated,
        )
    )


def system(samples=1200, *, cpu=50.0, gpu=(90.0,), memory=(80.0,), iowait=0.0, cores=4):
    """A machine of one use throughout; a number may be an array of `samples`."""

    def series(value):
        return np.broadcast_to(np.asarray(value, dtype=np.float32), (samples,)).copy()

    def table(values):
        return np.stack([series(one) for one in values], axis=1) if values else np.zeros((samples, 0), np.float32)

    return Evidence(
        system=SystemSamples(
            times_s=np.arange(samples) * 0.5,
            cpu=table((cpu,) * cores),
            iowait=series(iowait),
            memory=series(40.0),
            gpu=table(gpu),
            gpu_memory=table(memory[: len(gpu)]),
            network_bytes_s=series(0.0),
            disk_bytes_s=series(0.0),
            interval_s=0.5,
        )
    )


def times(*, steps=None, seconds=None, first_step=1.0, now=100.0, silence=1.0, workers=4, processes=1, base=None):
    taken = StepTimes(
        started_s=0.0,
        now_s=now,
        first_step_s=first_step,
        seconds={"data": 10.0, "forward": 60.0, "backward": 30.0} if seconds is None else seconds,
        steps={phase: np.array(one, dtype=np.float32) for phase, one in (steps or {}).items()},
        longest_silence_s=silence,
        workers=workers,
        processes=processes,
    )
    return Evidence(times=taken, system=base.system if base else None)
