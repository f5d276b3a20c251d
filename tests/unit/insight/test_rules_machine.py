import numpy as np
import pytest
from tests.unit.insight.evidence_made import system, times

from dogbreed.insight.evidence import Evidence
from dogbreed.insight.rules.machine import (
    BatchSize,
    CPUBottleneck,
    Dataloader,
    GPUMemoryIncrease,
    IOBottleneck,
    LoadBalancing,
    LowGPUUtilization,
    MaxInitializationTime,
    OverallFrameworkMetrics,
    OverallSystemUsage,
    StalledTraining,
    StepOutlier,
)
from dogbreed.insight.verdicts import Status

EARLY_RISE = np.where(np.arange(1200) < 1100, 40.0, 46.0)
FITS = np.where(np.arange(1200) % 10 < 8, 100.0, 0.0)
HALF_IDLE = np.where(np.arange(1200) % 10 < 6, 5.0, 95.0)


@pytest.mark.parametrize(
    ("rule", "sick", "told", "well"),
    [
        (LowGPUUtilization(), system(gpu=(60.0,)), "GPU 0 was used 60 %", system(gpu=(75.0,))),
        (LowGPUUtilization(), system(gpu=(FITS,)), "0 % (5th percentile) to 100 %", system(gpu=(90.0,))),
        (
            CPUBottleneck(),
            system(gpu=(HALF_IDLE,), cpu=95.0),
            "In 720 of 1200 samples, 60 %",
            system(gpu=(HALF_IDLE,), cpu=85.0),
        ),
        (
            IOBottleneck(),
            system(gpu=(HALF_IDLE,), iowait=60.0),
            "In 720 of 1200 samples, 60 %",
            system(gpu=(HALF_IDLE,), iowait=40.0),
        ),
        (
            BatchSize(),
            system(gpu=(60.0,), cpu=60.0, memory=(60.0,)),
            "60 % of the CPU, 60 % of GPU 0 and 60 % of its memory",
            system(gpu=(60.0,), cpu=60.0, memory=(75.0,)),
        ),
        (GPUMemoryIncrease(), system(memory=(EARLY_RISE,)), "was 6 percentage points", system(memory=(40.0,))),
        (
            LoadBalancing(),
            system(gpu=(90.0, 10.0), memory=(50.0, 50.0)),
            "distance of 0.833 (limit 0.5)",
            system(gpu=(90.0, 90.0), memory=(50.0, 50.0)),
        ),
        (
            Dataloader(),
            times(workers=0, base=system()),
            "1 thread loaded data on 4 CPU cores, 25 %",
            times(workers=4, base=system()),
        ),
        (Dataloader(), times(workers=9, base=system()), "225 %", times(workers=8, base=system())),
        (MaxInitializationTime(), times(first_step=1201.0, now=1300.0), "After 1201.0 s", times(first_step=1199.0)),
        (MaxInitializationTime(), times(first_step=None, now=1300.0), "no train step has begun", times()),
        (
            StepOutlier(),
            times(steps={"train": [0.1] * 989 + [5.0] * 11}),
            "11 of 1000 train steps took longer",
            times(steps={"train": [0.1] * 990 + [5.0] * 10}),
        ),
        (StalledTraining(), times(silence=1801.0), "was 1.8e+03 s (limit 1800 s)", times(silence=1799.0)),
    ],
)
def test_a_rule_fires_on_its_case_with_evidence_and_not_on_the_other(rule, sick, told, well):
    verdict = rule.judge(sick)
    assert verdict.status is Status.ISSUES_FOUND
    assert told in verdict.evidence
    assert verdict.violations > 0
    assert verdict.recommendation
    verdict = rule.judge(well)
    assert (verdict.status, verdict.violations) == (Status.NO_ISSUES_FOUND, 0)


ON_GPUS = [LowGPUUtilization(), CPUBottleneck(), IOBottleneck(), BatchSize(), GPUMemoryIncrease(), LoadBalancing()]


@pytest.mark.parametrize("rule", ON_GPUS)
def test_a_job_of_five_minutes_is_not_judged_but_said_to_be_too_short(rule):
    verdict = rule.judge(system(samples=600))
    assert verdict.status is Status.NOT_ENOUGH_DATA
    assert "sampled 600 times in 300 s" in verdict.evidence


@pytest.mark.parametrize("rule", ON_GPUS)
def test_a_machine_without_a_gpu_is_said_to_have_none(rule):
    verdict = rule.judge(system(gpu=()))
    assert verdict.status is Status.NOT_ENOUGH_DATA
    assert "no GPU" in verdict.evidence


@pytest.mark.parametrize(
    "rule",
    [
        *ON_GPUS,
        Dataloader(),
        MaxInitializationTime(),
        StepOutlier(),
        StalledTraining(),
        OverallSystemUsage(),
        OverallFrameworkMetrics(),
    ],
)
def test_a_rule_without_samples_or_times_says_so(rule):
    verdict = rule.judge(Evidence(missing={"system": "psutil is missing.", "times": "no clock."}))
    assert verdict.status is Status.NOT_ENOUGH_DATA
    assert "psutil is missing." in verdict.evidence or "no clock." in verdict.evidence


def test_load_balancing_needs_two_gpus():
    assert "1 GPU" in LoadBalancing().judge(system()).evidence


def test_system_usage_gives_the_figures_of_awss_report():
    verdict = OverallSystemUsage().judge(system(gpu=(60.0,), cpu=95.0))
    assert verdict.status is Status.NO_ISSUES_FOUND
    assert verdict.details["GPU"] == {"unit": "percent", "max": 60, "p99": 60, "p95": 60, "p50": 60, "min": 60}
    assert "the CPU is likely to hold it up" in verdict.recommendation


def test_framework_metrics_give_shares_and_say_what_to_do_about_a_starved_loop():
    starved = times(seconds={"data": 61.0, "forward": 20.0, "backward": 19.0}, workers=1, base=system())
    verdict = OverallFrameworkMetrics().judge(starved)
    assert "data 61 %, forward 20 %, backward 19 %" in verdict.evidence
    assert verdict.recommendation == "Waiting for data took 61 % of the training loop: set num-workers=4 (1 now)."
    assert OverallFrameworkMetrics().judge(times(base=system())).recommendation == ""


def test_a_loader_of_each_process_of_a_host_counts():
    verdict = Dataloader().judge(times(workers=2, processes=2, base=system()))
    assert verdict.status is Status.NO_ISSUES_FOUND
    assert "4 threads loaded data on 4 CPU cores, 100 %" in verdict.evidence
    assert "num-workers=2." in Dataloader().judge(times(workers=8, processes=2, base=system())).recommendation


def test_what_reads_stored_outputs_is_told_nothing_of_a_loader():
    starved = times(seconds={"data": 61.0, "forward": 20.0, "backward": 19.0}, workers=None, base=system())
    verdict = Dataloader().judge(starved)
    assert (verdict.status, verdict.violations) == (Status.NOT_ENOUGH_DATA, 0)
    assert "reads stored outputs" in verdict.evidence
    assert "num-workers" not in OverallFrameworkMetrics().judge(starved).recommendation
    assert "reads stored outputs" in OverallFrameworkMetrics().judge(starved).recommendation
