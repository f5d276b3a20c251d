import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.unit.insight.evidence_made import system as machine

from dogbreed.insight import profile, system
from dogbreed.insight.evidence import Evidence
from dogbreed.insight.rules.machine import (
    BatchSize,
    CPUBottleneck,
    GPUMemoryIncrease,
    IOBottleneck,
    LoadBalancing,
    LowGPUUtilization,
)
from dogbreed.insight.rules.registry import evaluate, parse_rules
from dogbreed.insight.system import Gpus, Machine, Sample, SystemSampler
from dogbreed.insight.verdicts import Status

MINUTE = 1_700_000_040.0  # a full minute
HALF_IDLE = np.where(np.arange(1200) % 10 < 6, 5.0, 95.0)
# A machine that must trigger a rule, and one that must not: those of the rules' own tests.
MACHINE_JOBS = {
    type(rule).__name__: (rule, sick, well)
    for rule, sick, well in (
        (LowGPUUtilization(), machine(gpu=(60.0,)), machine(gpu=(75.0,))),
        (CPUBottleneck(), machine(gpu=(HALF_IDLE,), cpu=95.0), machine(gpu=(HALF_IDLE,), cpu=85.0)),
        (IOBottleneck(), machine(gpu=(HALF_IDLE,), iowait=60.0), machine(gpu=(HALF_IDLE,), iowait=40.0)),
        (
            BatchSize(),
            machine(gpu=(60.0,), cpu=60.0, memory=(60.0,)),
            machine(gpu=(60.0,), cpu=60.0, memory=(75.0,)),
        ),
        (
            GPUMemoryIncrease(),
            machine(memory=(np.where(np.arange(1200) < 1100, 40.0, 46.0),)),
            machine(memory=(40.0,)),
        ),
        (
            LoadBalancing(),
            machine(gpu=(90.0, 10.0), memory=(50.0, 50.0)),
            machine(gpu=(90.0, 90.0), memory=(50.0, 50.0)),
        ),
    )
}


class Probe:
    """Counts up, so that every sample differs; can be told to fail."""

    def __init__(self, *, fails=False):
        self.looks = 0
        self.fails = fails

    def look(self):
        if self.fails:
            raise RuntimeError("no counters")
        self.looks += 1
        return Sample(
            cpu=(10.0, 20.0),
            iowait=1.0,
            memory=30.0,
            gpu=(90.0,),
            gpu_memory=(50.0,),
            network_bytes=1000 * self.looks,
            disk_bytes=0,
        )


class Clock:
    def __init__(self, start, step):
        self.now = start - step
        self.step = step

    def __call__(self):
        self.now += self.step
        return self.now


def sampled(folder, count, *, step=0.5, probe=None):
    sampler = SystemSampler(folder, probe=probe or Probe(), clock=Clock(MINUTE, step))
    for _ in range(count):
        sampler.take()
    sampler.stop()
    return sampler


def test_samples_are_kept_as_tables_and_counters_become_rates(tmp_path):
    kept = sampled(None, 4).samples()
    assert kept.cpu.tolist() == [[10.0, 20.0]] * 4
    assert kept.gpu.tolist() == [[90.0]] * 4
    assert kept.network_bytes_s.tolist() == [0.0, 2000.0, 2000.0, 2000.0]
    assert np.diff(kept.times_s).tolist() == [0.5] * 3
    assert (kept.cores, kept.gpus) == (2, 1)


def test_smdebugs_reader_gives_back_every_event_of_three_minutes(tmp_path):
    pytest.importorskip("smdebug")
    from smdebug.profiler.system_metrics_reader import LocalSystemMetricsReader

    sampled(tmp_path, 360)
    files = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.json"))
    assert files == [f"system/incremental/2023111422/{int(MINUTE) + 60 * n}.algo-1.json" for n in range(3)]
    reader = LocalSystemMetricsReader(str(tmp_path))
    events = reader.get_events(int(MINUTE * 1e6), int((MINUTE + 180) * 1e6))
    assert len(events) == 360 * 8
    assert {(one.type, one.name, one.dimension) for one in events} >= {
        ("cpu", "cpu0", "CPUUtilization"),
        ("cpu", "cpu1", "CPUUtilization"),
        ("cpu", "total", "I/OWaitPercentage"),
        ("gpu", "gpu0", "GPUUtilization"),
        ("gpu", "gpu0", "GPUMemoryUtilization"),
    }
    assert {one.node_id for one in events} == {"algo-1"}


def test_a_probe_that_fails_ends_the_sampling_and_not_the_job(caplog):
    sampler = sampled(None, 3, probe=Probe(fails=True))
    assert len(sampler.samples().times_s) == 0
    assert "not sampled any more: RuntimeError: no counters" in sampler.failure
    assert sampler._stop.is_set()


def test_a_folder_that_cannot_be_written_ends_the_files_and_not_the_sampling(tmp_path):
    (tmp_path / "system").write_text("in the way")
    sampler = sampled(tmp_path, 3)
    assert len(sampler.samples().times_s) == 3
    assert "not written any more" in sampler.failure


def test_the_thread_samples_until_it_is_stopped():
    probe = Probe()
    sampler = SystemSampler(None, probe=probe, interval_s=0.001)
    sampler.start()
    while probe.looks < 3:
        sampler._stop.wait(0.001)
    sampler.stop()
    assert not sampler._thread.is_alive()


def test_memory_is_kept_within_bounds(monkeypatch):
    sampler = SystemSampler(None, probe=Probe(), clock=Clock(MINUTE, 0.5))
    for _ in range(system._KEPT + 5):
        sampler.take()
    assert len(sampler.samples().times_s) == system._KEPT


def cgroup(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        file = folder / name.replace("__", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def test_memory_is_in_percent_of_the_containers_limit_without_what_can_be_dropped(tmp_path):
    limits = cgroup(
        tmp_path, memory__max="1000\n", memory__current="800\n", memory__stat="anon 5\ninactive_file 300\nslab 1\n"
    )
    assert Machine(Gpus(), cgroup=limits).look().memory == pytest.approx(50.0)


def test_without_a_limit_memory_is_the_machines(tmp_path, monkeypatch):
    limits = cgroup(tmp_path, memory__max="max\n", memory__current="800\n")
    monkeypatch.setattr(system.psutil, "virtual_memory", lambda: SimpleNamespace(percent=12.5, total=10**12))
    assert Machine(Gpus(), cgroup=limits).look().memory == 12.5


def test_under_a_quota_the_containers_own_use_is_spread_over_its_share(tmp_path, monkeypatch):
    monkeypatch.setattr(system.os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(system, "available_cpus", lambda *, cgroup: 2)
    limits = cgroup(tmp_path, cpu__stat="usage_usec 1000000\nuser_usec 1\n")
    machine = Machine(Gpus(), cgroup=limits, clock=Clock(0.0, 1.0))
    cgroup(tmp_path, cpu__stat="usage_usec 2500000\nuser_usec 1\n")
    assert machine.look().cpu == (75.0, 75.0)


def test_this_machine_can_be_looked_at():
    machine = Machine()
    sample = machine.look()
    assert sample.cpu
    assert all(0 <= use <= 100 for use in (*sample.cpu, sample.iowait, sample.memory, *sample.gpu))


class Library:
    """What of pynvml is used: `use` and `memory` in percent of each GPU, None where it is not told."""

    NVMLError = RuntimeError

    def __init__(self, use=(80, None), memory=(25, None)):
        self.use, self.memory = use, memory

    def nvmlInit(self):
        pass

    def nvmlDeviceGetCount(self):
        return len(self.use)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetMigMode(self, handle):
        raise RuntimeError("not supported")

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-{'abc'[handle]}0000000-1111"

    def told(self, value):
        if value is None:
            raise RuntimeError("not supported")
        return value

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=self.told(self.use[handle]), memory=99)

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=self.told(self.memory[handle]), total=100)


def test_gpus_are_read_and_of_a_lost_one_nothing_is_known():
    np.testing.assert_equal(Gpus(Library()).look(), ((80.0, math.nan), (25.0, math.nan)))


def test_a_divided_gpu_tells_its_memory_and_not_its_use():
    np.testing.assert_equal(Gpus(Library((None,), (25,))).look(), ((math.nan,), (25.0,)))


@pytest.mark.parametrize(
    ("names", "told", "use"),
    [
        (None, None, (10.0, 20.0, 30.0)),
        (None, "2,0", (30.0, 10.0)),
        (None, "", ()),
        (None, "GPU-b0", (20.0,)),
        (("c0000000-1111", "a0000000-1111"), "0", (30.0, 10.0)),
        (("d0000000-1111",), None, ()),
    ],
    ids=["all", "numbers", "none", "part of a UUID", "torch's UUIDs", "unknown"],
)
def test_only_the_jobs_gpus_are_sampled(monkeypatch, names, told, use):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", Library((10, 20, 30), (1, 2, 3)))
    assert Gpus.find(names, told=told).look()[0] == use


MACHINE_RULES = ("LowGPUUtilization", "CPUBottleneck", "IOBottleneck", "BatchSize", "GPUMemoryIncrease")


def judged_gpus(library, rules):
    sampler = SystemSampler(None, probe=Machine(Gpus(library)), clock=Clock(MINUTE, 0.5))
    look = sampler._probe.look()
    sampler._samples.extend((MINUTE + 0.5 * number, look) for number in range(1201))
    return evaluate(parse_rules(",".join(rules)), Evidence(system=sampler.samples()))


def test_a_gpu_whose_use_is_not_told_is_not_idle_and_the_rules_say_so():
    verdicts = judged_gpus(Library((None,), (80,)), MACHINE_RULES)
    status = [Status.NOT_ENOUGH_DATA] * 4 + [Status.NO_ISSUES_FOUND]
    assert [one.status for one in verdicts] == status, "memory is known"
    assert all("NVML does not tell" in one.evidence for one in verdicts[:4])
    (usage,) = judged_gpus(Library((None,), (80,)), ["OverallSystemUsage"])
    assert ("GPU" in usage.details, usage.details["GPU memory"]["p50"]) == (False, 80.0)


def test_of_two_gpus_the_one_that_answers_is_judged_and_the_other_named():
    verdicts = judged_gpus(Library((95, None), (80, None)), (*MACHINE_RULES, "LoadBalancing"))
    assert [one.status for one in verdicts] == [Status.NO_ISSUES_FOUND] * 5 + [Status.NOT_ENOUGH_DATA]
    assert all("of GPU 1, which is left out" in one.evidence for one in verdicts)


def test_what_is_not_known_is_in_no_file_and_in_no_curve(tmp_path):
    sampler = SystemSampler(tmp_path, probe=Machine(Gpus(Library())), clock=Clock(MINUTE, 0.5))
    sampler.take()
    sampler.stop()
    (file,) = tmp_path.rglob("*.json")
    assert "gpu0" in file.read_text()
    assert "gpu1" not in file.read_text()
    assert [name for name in profile.of(Evidence(system=sampler.samples())).series if "GPU" in name] == [
        "GPU 0",
        "GPU 0 memory",
    ]


def test_a_machine_without_the_library_has_no_gpus_and_says_why(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    found = Gpus.find()
    assert len(found) == 0
    assert "nvidia-ml-py is not installed" in found.reason


def test_every_event_is_one_json_object(tmp_path):
    sampled(tmp_path, 1)
    (file,) = tmp_path.rglob("*.json")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {"Type", "Name", "Dimension", "Value", "NodeId", "Timestamp"} == set(lines[0])


class Replay:
    """A machine that did what a rule's test says."""

    def __init__(self, samples):
        self.samples = samples
        self.looks = 0

    def look(self):
        now, self.looks = self.looks, self.looks + 1
        told = self.samples
        return Sample(
            cpu=tuple(told.cpu[now].tolist()),
            iowait=float(told.iowait[now]),
            memory=float(told.memory[now]),
            gpu=tuple(told.gpu[now].tolist()),
            gpu_memory=tuple(told.gpu_memory[now].tolist()),
        )


def read_by_smdebug(folder, samples):
    """The samples of a profiler's folder, through smdebug's reader."""
    from smdebug.profiler.system_metrics_reader import LocalSystemMetricsReader

    events = LocalSystemMetricsReader(str(folder)).get_events(int(MINUTE * 1e6), int((MINUTE + 3600) * 1e6))
    series = {}
    for event in sorted(events, key=lambda one: one.timestamp):
        series.setdefault((event.dimension, event.name), []).append(event.value)

    def table(dimension, kind):
        names = [f"{kind}{number}" for number in range(16)]
        return np.array([series[dimension, name] for name in names if (dimension, name) in series], np.float32).T

    return replace(
        samples,
        cpu=table("CPUUtilization", "cpu"),
        gpu=table("GPUUtilization", "gpu"),
        gpu_memory=table("GPUMemoryUtilization", "gpu"),
        iowait=np.array(series["I/OWaitPercentage", "total"], np.float32),
        memory=np.array(series["MemoryUtilization", "MemoryUsedPercent"], np.float32),
    )


@pytest.mark.parametrize("rule", sorted(MACHINE_JOBS))
def test_machine_rules_say_the_same_of_what_smdebugs_reader_finds(tmp_path, rule):
    pytest.importorskip("smdebug")
    judged, *jobs = MACHINE_JOBS[rule]
    for told, status in zip(jobs, (Status.ISSUES_FOUND, Status.NO_ISSUES_FOUND), strict=True):
        samples = told.system
        folder = tmp_path / status.value
        sampled(folder, len(samples.times_s), probe=Replay(samples))
        read = read_by_smdebug(folder, samples)
        for name in ("cpu", "gpu", "gpu_memory", "iowait", "memory"):
            np.testing.assert_allclose(getattr(read, name), getattr(samples, name), atol=0.005, err_msg=name)
        before, after = judged.judge(told), judged.judge(replace(told, system=read))
        assert before.status is status
        assert (after.status, after.violations, after.evidence) == (status, before.violations, before.evidence)
