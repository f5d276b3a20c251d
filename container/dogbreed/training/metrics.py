"""Sums over the batches of a pass, kept on the device so that no step waits for a number.

Legend: N batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dogbreed.training.distributed import Team


class PassMetrics:
    """Loss, accuracy and, on request, the confusion matrix of one pass over a split.

    Args:
        device: where logits and losses live.
        confusion_classes: K to count a K x K confusion matrix; None spares the training pass that work.
    """

    def __init__(self, device: torch.device, confusion_classes: int | None = None) -> None:
        # float64 on the CPU costs nothing; on a device float32 sums of a few thousand batches are exact enough.
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        self.device = device
        self._loss = torch.zeros((), dtype=dtype, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._classes = confusion_classes
        self._confusion = torch.zeros((confusion_classes or 0) ** 2, dtype=torch.int64, device=device)
        self._finite = torch.zeros((), dtype=torch.int64, device=device)
        self.samples = 0

    def add(self, loss: Tensor, logits_NK: Tensor, indices_N: Tensor) -> None:
        """Adds one batch: its mean loss, logits [N, K] and true class indices int64 [N]."""
        n = len(indices_N)
        predicted = logits_NK.argmax(dim=1)
        self._loss += loss.detach() * n
        # Counts until the sum is spoilt, without asking the device.
        self._finite += self._loss.isfinite()
        self._correct += (predicted == indices_N).sum()
        if self._classes:
            self._confusion += torch.bincount(indices_N * self._classes + predicted, minlength=self._classes**2)
        self.samples += n

    def state_dict(self) -> dict[str, Any]:
        """The sums, on the CPU."""
        return {
            "loss": self._loss.cpu(),
            "correct": self._correct.cpu(),
            "confusion": self._confusion.cpu(),
            "classes": self._classes,
            "finite": self._finite.cpu(),
            "samples": self.samples,
        }

    def summed(self, team: Team) -> PassMetrics:
        """The metrics of all processes together, the same in each of them."""
        whole = PassMetrics.from_state(self.state_dict(), self.device)
        for tensor in (whole._loss, whole._correct, whole._confusion):
            team.add_up(tensor)
        (whole.samples,) = team.total(self.samples)
        return whole

    def collect(self, team: Team) -> None:
        """Moves what all processes have added so far to the leader's metrics."""
        if team.alone:
            return
        whole = self.summed(team)
        self.load_state_dict((whole if team.leads else PassMetrics(self.device, self._classes)).state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from the sums of `state_dict`."""
        self._loss = state["loss"].to(self.device, copy=True)
        self._correct = state["correct"].to(self.device, copy=True)
        self._confusion = state["confusion"].to(self.device, copy=True)
        self._finite = state["finite"].to(self.device, copy=True)
        self._classes = state["classes"]
        self.samples = state["samples"]

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> PassMetrics:
        """The metrics that `state_dict` was taken of."""
        metrics = cls(device)
        metrics.load_state_dict(state)
        return metrics

    @property
    def loss(self) -> float:
        """Mean loss per sample; NaN when no sample was seen."""
        return float(self._loss) / self.samples if self.samples else float("nan")

    @property
    def first_not_finite(self) -> int:
        """Number of the batch, from 1, with which the loss stopped being finite; 0 when it is, or is not known."""
        return 0 if math.isfinite(self.loss) else int(self._finite) + 1

    @property
    def accuracy(self) -> float:
        """Share of samples whose largest logit is the true class; NaN when no sample was seen."""
        return int(self._correct) / self.samples if self.samples else float("nan")

    @property
    def confusion(self) -> list[list[int]]:
        """Counts [true class][predicted class]; empty when not asked for."""
        return self._confusion.view(self._classes or 0, -1).tolist() if self._classes else []
