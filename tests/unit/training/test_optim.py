from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from dogbreed.hyperparameters import Hyperparameters
from dogbreed.training.optim import make_optimizer, make_schedule

BASE = Hyperparameters(lr=0.1, weight_decay=0.01, momentum=0.8)


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_the_optimizer_is_the_one_asked_for_with_its_parameters(name: str, kind: type) -> None:
    optimizer = make_optimizer(replace(BASE, optimizer=name), nn.Linear(2, 2))
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.01)
    assert group.get("momentum", 0.8) == 0.8


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    (group,) = make_optimizer(BASE, model).param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in model[1].parameters()]


def rates(schedule: str, steps: int) -> list[float]:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = make_schedule(replace(BASE, schedule=schedule), optimizer, steps)
    found = []
    for _ in range(steps + 1):
        found.append(made.get_last_lr()[0])
        optimizer.step()
        made.step()
    return found


def test_cosine_goes_from_the_peak_to_zero() -> None:
    assert rates("cosine", 4) == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447, 0.0], abs=1e-6)


def test_constant_stays() -> None:
    assert rates("constant", 3) == [0.1] * 4
