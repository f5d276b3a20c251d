"""Samples the machine while a job runs: CPU per core, GPU, memory, disk and network.

Written in the format of SageMaker's profiler, one JSON object per line and one file per minute, so that smdebug's
readers open them; kept in memory, within bounds, for the rules and the report. Knows neither of them.

A container sees its host's counters. Cores are those that this process may run on; under a CPU quota that is smaller,
the container's own use is shown, spread over as many cores as the quota allows, and memory is in percent of the
container's limit.

Sources: the profiler's files as smdebug 1.0.34 reads them (smdebug/profiler/system_metrics_reader.py); cgroup-v2.rst of
the Linux kernel.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import psutil

from dogbreed.environment import available_cpus
from dogbreed.gpus import find_gpus, told_gpus
from dogbreed.insight.evidence import SystemSamples

logger = logging.getLogger(__name__)

DEFAULT_INTERVAL_S = 0.5
_KEPT = 20_000
"""Newest samples that are kept for the rules: at 500 ms, those of 2.8 hours."""
_FLUSH_SAMPLES = 20
_UNLIMITED = 2**60


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the machine.

    Attributes:
        cpu: percent of use since the look before, of each core.
        iowait: percent of the cores' time since then that was spent waiting for input and output.
        memory: percent of the limit.
        gpu: percent of use, of each GPU; NaN where NVML does not tell it.
        gpu_memory: percent in use, of each GPU; likewise.
        network_bytes: received and sent since the machine started.
        disk_bytes: read and written since the machine started.
    """

    cpu: tuple[float, ...]
    iowait: float
    memory: float
    gpu: tuple[float, ...] = ()
    gpu_memory: tuple[float, ...] = ()
    network_bytes: int = 0
    disk_bytes: int = 0


class Probe(Protocol):
    """Looks at a machine."""

    def look(self) -> Sample:
        """What is so now, and what was since the look before."""


class Machine:
    """The machine that this process runs on.

    Args:
        gpus: of the job; default: all that NVML finds.
        cgroup: root of the control groups.
        clock: seconds.
    """

    def __init__(
        self,
        gpus: Gpus | None = None,
        *,
        cgroup: Path = Path("/sys/fs/cgroup"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gpus = Gpus.find() if gpus is None else gpus
        self._cgroup = cgroup
        self._clock = clock
        self._cores = sorted(os.sched_getaffinity(0))
        self._limit = available_cpus(cgroup=cgroup)
        self._times = psutil.cpu_times(percpu=True)
        # Limits stand when a container begins; to ask for them at every look would be a third of what it costs.
        self._limited = self._limit < len(self._cores)
        self._usage = self._container_usage()
        self._memory_limit = self._find_memory_limit()

    def look(self) -> Sample:
        """See `Probe`."""
        cpu, iowait = self._cpu()
        gpu, gpu_memory = self._gpus.look()
        network, disk = psutil.net_io_counters(), psutil.disk_io_counters()
        return Sample(
            cpu=cpu,
            iowait=iowait,
            memory=self._memory(),
            gpu=gpu,
            gpu_memory=gpu_memory,
            network_bytes=network.bytes_recv + network.bytes_sent if network else 0,
            disk_bytes=disk.read_bytes + disk.write_bytes if disk else 0,
        )

    def _cpu(self) -> tuple[tuple[float, ...], float]:
        before, now = self._times, psutil.cpu_times(percpu=True)
        self._times = now
        shares, waited, total = [], 0.0, 0.0
        for core in self._cores:
            if core >= min(len(before), len(now)):
                continue
            spent = sum(now[core]) - sum(before[core])
            idle = now[core].idle - before[core].idle
            waiting = getattr(now[core], "iowait", 0.0) - getattr(before[core], "iowait", 0.0)
            shares.append(_percent(spent - idle - waiting, spent))
            waited, total = waited + waiting, total + spent
        used = self._container_share()
        cpu = tuple(shares) if used is None else (used,) * self._limit
        return cpu, _percent(waited, total)

    def _container_share(self) -> float | None:
        """Percent of the CPU quota that the container used; None without a quota below the cores."""
        if not self._limited:
            return None
        before, now = self._usage, self._container_usage()
        self._usage = now
        if before is None or now is None:
            return None
        return _percent(now[1] - before[1], (now[0] - before[0]) * self._limit)

    def _container_usage(self) -> tuple[float, float] | None:
        """Time now, and CPU seconds that the container has used."""
        try:
            text = (self._cgroup / "cpu.stat").read_text()
            return self._clock(), int(text.split("usage_usec", 1)[1].split(maxsplit=1)[0]) / 1e6
        except (OSError, ValueError, IndexError):
            try:
                return self._clock(), int((self._cgroup / "cpuacct" / "cpuacct.usage").read_text()) / 1e9
            except (OSError, ValueError):
                return None

    def _memory(self) -> float:
        if self._memory_limit is not None:
            limit, used_file = self._memory_limit
            with contextlib.suppress(OSError, ValueError):
                # What was read from files is dropped when memory is needed.
                used = int(used_file.read_text()) - self._reclaimable(used_file)
                return _percent(max(0, used), limit)
        return float(psutil.virtual_memory().percent)

    def _find_memory_limit(self) -> tuple[int, Path] | None:
        """The container's limit in bytes, and the file that says what it uses; None where the machine is the limit."""
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
        ):
            try:
                limit = int((self._cgroup / limit_name).read_text())
            except (OSError, ValueError):  # "max": no limit
                continue
            if limit < min(_UNLIMITED, psutil.virtual_memory().total):
                return limit, self._cgroup / used_name
        return None

    @staticmethod
    def _reclaimable(used_file: Path) -> int:
        try:
            text = used_file.with_name("memory.stat").read_text()
            return int(text.split("inactive_file", 1)[1].split(maxsplit=1)[0])
        except (OSError, ValueError, IndexError):
            return 0


class Gpus:
    """A job's NVIDIA GPUs through NVML; none where nvidia-ml-py or a driver is missing.

    NVML lists all GPUs of a machine, whichever of them CUDA shows the job. Its own memory "utilisation" is the activity
    of the memory bus; memory in use is used bytes of all bytes.

    Args:
        library: the module `pynvml`, initialised, or None.
        reason: why there is none.
        names: of the job's GPUs, see `gpus.find_gpus`; None is all.
    """

    def __init__(
        self,
        library: Any = None,  # noqa: ANN401  untyped and optional
        reason: str = "",
        names: Sequence[str] | None = None,
    ) -> None:
        self._library = library
        self.reason = reason
        self._handles = find_gpus(names, library=library) if library is not None else []

    @classmethod
    def find(cls, names: Sequence[str] | None = None, *, told: str | None = None) -> Gpus:
        """The GPUs of a job.

        Args:
            names: of them, see `gpus.find_gpus`; None are those that ``told`` names.
            told: CUDA_VISIBLE_DEVICES as it is written; None is all GPUs of this machine.
        """
        try:
            import pynvml
        except ImportError:
            return cls(None, "nvidia-ml-py is not installed, so GPUs are not sampled")
        try:
            pynvml.nvmlInit()
            return cls(pynvml, names=told_gpus(told, library=pynvml) if names is None else names)
        except Exception as error:  # NVML's errors: no driver, no permission
            return cls(None, f"NVML finds no GPU ({error})")

    def __len__(self) -> int:
        return len(self._handles)

    def look(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Percent of use and of memory of each GPU; NaN is what it does not tell, as a divided one (MIG) its use."""
        return (
            tuple(self._ask(lambda one: float(self._library.nvmlDeviceGetUtilizationRates(one).gpu))),
            tuple(self._ask(self._memory)),
        )

    def _memory(self, handle: Any) -> float:  # noqa: ANN401  untyped
        info = self._library.nvmlDeviceGetMemoryInfo(handle)
        return _percent(info.used, info.total)

    def _ask(self, question: Callable[[Any], float]) -> Iterator[float]:
        for handle in self._handles:
            try:
                yield question(handle)
            except Exception:  # a GPU that fell off the bus must not end the job
                yield math.nan


class SystemSampler:
    """Looks at the machine at a fixed interval, in a thread of its own.

    Args:
        folder: for the profiler's files; they lie in ``system/incremental`` below it. None keeps memory only.
        node: number of this host, from 1.
        interval_s: between samples.
        probe: what is looked at; default: this machine.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        node: int = 1,
        interval_s: float = DEFAULT_INTERVAL_S,
        probe: Probe | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._node = node
        self._interval_s = interval_s
        self._probe = Machine() if probe is None else probe
        self._clock = clock
        self._samples: deque[tuple[float, Sample]] = deque(maxlen=_KEPT)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system sampler", daemon=True)
        self._minute = -1
        self._file: TextIO | None = None
        self._unflushed = 0
        self.failure = ""

    def start(self) -> None:
        """Begins; the first sample follows after one interval, because use is measured between two looks."""
        self._thread.start()

    def stop(self) -> None:
        """Ends, and writes what is buffered."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        self._close()

    def take(self) -> None:
        """Takes one sample. Never raises; a failure ends the writing of files or the sampling, and is logged once."""
        try:
            now, sample = self._clock(), self._probe.look()
            self._samples.append((now, sample))
        except Exception as error:  # counters vanish in odd containers; the job must not
            self._fail("the machine is not sampled any more", error)
            self._stop.set()
            return
        if self._folder is not None:
            try:
                self._write(now, sample, self._folder)
            except OSError as error:
                self._fail("the machine's samples are not written any more", error)
                self._folder = None

    def samples(self) -> SystemSamples:
        """The newest samples; may be called from any thread."""
        kept = list(self._samples)
        times = np.array([when for when, _ in kept], dtype=np.float64)
        looks = [one for _, one in kept]

        def table(rows: Sequence[tuple[float, ...]]) -> Any:  # noqa: ANN401  float32 [T, ...]
            width = min((len(row) for row in rows), default=0)
            return np.array([row[:width] for row in rows], dtype=np.float32).reshape(len(rows), width)

        def rate(counts: Sequence[int]) -> Any:  # noqa: ANN401  float32 [T]
            steps = np.diff(np.array(counts, dtype=np.float64), prepend=counts[0] if counts else 0.0)
            gaps = np.diff(times, prepend=times[0] - self._interval_s if len(times) else 0.0)
            return (np.maximum(steps, 0) / np.maximum(gaps, 1e-3)).astype(np.float32)

        return SystemSamples(
            times_s=times,
            cpu=table([one.cpu for one in looks]),
            iowait=np.array([one.iowait for one in looks], dtype=np.float32),
            memory=np.array([one.memory for one in looks], dtype=np.float32),
            gpu=table([one.gpu for one in looks]),
            gpu_memory=table([one.gpu_memory for one in looks]),
            network_bytes_s=rate([one.network_bytes for one in looks]),
            disk_bytes_s=rate([one.disk_bytes for one in looks]),
            interval_s=self._interval_s,
        )

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            # A fixed rhythm: what a look costs does not add up, and a late one is not made up for.
            due = max(due + self._interval_s, time.monotonic())
            if self._stop.wait(due - time.monotonic()):
                return
            self.take()

    def _write(self, now: float, sample: Sample, folder: Path) -> None:
        minute = int(now // 60) * 60
        if minute != self._minute:
            self._close()
            hour = folder / "system" / "incremental" / time.strftime("%Y%m%d%H", time.gmtime(minute))
            hour.mkdir(parents=True, exist_ok=True)
            self._file = (hour / f"{minute}.algo-{self._node}.json").open("a", encoding="utf-8")
            self._minute = minute
        if self._file is not None:
            self._file.writelines(self._lines(now, sample))
            self._unflushed += 1
            if self._unflushed >= _FLUSH_SAMPLES:
                self._file.flush()
                self._unflushed = 0

    def _lines(self, now: float, sample: Sample) -> Iterator[str]:
        """The events of a sample, one JSON object per line."""
        for kind, name, dimension, value in _events(sample):
            if math.isnan(value):
                continue
            yield (
                json.dumps(
                    {
                        "Type": kind,
                        "Name": name,
                        "Dimension": dimension,
                        "Value": round(value, 2),
                        "NodeId": f"algo-{self._node}",
                        "Timestamp": round(now, 3),
                    }
                )
                + "\n"
            )

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _fail(self, what: str, error: Exception) -> None:
        self.failure = f"{what}: {type(error).__name__}: {error}"
        logger.warning("%s", self.failure)


def _events(sample: Sample) -> Iterator[tuple[str, str, str, float]]:
    """Type, name, dimension and value as SageMaker's profiler names them."""
    for core, use in enumerate(sample.cpu):
        yield "cpu", f"cpu{core}", "CPUUtilization", use
    yield "cpu", "total", "I/OWaitPercentage", sample.iowait
    yield "memory", "MemoryUsedPercent", "MemoryUtilization", sample.memory
    for gpu, (use, memory) in enumerate(zip(sample.gpu, sample.gpu_memory, strict=True)):
        yield "gpu", f"gpu{gpu}", "GPUUtilization", use
        yield "gpu", f"gpu{gpu}", "GPUMemoryUtilization", memory
    yield "network", "TotalBytes", "Algorithm", float(sample.network_bytes)
    yield "disk", "TotalBytes", "Algorithm", float(sample.disk_bytes)


def _percent(part: float, whole: float) -> float:
    return min(100.0, max(0.0, 100.0 * part / whole)) if whole > 0 else 0.0
