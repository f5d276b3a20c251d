import json
import math

import pytest
import torch

from dogbreed.insight import timeline as module
from dogbreed.insight.timeline import OperatorProfile, Timeline, histogram, shares


class Clock:
    """Moves only when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def after(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def test_marks_share_out_a_train_pass_and_the_rest_is_other(clock):
    taken = Timeline(clock)
    clock.after(2.0)
    taken.start_pass("train")
    for _ in range(2):
        for kind, seconds in (("data", 0.5), ("forward", 0.2), ("backward", 0.25)):
            clock.after(seconds)
            taken.mark(kind)
        clock.after(0.05)
        taken.step()
    taken.end_pass()
    times = taken.times()
    assert times.seconds == pytest.approx(
        {"data": 1.0, "forward": 0.4, "backward": 0.5, "initialization": 2.0, "other": 0.1}
    )
    assert times.steps["train"].tolist() == pytest.approx([1.0, 1.0])
    assert (times.started_s, times.first_step_s, times.now_s) == (100.0, 102.0, 104.0)


def test_a_pass_of_evaluation_counts_as_such_whatever_is_marked_in_it(clock):
    taken = Timeline(clock)
    taken.start_pass("validation")
    clock.after(0.5)
    taken.mark("data")
    clock.after(0.5)
    taken.step()
    taken.end_pass()
    taken.start_pass("features")
    clock.after(3.0)
    taken.end_pass()
    assert taken.times().seconds == pytest.approx({"evaluation": 1.0, "frozen part": 3.0, "initialization": 0.0})
    assert taken.times().first_step_s is None


def test_a_span_is_taken_out_of_the_mark_around_it(clock):
    taken = Timeline(clock)
    taken.start_pass("train")
    clock.after(0.1)
    with taken.span("checkpoint"):
        clock.after(2.0)
    clock.after(0.2)
    taken.mark("optimizer")
    taken.step()
    taken.end_pass()
    assert taken.times().seconds == pytest.approx(
        {"optimizer": 0.3, "checkpoint": 2.0, "initialization": 0.0, "other": 0.0}
    )


def test_the_longest_silence_includes_the_one_that_lasts(clock):
    taken = Timeline(clock)
    taken.start_pass("train")
    clock.after(5.0)
    taken.step()
    clock.after(3.0)
    assert taken.times().longest_silence_s == 5.0
    clock.after(4.0)
    assert taken.times().longest_silence_s == 7.0


def test_a_pass_that_lasts_is_reckoned_up_every_second(clock):
    taken = Timeline(clock)
    taken.start_pass("train")
    for _ in range(8):
        clock.after(0.3)
        taken.mark("forward")
        taken.step()
    times = taken.times()
    # The first step at once, and then those of each second: what lasts is known, what is newest is not yet.
    assert times.seconds["forward"] == pytest.approx(0.3 * 5)
    assert len(times.steps["train"]) == 5
    taken.end_pass()
    assert taken.times().seconds["forward"] == pytest.approx(2.4)


class DeviceEvent:
    """An event on a device whose queue lags: each record is two seconds after the one before."""

    reached = 0.0

    def record(self):
        type(self).reached += 2.0
        self.at = self.reached

    def elapsed_time(self, end):
        return (end.at - self.at) * 1000

    def synchronize(self):
        pass


def test_with_events_the_device_says_how_long_its_work_took(clock):
    taken = Timeline(clock, event=DeviceEvent)
    taken.start_pass("train")
    clock.after(0.5)
    taken.mark("data")
    clock.after(0.001)
    taken.mark("forward")
    clock.after(0.001)
    taken.mark("backward")
    taken.step()
    taken.end_pass()
    seconds = taken.times().seconds
    assert (seconds["data"], seconds["forward"], seconds["backward"]) == pytest.approx((0.5, 2.0, 2.0))


def test_the_trace_is_one_that_perfetto_reads(clock, tmp_path):
    taken = Timeline(clock)
    taken.start_pass("train")
    clock.after(0.25)
    taken.mark("forward")
    taken.step()
    taken.end_pass()
    taken.write_trace(tmp_path / "trace.json")
    document = json.loads((tmp_path / "trace.json").read_text())
    (forward,) = [one for one in document["traceEvents"] if one["name"] == "forward"]
    assert forward == {
        "ph": "X",
        "pid": 1,
        "tid": 2,
        "name": "forward",
        "ts": 0.0,
        "dur": 250000.0,
        "args": {"step": 0},
    }
    assert {one["args"]["name"] for one in document["traceEvents"] if one["ph"] == "M"} >= {"train", "passes"}


def test_memory_is_kept_within_bounds(clock, monkeypatch):
    monkeypatch.setattr(module, "_KEPT_SPANS", 10)
    monkeypatch.setattr(module, "_KEPT_STEPS", 5)
    monkeypatch.setattr(module, "_FOLD_MARKS", 8)
    taken = Timeline(clock)
    taken.start_pass("train")
    for _ in range(100):
        taken.mark("forward")
        taken.step()
        assert len(taken._marks) < module._FOLD_MARKS
    assert 10 <= len(taken._first) < 10 + module._FOLD_MARKS
    assert len(taken._newest) == 10
    assert len(taken.times().steps["train"]) == 5


def test_operators_of_the_profiled_steps_are_named(tmp_path):
    profile = OperatorProfile(skip=1, steps=2)
    layer = torch.nn.Linear(4, 4)
    for _ in range(4):
        layer(torch.ones(2, 4)).sum().backward()
        profile.step()
    profile.stop()
    names = {one.name: one for one in profile.operators(limit=100)}
    assert names["aten::linear"].calls == 2
    assert all(one.cpu_s >= 0 for one in names.values())
    profile.write_trace(tmp_path / "operators.json")
    assert json.loads((tmp_path / "operators.json").read_text())["traceEvents"]


def test_no_profiled_step_gives_no_operators():
    profile = OperatorProfile(skip=5)
    profile.step()
    profile.stop()
    assert profile.operators() == ()


def test_a_histogram_leaves_outliers_out_and_counts_them():
    edges, counts, outliers = histogram([0.1, 0.11, 0.12, 0.13] * 25 + [9.0])
    assert (sum(counts), outliers) == (100, 1)
    assert (edges[0], edges[-1]) == pytest.approx((0.1, 0.13))
    assert histogram([]) == ([], [], 0)


def test_shares_add_up_and_the_largest_comes_first():
    found = shares({"data": 1.0, "forward": 3.0, "copy": 0.0})
    assert found == [("forward", 0.75), ("data", 0.25)]
    assert math.isclose(sum(share for _, share in found), 1.0)
    assert shares({}) == []
