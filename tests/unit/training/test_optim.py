from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dogbreed import backbones
from dogbreed.backbones import HeadSpec
from dogbreed.hyperparameters import Hyperparameters
from dogbreed.training.optim import Plateau, Schedule, cosine, make_optimizer, make_schedule

BASE = Hyperparameters(lr=0.1, weight_decay=0.01, momentum=0.8, decay_norm_and_bias=True, warmup_epochs=0.0)


def tiny(trainable: str = "all") -> backbones.Classifier:
    model = backbones.build("tiny", HeadSpec(3))
    model.freeze(trainable, 32)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_the_optimizer_is_the_one_asked_for_with_its_parameters(name: str, kind: type) -> None:
    asked = replace(BASE, optimizer=name, nesterov=True, beta1=0.8, beta2=0.98, eps=1e-6)
    optimizer = make_optimizer(asked, nn.Linear(2, 2))
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.01)
    if name == "sgd":
        assert (group["momentum"], group["nesterov"]) == (0.8, True)
    else:
        assert (group["betas"], group["eps"]) == ((0.8, 0.98), 1e-6)


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    (group,) = make_optimizer(BASE, model).param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in model[1].parameters()]


def test_biases_and_norm_layers_decay_only_on_request() -> None:
    model = tiny()
    decays = {
        id(parameter): group["weight_decay"]
        for group in make_optimizer(replace(BASE, decay_norm_and_bias=False), model).param_groups
        for parameter in group["params"]
    }
    found = {name: decays[id(parameter)] for name, parameter in model.named_parameters()}
    assert {name for name, decay in found.items() if decay} == {
        *(f"backbone.stages.{number}.0.weight" for number in range(4)),
        "head.linear.weight",
    }
    assert set(found.values()) == {0.0, 0.01}
    (group,) = make_optimizer(BASE, model).param_groups
    assert len(group["params"]) == len(found)


def rates_of(model: nn.Module, asked: Hyperparameters) -> dict[str, float]:
    rates = {
        id(parameter): group["lr"]
        for group in make_optimizer(asked, model).param_groups
        for parameter in group["params"]
    }
    return {name: rates[id(parameter)] for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_rate_falls_from_the_head_to_the_input() -> None:
    rates = rates_of(tiny(), replace(BASE, layer_decay=0.5, head_lr_factor=10.0))
    assert rates["head.linear.weight"] == rates["head.linear.bias"] == pytest.approx(1.0)
    for number, rate in enumerate((0.1 / 16, 0.1 / 8, 0.1 / 4, 0.1 / 2)):
        found = [rates[name] for name in rates if f"stages.{number}." in name]
        assert found == pytest.approx([rate] * 3)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "tiny"])
def test_behind_a_cut_every_rate_is_that_of_the_whole_network(name: str) -> None:
    model = backbones.build(name, HeadSpec(3))
    model.freeze("last_stage", 64)
    cut = backbones.cut(model, 64)
    assert cut is not None
    asked = replace(BASE, layer_decay=0.7)
    whole = rates_of(model, asked)
    assert len(set(whole.values())) > 1
    assert rates_of(cut.rest, asked) == whole


def test_the_first_rate_is_the_heads() -> None:
    optimizer = make_optimizer(replace(BASE, layer_decay=0.5, decay_norm_and_bias=False), tiny())
    assert make_schedule(BASE, optimizer, 10).get_last_lr()[0] == 0.1


def made(asked: Hyperparameters, steps: int) -> tuple[torch.optim.Optimizer, Schedule]:
    optimizer = make_optimizer(asked, nn.Linear(1, 1))
    return optimizer, make_schedule(asked, optimizer, steps)


def rates(asked: Hyperparameters, steps: int) -> list[float]:
    optimizer, schedule = made(asked, steps)
    found = []
    for _ in range(steps + 1):
        found.append(schedule.get_last_lr()[0])
        assert optimizer.param_groups[0]["lr"] == found[-1]
        optimizer.step()
        schedule.step()
    return found


def test_cosine_goes_from_the_peak_to_zero() -> None:
    found = rates(replace(BASE, schedule="cosine", epochs=2), 4)
    assert found == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447, 0.0], abs=1e-6)


def test_constant_stays() -> None:
    assert rates(replace(BASE, schedule="constant"), 3) == [0.1] * 4


def test_the_warm_up_rises_linearly_to_the_peak_from_which_the_cosine_falls() -> None:
    asked = replace(BASE, schedule="cosine", epochs=4, warmup_epochs=1.5)
    assert rates(asked, 8) == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, *[0.1 * cosine(step, 5) for step in range(6)]])


def test_steps_are_counted_from_the_start_of_the_job() -> None:
    asked = replace(BASE, schedule="step", epochs=6, step_epochs=2, gamma=0.5, warmup_epochs=1.0)
    expected = [0.05, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025, 0.025, 0.0125]
    assert rates(asked, 12) == pytest.approx(expected)


@pytest.mark.parametrize("objective", ["validation_accuracy", "validation_loss"])
def test_a_plateau_lets_the_rate_fall_once_per_patience(objective: str) -> None:
    asked = replace(BASE, schedule="plateau", plateau_patience=2, gamma=0.5, min_delta=0.01, objective=objective)
    _, schedule = made(asked, 100)
    sign = 1 if objective == "validation_accuracy" else -1
    found = []
    #              better, better, worse, too little, NaN, worse, better, same, same
    for value in (0.5, 0.6, 0.5, 0.605, float("nan"), 0.4, 0.7, 0.7, 0.7):
        schedule.judge(sign * value)
        found.append(schedule.get_last_lr()[0])
    assert found == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.025, 0.0125])


@pytest.mark.parametrize("name", ["constant", "cosine", "step"])
def test_only_a_plateau_listens_to_the_objective(name: str) -> None:
    _, schedule = made(replace(BASE, schedule=name), 100)
    before = schedule.get_last_lr()
    for _ in range(10):
        schedule.judge(0.1)
    assert schedule.get_last_lr() == before


JOBS = st.builds(
    replace,
    st.just(BASE),
    schedule=st.sampled_from(["constant", "cosine", "plateau", "step"]),
    epochs=st.integers(1, 8),
    warmup_epochs=st.floats(0.0, 10.0),
    step_epochs=st.integers(1, 4),
    gamma=st.floats(0.001, 1.0),
    plateau_patience=st.integers(1, 3),
    layer_decay=st.sampled_from([1.0, 0.5]),
)


@given(JOBS, st.integers(1, 6), st.integers(0, 50), st.lists(st.floats(0, 1), min_size=8, max_size=8))
def test_any_schedule_stays_between_zero_and_the_peaks_and_goes_on_exactly(
    asked: Hyperparameters, per_epoch: int, stop: int, objectives: list[float]
) -> None:
    steps = per_epoch * asked.epochs
    events = [event for value in objectives[: asked.epochs] for event in [None] * per_epoch + [value]]
    peaks = [group["lr"] for group in make_optimizer(asked, MODEL).param_groups]

    def play(schedule: Schedule, part: list[float | None]) -> list[list[float]]:
        found = []
        for event in part:
            if event is None:
                schedule.step()
            else:
                schedule.judge(event)
            found.append(schedule.get_last_lr())
        return found

    whole = play(make_schedule(asked, make_optimizer(asked, MODEL), steps), events)
    for rates_now in whole:
        assert all(0 <= rate <= peak for rate, peak in zip(rates_now, peaks, strict=True))

    optimizer = make_optimizer(asked, MODEL)
    schedule = make_schedule(asked, optimizer, steps)
    before = play(schedule, events[:stop])
    kept = io.BytesIO()
    torch.save({"schedule": schedule.state_dict(), "optimizer": optimizer.state_dict()}, kept)
    kept.seek(0)
    state = torch.load(kept, weights_only=True)
    resumed_optimizer = make_optimizer(asked, MODEL)
    resumed = make_schedule(asked, resumed_optimizer, steps)
    resumed_optimizer.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["schedule"])
    assert resumed.get_last_lr() == schedule.get_last_lr()
    assert before + play(resumed, events[stop:]) == whole


MODEL = tiny()


def test_a_plateaus_patience_goes_on_after_a_resume() -> None:
    first = Plateau(maximise=True, patience=3, min_delta=0.0, gamma=0.1)
    for value in (0.5, 0.4, 0.4):
        first.judge(value)
    second = Plateau(maximise=True, patience=3, min_delta=0.0, gamma=0.1)
    second.load_state_dict(first.state_dict())
    second.judge(0.4)
    assert second.factor == 0.1
