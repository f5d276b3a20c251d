import json
import logging
import sys

import pytest
import torch
from torch import nn

from dogbreed.insight.rules.registry import default_rules, evaluate, parse_rules
from dogbreed.insight.system import Sample, SystemSampler
from dogbreed.insight.timeline import OperatorProfile, Timeline
from dogbreed.insight.verdicts import Status
from dogbreed.insight.watch import Watch


class Probe:
    def look(self):
        return Sample(cpu=(50.0,), iowait=0.0, memory=10.0)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def watched_job(watch, model, criterion, *, epochs=3):
    for _ in range(epochs):
        for phase, batches in (("train", 12), ("validation", 3)):
            watch.start_pass(phase)
            for _ in range(batches):
                watch.timeline.mark("data")
                loss = criterion(model(torch.randn(8, 4)), torch.arange(8) % 2)
                if phase == "train":
                    loss.backward()
                watch.timeline.mark("forward")
                watch.step(phase)
            watch.end_pass()


def test_a_watched_job_has_verdicts_on_everything_and_traces_beside_its_report(tmp_path, caplog):
    pytest.importorskip("smdebug")
    caplog.set_level(logging.INFO)
    model, criterion = network(), nn.CrossEntropyLoss()
    sampler = SystemSampler(tmp_path / "profiler", probe=Probe(), interval_s=0.001)
    watch = Watch(
        default_rules(pretrained=False, gpus=0),
        timeline=Timeline(),
        sampler=sampler,
        operators=OperatorProfile(skip=2, steps=2),
        interval_s=1000,
    )
    watch.attach(model, criterion, folder=tmp_path / "tensors", config=None)
    watched_job(watch, model, criterion)
    sampler.take()
    found = watch.finish(tmp_path / "report")
    status = {one.rule: one.status for one in found.verdicts}
    assert Status.ERROR not in status.values()
    known = {"ExplodingTensor", "VanishingGradient", "DeadRelu", "StalledTraining", "OverallSystemUsage"}
    assert all(status[rule] in (Status.NO_ISSUES_FOUND, Status.ISSUES_FOUND) for rule in known)
    assert set(found.profile.steps) == {"train", "validation"}
    assert found.profile.steps["train"]["steps"] == 36
    assert {"data", "forward", "evaluation"} <= set(found.profile.seconds)
    assert found.profile.operators
    assert json.loads((tmp_path / "report" / "trace.json").read_text())["traceEvents"]
    assert json.loads((tmp_path / "report" / "operators.json").read_text())["traceEvents"]
    assert "rule_DeadRelu=0; NoIssuesFound." in caplog.text
    assert not model[1]._forward_hooks


def test_a_calibration_is_a_phase_of_the_timeline_and_a_test_to_the_hook(tmp_path):
    pytest.importorskip("smdebug")
    model, criterion = network(), nn.CrossEntropyLoss()
    watch = Watch(parse_rules("StepOutlier,Overfit"), timeline=Timeline(), interval_s=1000)
    watch.attach(model, criterion, folder=tmp_path / "tensors", config=None)
    watched_job(watch, model, criterion)
    watch.start_pass("calibration")
    for _ in range(3):
        criterion(model(torch.randn(8, 4)), torch.arange(8) % 2)
        watch.step("calibration")
    watch.end_pass()
    assert {phase: len(steps) for phase, steps in watch.evidence().times.steps.items()} == {
        "train": 36,
        "validation": 9,
        "calibration": 3,
    }
    assert len(watch.evidence().losses.evaluation) == 3, "no evaluation more"
    found = watch.finish(tmp_path / "report")
    assert "36 train, 9 validation, 3 calibration steps" in found.verdicts[0].evidence
    events = json.loads((tmp_path / "report" / "trace.json").read_text())["traceEvents"]
    assert {"calibration", "test"} <= {one["args"].get("name") for one in events}


def test_a_rule_that_is_named_asks_for_the_end_of_the_job(tmp_path):
    pytest.importorskip("smdebug")
    model, criterion = network(), nn.CrossEntropyLoss()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    watch = Watch(parse_rules("ExplodingTensor"), timeline=Timeline(), stop_on=("ExplodingTensor",), interval_s=0.001)
    watch.attach(model, criterion, folder=tmp_path / "tensors", config=None)
    watched_job(watch, model, criterion, epochs=1)
    watch.finish(tmp_path / "report")
    assert watch.stopped_by == "ExplodingTensor"


def test_noisy_batches_end_no_job_before_its_evaluations_are_known(tmp_path):
    pytest.importorskip("smdebug")
    model, criterion = network(), nn.CrossEntropyLoss()
    rules = parse_rules("LossNotDecreasing")
    watch = Watch(rules, timeline=Timeline(), stop_on=("LossNotDecreasing",), interval_s=1000)
    watch.attach(model, criterion, folder=tmp_path / "tensors", config=None)
    watch.start_pass("train")
    for step in range(50):
        criterion(model(torch.randn(8, 4)) * (1 + step), torch.arange(8) % 2).backward()
        watch.step("train")
    watch.end_pass()
    assert watch.evidence().ongoing
    (verdict,) = evaluate(rules, watch.evidence())
    assert (len(watch.evidence().losses.train), verdict.status) == (5, Status.NOT_ENOUGH_DATA)
    (verdict,) = watch.finish(tmp_path / "report").verdicts
    assert "train loss rose" in verdict.evidence
    assert not watch.evidence().ongoing


def test_without_smdebug_the_job_runs_and_the_rules_say_why_they_know_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "smdebug.pytorch", None)
    model, criterion = network(), nn.CrossEntropyLoss()
    watch = Watch(parse_rules("VanishingGradient,StepOutlier"), timeline=Timeline(), interval_s=1000)
    watch.attach(model, criterion, folder=tmp_path / "tensors", config=None)
    watched_job(watch, model, criterion, epochs=9)
    found = watch.finish(tmp_path / "report")
    assert "the debugger hook cannot be used: ModuleNotFoundError" in found.verdicts[0].evidence
    assert found.verdicts[1].status is Status.NO_ISSUES_FOUND


def test_a_report_folder_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "report").write_text("in the way")
    watch = Watch(parse_rules("StalledTraining"), timeline=Timeline(), interval_s=1000)
    assert watch.finish(tmp_path / "report").verdicts[0].rule == "StalledTraining"
    assert "trace.json cannot be written" in caplog.text
