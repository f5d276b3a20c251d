from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from dogbreed.hyperparameters import Hyperparameters
from dogbreed.training.averaging import make_averaging
from dogbreed.training.distributed import Team
from dogbreed.training.metrics import PassMetrics
from dogbreed.training.optim import make_schedule
from dogbreed.training.selection import Selection
from dogbreed.training.state import FitState


class Pretend(Team):
    """A process whose others are values of the test."""

    others: Sequence[Any] = ()

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others]

    def add_up(self, tensor: Tensor) -> Tensor:
        return tensor

    def total(self, *counts: float) -> list[int]:
        return [int(count) for count in counts]


def team(rank: int, size: int, *others: Any) -> Team:
    made = Pretend(rank=rank, size=size)
    object.__setattr__(made, "others", others)
    return made


def fit(value: float, *, ema: float = 0.0) -> FitState:
    """A state whose running mean, and the average of it, is ``value``."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    nn.init.constant_(model[1].running_mean, value)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return FitState(
        model=model,
        optimizer=optimizer,
        schedule=make_schedule(Hyperparameters(), optimizer, steps=4),
        averaging=make_averaging(ema, model),
        scaler=GradScaler(enabled=False),
        selection=Selection(maximise=True, patience=0, min_delta=0.0, min_epochs=0),
        learnt=PassMetrics(torch.device("cpu")),
    )


def mean_of(state: FitState) -> float:
    return float(state.model[1].running_mean[0])  # type: ignore[index]


def kept(*values: float, ema: float = 0.0) -> FitState:
    """The leader's state, with the statistics of all."""
    states = [fit(value, ema=ema) for value in values]
    states[0].collect(team(0, len(values), *(state._own_statistics() for state in states[1:])))
    return states[0]


def test_every_process_goes_on_with_its_own_statistics():
    state = kept(1.0, 2.0).state_dict()
    for rank, value in ((0, 1.0), (1, 2.0)):
        other = fit(7.0)
        other.load_state_dict(state, team(rank, 2))
        assert mean_of(other) == value


def test_the_average_of_weights_has_statistics_of_its_own_too():
    state = kept(1.0, 2.0, ema=0.9).state_dict()
    other = fit(7.0, ema=0.9)
    other.load_state_dict(state, team(1, 2))
    assert mean_of(other) == 2.0
    with other.averaging.swapped():
        assert mean_of(other) == 2.0


def test_a_team_of_another_size_goes_on_with_the_mean():
    state = kept(1.0, 2.0, 6.0).state_dict()
    for one in (team(0, 2), team(1, 2), team(0, 1)):
        other = fit(7.0)
        other.load_state_dict(state, one)
        assert mean_of(other) == 3.0


def test_what_is_the_same_everywhere_is_kept_once():
    state = kept(4.0, 4.0)
    assert state.statistics == []
    other = fit(7.0)
    other.load_state_dict(state.state_dict(), team(1, 2))
    assert mean_of(other) == 4.0


def test_a_checkpoint_without_them_is_the_leaders():
    state = kept(1.0, 2.0).state_dict()
    del state["statistics"]
    other = fit(7.0)
    other.load_state_dict(state, team(1, 2))
    assert mean_of(other) == 1.0


def test_a_follower_starts_with_empty_sums():
    state = kept(1.0, 2.0)
    state.learnt.add(torch.tensor(1.0), torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    for rank, samples in ((0, 3), (1, 0)):
        other = fit(7.0)
        other.load_state_dict(state.state_dict(), team(rank, 2))
        assert other.learnt.samples == samples
