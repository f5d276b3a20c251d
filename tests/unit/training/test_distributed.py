"""A process's place among the others, as far as it needs no others."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed import HashStore

from dogbreed.training.distributed import ALONE, ProcessLostError, Team, _Sparing


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_shares_of_a_list_in_order_are_the_list(size: int) -> None:
    items = list(range(10))
    shares = [Team(rank, size).part_of(items) for rank in range(size)]
    assert [item for share in shares for item in share] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_hosts_apart_share_their_own_list_among_their_processes() -> None:
    assert Team(3, 4, local_rank=1, local_size=2, apart=True).part_of("abcd") == "cd"


def test_alone_everything_is_the_obvious_answer() -> None:
    model = nn.Linear(2, 2)
    assert ALONE.leads
    assert ALONE.total(1, True, 3) == (1, True, 3)
    assert ALONE.gather("a") == ["a"]
    assert ALONE.share({"a": 1}) == {"a": 1}
    assert ALONE.averaging(model) is model
    ALONE.wait()


def test_a_process_that_has_nothing_to_learn_from_gives_gradients_of_zero() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(requires_grad=False)
    learner = _Sparing(model)
    assert torch.equal(learner(torch.ones(1, 2)), model(torch.ones(1, 2)))
    learner(None).backward()
    assert [parameter.grad is None for parameter in model.parameters()] == [True, True, False, False]
    assert all(not parameter.grad.any() for parameter in model[1].parameters())


def test_who_hears_last_words_knows_why_and_who_hears_none_is_told_so() -> None:
    store = HashStore()
    failing, other = Team(1, 2, name="process 1 on algo-2", store=store), Team(0, 2, name="process 0", store=store)
    broken = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:1234")
    failing.say_last_words("the class folder zebra is missing")
    failing.say_last_words("lost contact")
    with (
        pytest.raises(ProcessLostError, match="failed: process 1 on algo-2: the class folder zebra is missing"),
        other.together(),
    ):
        raise broken
    with (
        pytest.raises(ProcessLostError, match=r"gone without a word.*Connection closed by peer"),
        Team(0, 2, store=None).together(),
    ):
        raise broken


def test_an_error_of_its_own_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"), Team(0, 2).together():
        nn.Linear(2, 2)(torch.zeros(1, 3))
