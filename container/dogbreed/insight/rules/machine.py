"""Rules on the machine and on time: is what is paid for used, and what holds it up?

Pure: samples and step times in, one verdict out. Names, parameters and defaults are those that the SageMaker SDK sends
(awslabs/sagemaker-debugger-rulesconfig); where AWS's documentation gives another number, the docstring says so. AWS
took the sources of these rules back; what is written here follows the descriptions. `patience` counts samples: at the
usual 500 ms, AWS's 1000 are 8 minutes, and a shorter job ends in NotEnoughData rather than in a false all-clear.

Legend: T samples in time, C CPU cores, G GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dogbreed.insight.evidence import Evidence, StepTimes, SystemSamples
from dogbreed.insight.rules.common import Need, Rule, listed, not_enough, times, verdict
from dogbreed.insight.verdicts import Status, Verdict

_ON_SYSTEM = frozenset({Need.SYSTEM})
_ON_TIMES = frozenset({Need.TIMES})
_USE, _MEMORY, _BOTH = "the use", "the memory in use", "use and memory"
_OUTLIER_STEPS = 100
"""StepOutlier judges a phase from the step after these on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LowGPUUtilization:
    """Fires when a GPU is little used, or used in fits and starts.

    Per GPU, after more than `patience` samples, over each window: the 95th percentile is below `threshold_p95` (little
    used), or it is above and the 5th is below `threshold_p5` (fluctuating).

    Attributes:
        threshold_p95: percent that the 95th percentile should reach.
        threshold_p5: percent that the 5th percentile should reach.
        window: samples that the percentiles are taken over.
        patience: samples at the start of a job that are passed over.
    """

    needs: ClassVar[frozenset[Need]] = _ON_SYSTEM

    threshold_p95: float = 70.0
    threshold_p5: float = 10.0
    window: int = 500
    patience: int = 1000

    def judge(self, evidence: Evidence) -> Verdict:
        """Looks at every window of every GPU."""
        system = evidence.system
        if system is None or not _known(system.gpu) or len(system.gpu) <= self.patience:
            return _too_few(self, evidence, self.patience + 1, of=_USE)
        judged = []
        for end in _ends(len(system.gpu), first=self.patience + 1, every=self.window):
            window = system.gpu[max(0, end - self.window) : end]
            for gpu in _known(window):
                low, high = np.nanpercentile(window[:, gpu], [5, 95])
                judged.append((bool(high < self.threshold_p95), bool(low < self.threshold_p5), gpu, low, high))
        if not judged:
            return _too_few(self, evidence, self.patience + 1, of=_USE)
        broken = [one for one in judged if one[0] or one[1]]
        little, _, gpu, low, high = broken[-1] if broken else min(judged, key=lambda one: one[4])
        return verdict(
            self,
            Status.ISSUES_FOUND if broken else Status.NO_ISSUES_FOUND,
            evidence=f"GPU {gpu} was used {low:.3g} % (5th percentile) to {high:.3g} % (95th) of the time over "
            f"{times(min(self.window, len(system.gpu)), 'sample')}; expected are at least {self.threshold_p5:g} % and "
            f"{self.threshold_p95:g} %. {len(broken)} of {times(len(judged), 'window')} fired."
            f"{_left_out(system.gpu, _USE)}",
            recommendation=""
            if not broken
            else "Raise batch-size, or use a smaller instance: the GPU has room to spare."
            if little
            else "The GPU is waited on in between: see what it waits for under 'Where the time went', and raise "
            "num-workers if that is data.",
            violations=len(broken),
            datapoints=len(judged),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CPUBottleneck:
    """Fires when GPUs idle while a CPU core is at its limit.

    A sample is a bottleneck when any GPU is below `gpu_threshold` and any core above `cpu_threshold`; the rule fires
    when more than `threshold` percent of the samples are, from `patience` samples on (AWS's documentation: 100).

    Attributes:
        threshold: percent of samples that may be bottlenecks.
        gpu_threshold: percent of use below which a GPU idles.
        cpu_threshold: percent of use above which a core is at its limit.
        patience: samples before the rule judges.
    """

    needs: ClassVar[frozenset[Need]] = _ON_SYSTEM

    threshold: float = 50.0
    gpu_threshold: float = 10.0
    cpu_threshold: float = 90.0
    patience: int = 1000

    def judge(self, evidence: Evidence) -> Verdict:
        """Counts the bottlenecks."""
        return _judge_bottleneck(
            self,
            evidence,
            held_up=lambda system: (system.cpu > self.cpu_threshold).any(axis=1),
            told=f"and a CPU core above {self.cpu_threshold:g} %",
            recommendation="The CPU prepares data too slowly: raise num-workers, use augment=flip or none, smaller "
            "images (make them ahead of training), or an instance with more CPU cores per GPU.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IOBottleneck:
    """Fires when GPUs idle while the CPU waits for input and output.

    As `CPUBottleneck`, with the time that cores spend waiting for disk or network.

    Attributes:
        threshold: percent of samples that may be bottlenecks.
        gpu_threshold: percent of use below which a GPU idles (AWS's documentation: 70).
        io_threshold: percent of waiting above which a core is held up.
        patience: samples before the rule judges.
    """

    needs: ClassVar[frozenset[Need]] = _ON_SYSTEM

    threshold: float = 50.0
    gpu_threshold: float = 10.0
    io_threshold: float = 50.0
    patience: int = 1000

    def judge(self, evidence: Evidence) -> Verdict:
        """Counts the bottlenecks."""
        return _judge_bottleneck(
            self,
            evidence,
            held_up=lambda system: system.iowait > self.io_threshold,
            told=f"while the CPU waited for input and output more than {self.io_threshold:g} % of the time",
            recommendation="Use File instead of FastFile mode, an instance with local NVMe, or fewer, larger files.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSize:
    """Fires when CPU, GPU and GPU memory are all little used, which a larger batch would change.

    Over the last `window` samples the 95th percentiles of the node's mean CPU use, of a GPU's use and of that GPU's
    memory are all below their thresholds. The rule judges from more than `patience` samples on (AWS's documentation:
    100).

    Attributes:
        cpu_threshold_p95: percent.
        gpu_threshold_p95: percent.
        gpu_memory_threshold_p95: percent.
        patience: samples before the rule judges.
        window: samples that the percentiles are taken over.
    """

    needs: ClassVar[frozenset[Need]] = _ON_SYSTEM

    cpu_threshold_p95: float = 70.0
    gpu_threshold_p95: float = 70.0
    gpu_memory_threshold_p95: float = 70.0
    patience: int = 1000
    window: int = 500

    def judge(self, evidence: Evidence) -> Verdict:
        """Looks at every window of every GPU."""
        system = evidence.system
        least = max(self.patience, self.window) + 1
        if system is None or not _known(system.gpu + system.gpu_memory) or len(system.gpu) < least:
            return _too_few(self, evidence, least, of=_BOTH)
        judged = []
        for end in _ends(len(system.gpu), first=least, every=self.window):
            window = slice(end - self.window, end)
            cpu = float(np.percentile(system.cpu[window].mean(axis=1), 95))
            for gpu in _known(system.gpu[window] + system.gpu_memory[window]):
                use, memory = (float(np.nanpercentile(one[window, gpu], 95)) for one in (system.gpu, system.gpu_memory))
                fired = (
                    cpu < self.cpu_threshold_p95
                    and use < self.gpu_threshold_p95
                    and memory < self.gpu_memory_threshold_p95
                )
                judged.append((fired, gpu, cpu, use, memory))
        if not judged:
            return _too_few(self, evidence, least, of=_BOTH)
        broken = [one for one in judged if one[0]]
        _, gpu, cpu, use, memory = broken[-1] if broken else judged[-1]
        return verdict(
            self,
            Status.ISSUES_FOUND if broken else Status.NO_ISSUES_FOUND,
            evidence=f"The 95th percentiles over {times(self.window, 'sample')} were {cpu:.3g} % of the CPU, {use:.3g} "
            f"% of GPU {gpu} and {memory:.3g} % of its memory (limits {self.cpu_threshold_p95:g}, "
            f"{self.gpu_threshold_p95:g} and {self.gpu_memory_threshold_p95:g} %); {len(broken)} of "
            f"{times(len(judged), 'window')} fired.{_left_out(system.gpu + system.gpu_memory, _BOTH)}",
            recommendation="Raise batch-size (and lr with it), or use a smaller instance." if broken else "",
            violations=len(broken),
            datapoints=len(judged),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GPUMemoryIncrease:
    """Fires when a GPU's memory in use grows from one window to the next.

    After `patience` samples, mean of a window - mean of the window before > `increase`, in percentage points. (AWS's
    documentation: increase 10, patience 100, window 500.)

    Attributes:
        increase: percentage points.
        patience: samples at the start of a job that are passed over.
        window: samples that the means are taken over.
    """

    needs: ClassVar[frozenset[Need]] = _ON_SYSTEM

    increase: float = 5.0
    patience: int = 1000
    window: int = 10

    def judge(self, evidence: Evidence) -> Verdict:
        """Compares every window with the one before it."""
        system = evidence.system
        least = self.patience + self.window + 1
        # What is not known of a GPU that fell silent is no rise.
        gpus = [] if system is None else [gpu for gpu in _known(system.gpu_memory) if _whole(system.gpu_memory[:, gpu])]
        if system is None or not gpus or len(system.gpu) < least:
            return _too_few(self, evidence, least, of=_MEMORY)
        sums = np.cumsum(np.vstack([np.zeros((1, len(gpus))), system.gpu_memory[:, gpus]]), axis=0)
        means = (sums[self.window :] - sums[: -self.window]) / self.window
        rises = (means[self.window :] - means[: -self.window])[max(0, self.patience - self.window) :]
        if not len(rises):
            return _too_few(self, evidence, least + self.window, of=_MEMORY)
        where, column = (int(index) for index in np.unravel_index(rises.argmax(), rises.shape))
        broken = int((rises > self.increase).any(axis=1).sum())
        moment = (where + max(self.patience, self.window) + self.window) * system.interval_s
        return verdict(
            self,
            Status.ISSUES_FOUND if broken else Status.NO_ISSUES_FOUND,
            evidence=f"The largest rise between two windows of {times(self.window, 'sample')} was "
            f"{rises[where, column]:.3g} percentage points, of GPU {gpus[column]} after {moment:.0f} s (limit "
            f"{self.increase:g}).{_left_out(system.gpu_memory, _MEMORY)}",
            recommendation="Something keeps tensors alive (sums of losses with their graph, lists of outputs); detach "
            "them. A single rise at the first evaluation is harmless."
            if broken
            else "",
            violations=broken,
            datapoints=len(rises),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancing:
    """Fires when GPUs of one machine are used unequally.

    For every pair of GPUs the Jensen-Shannon distance (natural logarithm) between the histograms of their use, in 50
    bins of 2 percent, is above `threshold`. From `patience` samples on (AWS's documentation: 10).

    Attributes:
        threshold: of the distance; 0 for equal distributions, 0.83 for disjoint ones.
        patience: samples before the rule judges.
    """

    needs: ClassVar[frozenset[Need]] = _ON_SYSTEM

    threshold: float = 0.5
    patience: int = 1000

    def judge(self, evidence: Evidence) -> Verdict:
        """Compares every pair of GPUs over the whole job."""
        system = evidence.system
        gpus = [] if system is None else _known(system.gpu)
        if system is None or not gpus or len(system.gpu) <= self.patience:
            return _too_few(self, evidence, self.patience + 1, of=_USE)
        if len(gpus) == 1:
            left_out = _left_out(system.gpu, _USE)
            return not_enough(self, f"The job has 1 GPU whose use is known; the rule compares 2 or more.{left_out}")
        # NaN is in no bin.
        histograms = {gpu: np.histogram(system.gpu[:, gpu], bins=50, range=(0, 100))[0] for gpu in gpus}
        distances = [
            (_jensen_shannon(histograms[one], histograms[other]), one, other) for one, other in combinations(gpus, 2)
        ]
        broken = [one for one in distances if one[0] > self.threshold]
        distance, one, other = max(distances)
        return verdict(
            self,
            Status.ISSUES_FOUND if broken else Status.NO_ISSUES_FOUND,
            evidence=f"The use of GPUs {one} and {other} differs most, by a Jensen-Shannon distance of {distance:.3g} "
            f"(limit {self.threshold:g}); mean use is {np.nanmean(system.gpu[:, one]):.3g} % and "
            f"{np.nanmean(system.gpu[:, other]):.3g} %. {len(broken)} of {times(len(distances), 'pair')} fired."
            f"{_left_out(system.gpu, _USE)}",
            recommendation="Give every process as many samples as the others, and see that no GPU serves another job."
            if broken
            else "",
            violations=len(broken),
            datapoints=len(distances),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataloader:
    """Fires when far fewer or far more threads load data than the machine has CPU cores.

    AWS counts the distinct processes that loaded data per second and compares their median with the number of cores;
    here the loader, which has threads in their place, says how many it started (none are 1, the training's own).

    Attributes:
        min_threshold: threads in percent of the cores, at least.
        max_threshold: at most.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SYSTEM, Need.TIMES})

    min_threshold: float = 70.0
    max_threshold: float = 200.0

    def judge(self, evidence: Evidence) -> Verdict:
        """Compares the loader's threads with the cores."""
        if evidence.times is None or evidence.system is None:
            return not_enough(self, f"{_why(evidence, 'times')} {_why(evidence, 'system')}".strip())
        if evidence.times.workers is None:
            return not_enough(self, "No image was loaded in training: what learns reads stored outputs.")
        processes, cores = evidence.times.processes, evidence.system.cores
        threads = max(1, evidence.times.workers) * processes
        if not cores:
            return not_enough(self, "The machine was not sampled once before the job was over.")
        share = 100 * threads / cores
        waited = _waited_share(evidence.times)
        broken = not self.min_threshold <= share <= self.max_threshold
        low = share < self.min_threshold
        told = f"; the loop spent {waited * 100:.3g} % of its time waiting for data" if waited is not None else ""
        return verdict(
            self,
            Status.ISSUES_FOUND if broken else Status.NO_ISSUES_FOUND,
            evidence=f"{times(threads, 'thread')} loaded data on {times(cores, 'CPU core')}, {share:.3g} % ("
            f"expected are {self.min_threshold:g} to {self.max_threshold:g} %){told}.",
            recommendation=""
            if not broken
            else f"Set num-workers={max(1, cores // processes)}."
            if not low or (waited is not None and waited > 0.1)
            else "Little is lost while the loop hardly waits for data; else set num-workers="
            f"{max(1, cores // processes)}.",
            violations=int(broken),
            datapoints=1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxInitializationTime:
    """Fires when the first train step comes late.

    Attributes:
        threshold: minutes from the start of the job.
    """

    needs: ClassVar[frozenset[Need]] = _ON_TIMES

    threshold: float = 20.0

    def judge(self, evidence: Evidence) -> Verdict:
        """Looks at when the first train step began."""
        taken = evidence.times
        if taken is None:
            return not_enough(self, _why(evidence, "times"))
        limit_s = self.threshold * 60
        waited = (taken.now_s if taken.first_step_s is None else taken.first_step_s) - taken.started_s
        if taken.first_step_s is None and waited <= limit_s:
            return not_enough(self, f"No train step began within the {waited:.0f} s of this job.")
        started = "no train step has begun" if taken.first_step_s is None else "the first train step began"
        broken = waited > limit_s
        return verdict(
            self,
            Status.ISSUES_FOUND if broken else Status.NO_ISSUES_FOUND,
            evidence=f"After {waited:.1f} s {started} (limit {limit_s:.0f} s).",
            recommendation="See what comes before it: downloading (FastFile mode starts at once), the frozen part's "
            "one pass (DOGBREED_CACHE_DIR keeps its outputs for the next job), or decoding."
            if broken
            else "",
            violations=int(broken),
            datapoints=1,
            details={"initialization_seconds": waited},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutlier:
    """Fires when many steps take much longer than the rest.

    Per phase (training, validation, calibration and test) with more than 100 steps: more than `n_outliers` durations
    exceed mean + `stddev` standard deviations.
    (AWS's documentation gives stddev 5 and speaks of shorter steps as well; the SDK sends 3, and the rule looked at
    longer ones alone.)

    Attributes:
        stddev: standard deviations above the mean.
        mode: ``train``, ``validation``, or None for all phases.
        n_outliers: outliers that are tolerated.
    """

    needs: ClassVar[frozenset[Need]] = _ON_TIMES

    stddev: float = 3.0
    mode: Literal["train", "validation"] | None = None
    n_outliers: int = 10

    def judge(self, evidence: Evidence) -> Verdict:
        """Counts the outliers of every phase."""
        if evidence.times is None:
            return not_enough(self, _why(evidence, "times"))
        phases = {
            phase: steps
            for phase, steps in evidence.times.steps.items()
            if self.mode in (None, phase) and len(steps) > _OUTLIER_STEPS
        }
        if not phases:
            counts = ", ".join(f"{len(steps)} {phase}" for phase, steps in evidence.times.steps.items())
            return not_enough(
                self, f"The job has {counts or 'no'} steps; more than {_OUTLIER_STEPS} of a phase are needed."
            )
        judged = []
        for phase, steps in phases.items():
            limit = float(steps.mean() + self.stddev * steps.std())
            judged.append((int((steps > limit).sum()), phase, limit, steps))
        broken = [one for one in judged if one[0] > self.n_outliers]
        count, phase, limit, steps = max(judged, key=lambda one: one[0])
        return verdict(
            self,
            Status.ISSUES_FOUND if broken else Status.NO_ISSUES_FOUND,
            evidence=f"{count} of {times(len(steps), f'{phase} step')} took longer than {limit * 1000:.3g} ms, the "
            f"mean of {steps.mean() * 1000:.3g} ms and {self.stddev:g} standard deviations (tolerated are "
            f"{self.n_outliers}); the longest took {steps.max() * 1000:.3g} ms.",
            recommendation="See in the trace what these steps wait for: data (raise num-workers), checkpoints (raise "
            "checkpoint-seconds), or another process on the machine."
            if broken
            else "",
            violations=sum(one[0] for one in broken),
            datapoints=sum(len(one[3]) for one in judged),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StalledTraining:
    """Fires when nothing new came for too long. AWS's name is StalledTrainingRule, which is understood as well.

    AWS looks for new tensors; here every step, pass and epoch counts as a sign of life, so a slow epoch of long steps
    between two saves is no stall.

    Attributes:
        threshold: seconds without a sign of life.
    """

    needs: ClassVar[frozenset[Need]] = _ON_TIMES

    threshold: float = 1800.0

    def judge(self, evidence: Evidence) -> Verdict:
        """Looks at the longest silence."""
        if evidence.times is None:
            return not_enough(self, _why(evidence, "times"))
        silence = evidence.times.longest_silence_s
        broken = silence > self.threshold
        return verdict(
            self,
            Status.ISSUES_FOUND if broken else Status.NO_ISSUES_FOUND,
            evidence=f"The longest time without a step was {silence:.3g} s (limit {self.threshold:g} s).",
            recommendation="See the trace and the log for what the job waited for: a dead loader process, a lost host, "
            "or a full disk."
            if broken
            else "",
            violations=int(broken),
            datapoints=1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OverallSystemUsage:
    """Never fires: says how much of the machine was used."""

    needs: ClassVar[frozenset[Need]] = _ON_SYSTEM

    def judge(self, evidence: Evidence) -> Verdict:
        """Gives maximum, 99th, 95th and 50th percentile and minimum of everything that was sampled."""
        system = evidence.system
        if system is None or not len(system.times_s):
            return not_enough(self, _why(evidence, "system"))
        usage = system_usage(system)
        told = ", ".join(
            f"{name} {row['p50']:.3g} % (95th percentile {row['p95']:.3g} %)"
            for name, row in usage.items()
            if row["unit"] == "percent"
        )
        return verdict(
            self,
            Status.NO_ISSUES_FOUND,
            evidence=f"Half of the time at most: {told}.{_left_out(system.gpu, _USE)}"
            f"{_left_out(system.gpu_memory, _MEMORY)}",
            recommendation=self._advice(usage),
            datapoints=len(system.times_s),
            details=usage,
        )

    def _advice(self, usage: Mapping[str, Mapping[str, float | str]]) -> str:
        """The verdicts of AWS's report on a machine as a whole."""
        if "GPU" not in usage:
            return ""
        gpu, cpu = float(usage["GPU"]["p95"]), float(usage["CPU"]["p95"])
        if gpu >= 70:
            return ""
        return (
            "GPU and CPU are both underused; raise batch-size or use a smaller instance."
            if cpu < 70
            else "The GPU is underused while the CPU is busy; the CPU is likely to hold it up."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OverallFrameworkMetrics:
    """Never fires: says where the time of the job went."""

    needs: ClassVar[frozenset[Need]] = _ON_TIMES

    def judge(self, evidence: Evidence) -> Verdict:
        """Gives the share of every kind of work."""
        taken = evidence.times
        if taken is None or not sum(taken.seconds.values()):
            return not_enough(self, _why(evidence, "times"))
        total = sum(taken.seconds.values())
        ordered = sorted(taken.seconds.items(), key=lambda one: -one[1])
        told = ", ".join(f"{name} {seconds / total * 100:.3g} %" for name, seconds in ordered if seconds >= total / 200)
        waited = _waited_share(taken)
        cores = evidence.system.cores // taken.processes if evidence.system else 0
        advice = ""
        if waited is not None and waited > 0.25:
            advice = f"Waiting for data took {waited * 100:.0f} % of the training loop"
            if taken.workers is None:
                advice += ", which reads stored outputs: put DOGBREED_CACHE_DIR on a faster disk, or raise batch-size."
            elif cores > max(1, taken.workers):
                advice += f": set num-workers={cores} ({taken.workers} now)."
            else:
                advice += f" with num-workers={taken.workers}: store smaller images, use augment=flip, or cache=true."
        return verdict(
            self,
            Status.NO_ISSUES_FOUND,
            evidence=f"The time went to {told}.",
            recommendation=advice,
            datapoints=sum(len(steps) for steps in taken.steps.values()),
            details={name: round(seconds, 4) for name, seconds in ordered},
        )


def system_usage(system: SystemSamples) -> dict[str, dict[str, float | str]]:
    """Name -> unit, max, p99, p95, p50 and min of everything that was sampled; GPUs are averaged per sample.

    What NVML does not tell is left out.
    """
    series: dict[str, tuple[str, NDArray[np.float32]]] = {
        "CPU": ("percent", system.cpu.mean(axis=1)),
        "memory": ("percent", system.memory),
        "I/O wait": ("percent", system.iowait),
        "network": ("bytes per second", system.network_bytes_s),
        "disk": ("bytes per second", system.disk_bytes_s),
    }
    for name, of_each in (("GPU", system.gpu), ("GPU memory", system.gpu_memory)):
        known = of_each[~np.isnan(of_each).all(axis=1)]
        if known.size:
            series[name] = ("percent", np.nanmean(known, axis=1))
    rows: dict[str, dict[str, float | str]] = {}
    for name, (unit, values) in series.items():
        percentiles = np.percentile(values, [100, 99, 95, 50, 0]) if len(values) else np.zeros(5)
        named = zip(("max", "p99", "p95", "p50", "min"), percentiles, strict=True)
        rows[name] = {"unit": unit, **{key: round(float(value), 2) for key, value in named}}
    return rows


def _judge_bottleneck(
    rule: CPUBottleneck | IOBottleneck,
    evidence: Evidence,
    *,
    held_up: Callable[[SystemSamples], Any],  # bool [T]; numpy's stubs lose the type of a comparison
    told: str,
    recommendation: str,
) -> Verdict:
    """Counts the samples at which a GPU idled and the CPU was held up."""
    system = evidence.system
    if system is None or not _known(system.gpu) or len(system.gpu) <= rule.patience:
        return _too_few(rule, evidence, rule.patience + 1, of=_USE)
    # What is not known is below no threshold.
    idle = (system.gpu < rule.gpu_threshold).any(axis=1)
    count, samples = int((idle & held_up(system)).sum()), len(system.gpu)
    share = 100 * count / samples
    broken = share > rule.threshold
    return verdict(
        rule,
        Status.ISSUES_FOUND if broken else Status.NO_ISSUES_FOUND,
        evidence=f"In {count} of {times(samples, 'sample')}, {share:.3g} %, a GPU was below {rule.gpu_threshold:g} % "
        f"{told} (tolerated in {rule.threshold:g} %). The GPUs idled in {int(idle.sum())} samples."
        f"{_left_out(system.gpu, _USE)}",
        recommendation=recommendation if broken else "",
        violations=count if broken else 0,
        datapoints=samples,
    )


def _known(values_TG: NDArray[np.float32]) -> list[int]:
    """The GPUs of which something is known."""
    return np.flatnonzero(~np.isnan(values_TG).all(axis=0)).tolist() if len(values_TG) else []


def _whole(values_T: NDArray[np.float32]) -> bool:
    return not bool(np.isnan(values_T).any())


def _left_out(values_TG: NDArray[np.float32], of: str) -> str:
    """Says of which GPUs something is not known, in a sentence after others; empty where all is known."""
    known = _known(values_TG)
    silent = [f"GPU {gpu}" for gpu in range(values_TG.shape[1]) if gpu not in known]
    broken = [f"GPU {gpu}" for gpu in known if not _whole(values_TG[:, gpu])]
    return (f" NVML does not tell {of} of {listed(silent)}, which is left out." if silent else "") + (
        f" NVML told {of} of {listed(broken)} part of the time." if broken else ""
    )


def _too_few(rule: Rule, evidence: Evidence, needed: int, *, of: str) -> Verdict:
    """What is missing to a rule that needs so many samples ``of`` GPUs."""
    system = evidence.system
    if system is None:
        return not_enough(rule, _why(evidence, "system"))
    if not system.gpus:
        return not_enough(rule, "The machine has no GPU that could be sampled.")
    if len(system.gpu) >= needed:
        return not_enough(rule, f"The rule looks at {of} of GPUs.{_left_out(system.gpu + system.gpu_memory, of)}")
    return not_enough(
        rule,
        f"The machine was sampled {times(len(system.times_s), 'time')} in "
        f"{len(system.times_s) * system.interval_s:.0f} s; {needed} samples, {needed * system.interval_s:.0f} s, "
        f"are needed.",
        "Nothing to do for a job this short.",
        datapoints=len(system.times_s),
    )


def _why(evidence: Evidence, what: str) -> str:
    default = {"system": "The machine was not sampled.", "times": "The steps were not timed."}
    if what == "system" and evidence.system is not None:
        return "" if len(evidence.system.times_s) else "The machine was not sampled once."
    if what == "times" and evidence.times is not None:
        return "" if sum(evidence.times.seconds.values()) else "No work was timed."
    return evidence.missing.get(what, default[what])


def _waited_share(taken: StepTimes) -> float | None:
    """Share of the training loop's time that it waited for data; None when nothing was timed."""
    loop = {"data", "copy", "forward", "backward", "optimizer"} & set(taken.seconds)
    total = sum(taken.seconds[kind] for kind in loop)
    return taken.seconds.get("data", 0.0) / total if total else None


def _ends(samples: int, *, first: int, every: int) -> list[int]:
    """Where windows end: at the first possible place, then one window after the other, and at the last sample."""
    return sorted({*range(first, samples + 1, every), samples})


def _jensen_shannon(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    p, q = one / one.sum(), other / other.sum()
    middle = (p + q) / 2

    def divergence(a: NDArray[np.float64]) -> float:
        known = a > 0
        return float((a[known] * np.log(a[known] / middle[known])).sum())

    return math.sqrt(max(0.0, (divergence(p) + divergence(q)) / 2))
