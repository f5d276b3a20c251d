"""A moving average of the weights, which is what is validated and kept (Polyak and Juditsky 1992).

What is averaged: the parameters that learn, and the running statistics of norm layers with them, because those of
today's weights do not fit yesterday's (torchvision's and timm's recipes do the same); counters are copied. The average
is held beside the model and exchanged with it bit by bit, so that one network serves both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Averaging(Protocol):
    """An average of a model's weights, or none."""

    def update(self) -> None:
        """An optimizer step is done: takes the model's weights in."""

    def swapped(self) -> AbstractContextManager[None]:
        """Context in which the model holds the average; outside it holds its own weights, to the bit."""

    def buffers(self) -> Iterable[Tensor]:
        """The average of the model's buffers, in place: processes differ in them as they do in the model's."""

    def state_dict(self) -> dict[str, Tensor]:
        """The average, and how many steps are in it."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from `state_dict`."""


def make_averaging(decay: float, model: nn.Module) -> Averaging:
    """The average that the hyperparameter `ema` asks for.

    Args:
        decay: in [0, 1); 0 is none.
        model: on its device, in its final frozen or trainable state.
    """
    return MovingAverage(decay, model) if decay else NoAverage()


class NoAverage:
    """For a job that keeps the weights as they are."""

    def update(self) -> None:
        """Does nothing."""

    def swapped(self) -> AbstractContextManager[None]:
        """Leaves the model as it is."""
        return nullcontext()

    def buffers(self) -> Iterable[Tensor]:
        """None."""
        return ()

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Does nothing."""


class MovingAverage:
    """The exponential moving average of what changes in a model.

    After n steps a further one counts min(decay, (1 + n) / (10 + n)) for the average and the rest for the new weights,
    as TensorFlow's ExponentialMovingAverage does: a job of a hundred steps is not still carrying its start, and a long
    one ends with ``decay``.

    Args:
        decay: in (0, 1).
        model: on its device, in its final frozen or trainable state.
    """

    def __init__(self, decay: float, model: nn.Module) -> None:
        self._decay = decay
        learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        buffers = dict(model.named_buffers())
        tensors = {**learning, **buffers}
        self._live = {name: tensor.detach() for name, tensor in tensors.items()}
        self._average = {name: tensor.clone() for name, tensor in self._live.items()}
        self._buffers = [self._average[name] for name in buffers]
        self._steps = 0

    def update(self) -> None:
        """Takes the model's weights in."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        self._steps += 1
        floating = [name for name, tensor in self._live.items() if tensor.is_floating_point()]
        average = [self._average[name] for name in floating]
        average_in = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average_in(average, [self._live[name] for name in floating], self._steps)
        for name in self._live.keys() - set(floating):
            self._average[name].copy_(self._live[name])

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Context in which the model holds the average; outside it holds its own weights, to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def buffers(self) -> Iterable[Tensor]:
        """The average of the model's buffers, in place."""
        return self._buffers

    def state_dict(self) -> dict[str, Tensor]:
        """The average and the number of steps in it, by the names of the model's tensors and ``steps``."""
        return {"steps": torch.tensor(self._steps), **self._average}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from `state_dict`."""
        self._steps = int(state["steps"])
        for name, tensor in self._average.items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, live in self._live.items():
            kept = live.clone()
            live.copy_(self._average[name])
            self._average[name].copy_(kept)
