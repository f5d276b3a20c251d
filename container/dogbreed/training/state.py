"""Where a fit stands between two steps: everything that must be kept to go on exactly there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from dogbreed.training.averaging import Averaging
from dogbreed.training.distributed import ALONE, Team
from dogbreed.training.metrics import PassMetrics
from dogbreed.training.optim import Schedule
from dogbreed.training.selection import Selection


@dataclass(frozen=True, slots=True)
class EpochResult:
    """What one epoch came to.

    Attributes:
        epoch: from 1.
        metrics: train_loss, train_accuracy, validation_loss, validation_accuracy.
        learning_rate: of the last step.
        seconds: wall time of training and validation.
        images_per_s: training images per second of the training pass, over all processes.
        waiting_share: part of the training pass, in [0, 1], in which this process waited for data.
        is_best: the objective was never better.
    """

    epoch: int
    metrics: dict[str, float]
    learning_rate: float
    seconds: float
    images_per_s: float
    waiting_share: float
    is_best: bool


@dataclass
class FitState:
    """All that changes during a fit.

    Attributes:
        model: on the compute device.
        optimizer: over the model's trainable parameters.
        schedule: of the optimizer, stepped once per step and told of each epoch's objective.
        averaging: of the model's weights; what it holds is what is evaluated.
        scaler: of the losses.
        selection: which epoch is best.
        epoch: the one in hand, from 1.
        batch: batches of its training pass that are done.
        learnt: metrics of that pass so far.
        history: the finished epochs.
        best_weights: state dict of the best epoch, or of a start that none has bettered, on the CPU; None before
            there is one.
        best_metrics: of those weights.
        best_validation: their validation pass.
        statistics: of each process, by rank, as `collect` found them; empty where all processes have the same.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    averaging: Averaging
    scaler: GradScaler
    selection: Selection
    learnt: PassMetrics
    epoch: int = 1
    batch: int = 0
    history: list[EpochResult] = field(default_factory=list)
    best_weights: dict[str, Tensor] | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    best_validation: PassMetrics | None = None
    statistics: list[dict[str, Tensor]] = field(default_factory=list)

    def collect(self, team: Team) -> None:
        """Takes to the leader what each process has of its own in the middle of an epoch, for it alone keeps states.

        These are the sums of the pass, and the running statistics of norm layers, which are averaged only at the
        epoch's end: a follower that went on with the leader's would end with others.
        """
        if team.alone:
            return
        self.learnt.collect(team)
        found = team.gather({name: tensor.cpu() for name, tensor in self._own_statistics().items()})
        differ = any(not torch.equal(one[name], found[0][name]) for one in found[1:] for name in one)
        self.statistics = found if differ else []

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors, numbers and texts only: it loads with `weights_only`.

        Random generators have no state to keep: what a step draws follows from its number.
        """
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "averaging": self.averaging.state_dict(),
            "scaler": self.scaler.state_dict(),
            "selection": asdict(self.selection),
            "learnt": self.learnt.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "history": [asdict(result) for result in self.history],
            "best_weights": self.best_weights,
            "best_metrics": self.best_metrics,
            "best_validation": self.best_validation.state_dict() if self.best_validation else None,
            "statistics": self.statistics,
        }

    def load_state_dict(self, state: Mapping[str, Any], team: Team = ALONE) -> None:
        """Goes back to where `state_dict` was taken.

        Args:
            state: the leader's.
            team: that goes on. One of another size than the one that was interrupted goes on with the mean of its
                statistics, which is what the epoch's end would have made of them.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.averaging.load_state_dict(state["averaging"])
        self.scaler.load_state_dict(state["scaler"])
        self.selection = Selection(**state["selection"])
        self.learnt.load_state_dict(state["learnt"])
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.history = [EpochResult(**result) for result in state["history"]]
        self.best_weights, self.best_metrics = state["best_weights"], state["best_metrics"]
        if state["best_validation"] is not None:
            self.best_validation = PassMetrics.from_state(state["best_validation"], self.learnt.device)
        if not team.leads:
            # The leader goes on with the sums of all.
            self.learnt = PassMetrics(self.learnt.device)
        # Checkpoints of before there was such a thing have none.
        statistics = state.get("statistics", [])
        for name, tensor in self._own_statistics().items() if statistics else ():
            kept = [one[name] for one in statistics]
            tensor.copy_(kept[team.rank] if len(kept) == team.size else torch.stack(kept).mean(dim=0))

    def _own_statistics(self) -> dict[str, Tensor]:
        """The floating-point buffers of the model and of its average, by name."""
        buffers = {name: buffer for name, buffer in self.model.named_buffers() if buffer.is_floating_point()}
        average = self.averaging.state_dict()
        averages = {f"average of {name}": average[name] for name in buffers.keys() & average.keys()}
        return {**buffers, **averages}
