"""Which epoch is the best, and when another one is not worth its time. Pure; knows only numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Selection:
    """Follows the objective over the epochs of a job.

    Attributes:
        maximise: larger is better (accuracy) or smaller is (loss).
        patience: epochs without a better objective before stopping; 0 never stops.
        min_delta: how much better it must be to count against patience.
        min_epochs: epochs that run in any case.
        best_epoch: 1-based; 0 before the first epoch, and while none is better than the start.
        best: objective of that epoch, or of the start; NaN when there is none.
    """

    maximise: bool
    patience: int
    min_delta: float
    min_epochs: int
    best_epoch: int = 0
    best: float = float("nan")
    _mark: float = float("nan")
    _mark_epoch: int = 0
    _epoch: int = 0

    def update(self, objective: float) -> bool:
        """Takes the objective of the next epoch and says whether it is the best so far.

        The best epoch is the plain best; ``min_delta`` decides only what resets the patience. NaN is never better.
        """
        self._epoch += 1
        if self._better(objective, self._mark, self.min_delta):
            self._mark, self._mark_epoch = objective, self._epoch
        if not self._better(objective, self.best, 0.0):
            return False
        self.best, self.best_epoch = objective, self._epoch
        return True

    @property
    def exhausted(self) -> bool:
        """Early stopping is due."""
        waited = self._epoch - self._mark_epoch
        return bool(self.patience) and self._epoch >= self.min_epochs and waited >= self.patience

    def _better(self, value: float, reference: float, delta: float) -> bool:
        if math.isnan(value):
            return False
        if math.isnan(reference):
            return True
        return value - reference > delta if self.maximise else reference - value > delta
