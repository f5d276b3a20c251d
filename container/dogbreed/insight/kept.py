"""What a hook keeps in memory for the rules, within bounds: losses, readings of tensors, labels and answers.

Written by the training thread and read by the rules' thread. Knows neither smdebug nor torch.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dogbreed.insight.evidence import Answers, Losses, Point, Reading, Readings, Tensors
from dogbreed.insight.passes import Labels

# Bounds, so that a job of weeks keeps megabytes: the first readings show how it began, the last how it goes.
_FIRST, _LAST = 20, 200
_LOSSES = 20_000


@dataclass(slots=True)
class _History:
    """Readings of one tensor: the first and the newest ones."""

    first: list[Reading] = field(default_factory=list)
    last: deque[Reading] = field(default_factory=lambda: deque(maxlen=_LAST))

    def add(self, reading: Reading) -> None:
        (self.first if len(self.first) < _FIRST else self.last).append(reading)

    def all(self) -> Readings:
        return (*self.first, *self.last)


class Kept:
    """Losses, tensors, labels and answers of a job so far.

    What is added together is seen together: ``with kept.together(): ...`` around the `add_` methods.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._train_losses, self._evaluations = (deque[Point](maxlen=_LOSSES) for _ in range(2))
        self._tensors: dict[str, dict[str, _History]] = {}
        self._train_labels: list[NDArray[np.int64]] = []
        self._answers = Answers()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Nobody reads before its block ends."""
        with self._lock:
            yield

    def add_train_loss(self, step: int, loss: float) -> None:
        """The loss of a train step, counted from 0."""
        self._train_losses.append(Point(step, loss))

    def add_evaluation(self, trained: int, losses: Sequence[float]) -> None:
        """The losses of an evaluation's steps, after so many train steps; their mean is kept."""
        self._evaluations.append(Point(trained, sum(losses) / len(losses)))

    def add_reading(self, collection: str, name: str, reading: Reading) -> None:
        """What was seen of a tensor at a step."""
        self._tensors.setdefault(collection, {}).setdefault(name, _History()).add(reading)

    def add_labels(self, labels: Labels) -> None:
        """The labels of a pass that has ended; of evaluations the last one's are kept."""
        if len(labels.train):
            self._train_labels.append(labels.train)
        if len(labels.true):
            evaluated = self._answers.evaluated + len(labels.true)
            self._answers = Answers(labels=labels.true, predictions=labels.predicted, evaluated=evaluated)

    def evidence(self) -> tuple[Losses, Tensors, Answers]:
        """All of it, for `evidence.Evidence`; from any thread."""
        with self._lock:
            losses = Losses(tuple(self._train_losses), tuple(self._evaluations))
            tensors = {
                collection: {name: one.all() for name, one in histories.items()}
                for collection, histories in self._tensors.items()
            }
            answers = self._answers
            labels = self._train_labels[:]
        return (
            losses,
            tensors,
            Answers(
                train_labels=np.concatenate(labels) if labels else answers.train_labels,
                labels=answers.labels,
                predictions=answers.predictions,
                evaluated=answers.evaluated,
            ),
        )
