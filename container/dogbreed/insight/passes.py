"""What a hook hears of a pass and looks at later: losses and answers of an evaluation, labels of a training pass.

A step of an evaluation is two entries in a list. Losses and answers are made of them many steps at a time, on their
device, because on the CPU each small operation costs microseconds and there are steps of half a millisecond.

Legend: N batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FOLD_STEPS = 64
"""Outputs of so many steps are held at most before they become losses and class indices."""


class Labels(NamedTuple):
    """Class indices int64 [samples] of a pass: those of training, or those of an evaluation with what was predicted."""

    train: NDArray[np.int64]
    true: NDArray[np.int64]
    predicted: NDArray[np.int64]


@dataclass(slots=True)
class Pass:
    """One pass.

    Attributes:
        mode: ``TRAIN``, ``EVAL`` or ``PREDICT``.
        trained: train steps that were done before it.
        filed: whether its losses, labels and predictions go to smdebug's files.
        name: of its losses in the files.
        first: overall number of its first step, and its number in the mode.
        last: the same of its last step.
        ended: nothing more will be heard of it.
        losses: of evaluation steps, [steps] each, that are still on the device.
        values: of the evaluation steps before those.
    """

    mode: str
    trained: int
    filed: bool
    name: str = ""
    first: tuple[int, int] = (0, 0)
    last: tuple[int, int] = (0, 0)
    ended: bool = False
    losses: list[Tensor] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    _heard: list[tuple[Tensor, Sequence[Tensor]]] = field(default_factory=list)
    _answers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _labels: list[Tensor] = field(default_factory=list)

    def hear(self, loss: Tensor, inputs: Sequence[Tensor]) -> bool:
        """Takes an evaluation step: its loss and what it was computed from, or nothing of that.

        Returns:
            Whether steps were made to numbers, which is now and then.
        """
        self._heard.append((_loose(loss), [_loose(one) for one in inputs]))
        if len(self._heard) < _FOLD_STEPS:
            return False
        self.fold()
        return True

    def hear_labels(self, inputs: Sequence[Tensor]) -> int:
        """Takes a train step's logits and targets; returns how many labels these were."""
        if not _are_answers(inputs):
            return 0
        self._labels.append(inputs[1])
        return len(inputs[1])

    def fold(self) -> None:
        """Makes losses and answers of the steps that were heard."""
        heard, self._heard = self._heard, []
        if not heard:
            return
        self.losses.append(torch.stack([loss if loss.dim() == 0 else loss.mean() for loss, _ in heard]))
        answered = [inputs for _, inputs in heard if _are_answers(inputs)]
        if answered:
            logits, targets = (torch.cat(column) for column in zip(*answered, strict=True))
            self._answers.append((targets, logits.argmax(dim=1)))

    def labels(self) -> Labels | None:
        """The labels of the pass, once it has ended, and its predictions; None when none were heard."""
        if not self._labels and not self._answers:
            return None
        columns = (self._labels, [true for true, _ in self._answers], [answer for _, answer in self._answers])
        return Labels(*(_together(column) for column in columns))


def _loose(tensor: Tensor) -> Tensor:
    """The tensor without the graph behind it."""
    return tensor.detach() if tensor.requires_grad else tensor


def _are_answers(inputs: Sequence[Tensor]) -> bool:
    """Whether these are logits [N, K] and labels [N]: soft targets (mixup) are no labels."""
    return len(inputs) > 1 and inputs[1].dim() == 1 and not inputs[1].is_floating_point() and inputs[0].dim() == 2


def _together(column: Sequence[Tensor]) -> NDArray[np.int64]:
    return torch.cat(list(column)).cpu().numpy().astype(np.int64) if column else np.zeros(0, dtype=np.int64)
