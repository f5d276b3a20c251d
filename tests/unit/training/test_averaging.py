from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dogbreed import backbones
from dogbreed.backbones import HeadSpec
from dogbreed.training.averaging import MovingAverage, NoAverage, make_averaging


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def learn(model: nn.Module, steps: int = 1) -> None:
    """A training step that changes parameters and running statistics."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 3, 3)).square().sum().backward()
        optimizer.step()


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@given(st.floats(0.01, 0.9999), st.lists(st.floats(-10, 10), max_size=30))
def test_the_average_is_the_sum_of_the_closed_form(decay: float, weights: list[float]) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(3.0)
    average = MovingAverage(decay, model)
    for weight in weights:
        model.weight.data.fill_(weight)
        average.update()
    decays = [min(decay, (1 + step) / (10 + step)) for step in range(len(weights))]
    shares = [1.0, *[1 - one for one in decays]]
    for number in range(len(shares)):
        for later in decays[number:]:
            shares[number] *= later
    assert sum(shares) == pytest.approx(1.0)
    with average.swapped():
        expected = sum(share * weight for share, weight in zip(shares, [3.0, *weights], strict=True))
        assert float(model.weight.detach()) == pytest.approx(expected, abs=1e-9)


def test_a_short_job_profits() -> None:
    """After a hundred steps at new weights a decay of 0.9999 alone would still hold 99% of the start."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = MovingAverage(0.9999, model)
    model.weight.data.fill_(1.0)
    for _ in range(100):
        average.update()
    with average.swapped():
        assert float(model.weight.detach()) > 0.999


def test_running_statistics_are_averaged_and_counters_copied() -> None:
    model = small()
    average = MovingAverage(0.5, model)
    before = copied(model)
    learn(model, steps=3)
    after = copied(model)
    average.update()
    with average.swapped():
        found = copied(model)
    for name in ("0.weight", "1.bias", "1.running_mean", "1.running_var"):
        assert not torch.equal(before[name], after[name])
        torch.testing.assert_close(found[name], 0.1 * before[name] + 0.9 * after[name])
    assert int(found["1.num_batches_tracked"]) == 3


def test_swapping_back_restores_every_bit_and_every_object() -> None:
    model = small()
    average = MovingAverage(0.9, model)
    learn(model, steps=2)
    average.update()
    own, objects = copied(model), [id(parameter) for parameter in model.parameters()]
    with average.swapped():
        averaged = copied(model)
        assert not same(own, averaged)
    assert same(copied(model), own)
    assert [id(parameter) for parameter in model.parameters()] == objects
    with average.swapped():
        assert same(copied(model), averaged), "and the average is where it was"


def test_swapping_back_happens_after_an_error_too() -> None:
    model = small()
    average = MovingAverage(0.9, model)
    learn(model)
    average.update()
    own = copied(model)
    with pytest.raises(KeyError), average.swapped():
        raise KeyError
    assert same(copied(model), own)


def test_validating_in_between_changes_nothing_of_what_is_learnt() -> None:
    def run(*, validate: bool) -> dict[str, Tensor]:
        torch.manual_seed(1)
        model = small()
        average = MovingAverage(0.9, model)
        torch.manual_seed(2)
        for _ in range(4):
            learn(model)
            average.update()
            if validate:
                with average.swapped(), torch.no_grad():
                    model.eval()
                    model(torch.zeros(1, 3, 3, 3))
        return copied(model)

    assert same(run(validate=True), run(validate=False))


def test_it_goes_on_from_its_state() -> None:
    model = small()
    average = MovingAverage(0.99, model)
    learn(model, steps=2)
    average.update()
    kept = io.BytesIO()
    torch.save({"model": model.state_dict(), "average": average.state_dict()}, kept)
    kept.seek(0)
    state = torch.load(kept, weights_only=True)
    other = small()
    resumed = MovingAverage(0.99, other)
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["average"])
    for one, its in ((model, average), (other, resumed)):
        torch.manual_seed(3)
        learn(one, steps=2)
        its.update()
    assert same(resumed.state_dict(), average.state_dict())


def test_its_buffers_are_those_of_the_average_and_not_of_the_model() -> None:
    model = small()
    average = MovingAverage(0.9, model)
    learn(model)
    average.update()
    own = copied(model)
    for buffer in average.buffers():
        buffer.fill_(7)
    assert same(copied(model), own)
    with average.swapped():
        assert all(bool((buffer == 7).all()) for buffer in model.buffers())
    assert list(NoAverage().buffers()) == []


def test_what_is_frozen_is_not_held_twice() -> None:
    model = backbones.build("tiny", HeadSpec(3))
    model.freeze("last_stage", 32)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    buffers = {name for name, _ in model.named_buffers()}
    assert set(MovingAverage(0.9, model).state_dict()) == {"steps"} | learning | buffers


def test_without_a_decay_there_is_no_average() -> None:
    model = small()
    average = make_averaging(0.0, model)
    assert isinstance(average, NoAverage)
    own = copied(model)
    average.update()
    average.load_state_dict(average.state_dict())
    with average.swapped():
        assert same(copied(model), own)
    assert isinstance(make_averaging(0.9, model), MovingAverage)
