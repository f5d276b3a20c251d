"""Optimizer and learning-rate schedule from hyperparameters.

The rate of a step is a group's peak times what the schedule says, and the schedule says it per optimizer step, so that
it goes on from a checkpoint in the middle of an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from dogbreed import backbones
from dogbreed.hyperparameters import Hyperparameters

Shape = Callable[[int], float]
"""Number of a step, from 0 -> its learning rate as a share of the peak, in [0, 1]."""


class Rated(Protocol):
    """What has learning rates: an optimizer of torch, or what stands for one of many."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """One per peak rate, which stands under ``lr``."""


def make_optimizer(hyperparameters: Hyperparameters, model: nn.Module) -> Optimizer:
    """The optimizer over what is trainable in ``model``, the groups nearest to the loss first.

    Its groups have peak rates of their own: ``lr`` times ``head-lr-factor`` for the head, and times ``layer-decay`` for
    every group of layers (`backbones.stages`) further from it (Clark et al. 2020, ELECTRA; Bao et al. 2021, BEiT).
    Biases and the scales of norm layers do not decay unless `decay-norm-and-bias` says so: torchvision's current
    recipes spare the norm layers and timm both, since shrinking them does not simplify what the network computes.

    torch chooses the implementation. Fused kernels took a third of the optimizer's time on a CPU (MobileNetV2, AdamW,
    3.2 against 10.3 ms a step), which is less than a hundredth of the step, and trust silently that a gradient has the
    memory format of its parameter, so they are not asked for.

    Args:
        hyperparameters: of the job.
        model: a classifier, what is behind its cut, or any other network, which is all head then.
    """
    groups = _groups(hyperparameters, model)
    lr, decay = hyperparameters.lr, hyperparameters.weight_decay
    if hyperparameters.optimizer == "sgd":
        momentum, nesterov = hyperparameters.momentum, hyperparameters.nesterov
        return SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    betas = (hyperparameters.beta1, hyperparameters.beta2)
    kind = Adam if hyperparameters.optimizer == "adam" else AdamW
    return kind(groups, lr=lr, betas=betas, eps=hyperparameters.eps, weight_decay=decay)


def make_schedule(hyperparameters: Hyperparameters, optimizer: Rated, steps: int) -> Schedule:
    """The learning rate of each optimizer step.

    Args:
        hyperparameters: of the job.
        optimizer: its groups' rates are the peaks.
        steps: optimizer steps in all ``epochs``.
    """
    per_epoch = steps / hyperparameters.epochs
    warmup = round(hyperparameters.warmup * per_epoch)
    shapes: dict[str, Shape] = {
        "cosine": lambda step: cosine(step - warmup, steps - warmup),
        "step": lambda step: hyperparameters.gamma ** math.floor(step / (hyperparameters.step_epochs * per_epoch)),
    }
    plateau = Plateau(
        maximise=hyperparameters.objective.endswith("accuracy"),
        patience=hyperparameters.plateau_patience,
        min_delta=hyperparameters.min_delta,
        gamma=hyperparameters.gamma if hyperparameters.schedule == "plateau" else 1.0,
    )
    return Schedule(optimizer, shapes.get(hyperparameters.schedule, lambda _: 1.0), warmup, plateau)


def cosine(step: int, steps: int) -> float:
    """From 1 to 0 in ``steps`` steps without restarts (Loshchilov and Hutter 2017, SGDR, equation 5)."""
    done = min(1.0, max(0, step) / max(1, steps))
    return 0.5 * (1 + math.cos(math.pi * done))


@dataclass
class Plateau:
    """Lets the rate fall when the objective stalls.

    Attributes:
        maximise: larger is better (accuracy) or smaller is (loss).
        patience: epochs without a better objective before a fall, and from one fall to the next.
        min_delta: how much better it must be to count.
        gamma: factor of a fall; 1 never falls.
        factor: product of all falls so far.
    """

    maximise: bool
    patience: int
    min_delta: float
    gamma: float
    factor: float = 1.0
    _best: float = field(default=float("nan"))
    _waited: int = 0

    def judge(self, objective: float) -> None:
        """Takes the objective of the next epoch; NaN is never better."""
        gain = objective - self._best if self.maximise else self._best - objective
        if gain > self.min_delta or (math.isnan(self._best) and not math.isnan(objective)):
            self._best, self._waited = objective, 0
            return
        self._waited += 1
        if self._waited >= self.patience:
            self.factor, self._waited = self.factor * self.gamma, 0

    def state_dict(self) -> dict[str, Any]:
        """What changes."""
        return {"factor": self.factor, "best": self._best, "waited": self._waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`."""
        self.factor, self._best, self._waited = state["factor"], state["best"], state["waited"]


class Schedule:
    """Sets the learning rates of an optimizer before each of its steps.

    The rate of a group is its peak, times the warm-up's share, times the shape's, times the falls of the plateau.

    Args:
        optimizer: its groups' rates are the peaks; they are kept in the groups as ``initial_lr``, as torch does.
        shape: of the rate over the steps; after the warm-up if it says so itself.
        warmup: steps in which the rate rises linearly; the last of them is at the peak.
        plateau: told of each epoch's objective.
    """

    def __init__(self, optimizer: Rated, shape: Shape, warmup: int, plateau: Plateau) -> None:
        self._optimizer = optimizer
        self._shape = shape
        self._warmup = warmup
        self._plateau = plateau
        self._step = 0
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self._apply()

    def step(self) -> None:
        """An optimizer step is done: sets the rates of the next."""
        self._step += 1
        self._apply()

    def judge(self, objective: float) -> None:
        """An epoch is done and validated: only a plateau listens."""
        self._plateau.judge(objective)
        self._apply()

    @property
    def factor(self) -> float:
        """The next step's rates as a share of their peaks, in [0, 1]."""
        return self._factor_of(self._step)

    def get_last_lr(self) -> list[float]:
        """The rates of the optimizer's groups, the head's first; those of the next step, as torch's schedulers say."""
        return [float(group["lr"]) for group in self._optimizer.param_groups]

    @property
    def used(self) -> float:
        """The head's rate in the last step that was done, while no objective is told after it; before any, its first.

        It follows from the step's number, so that a checkpoint keeps nothing of it.
        """
        return float(self._optimizer.param_groups[0]["initial_lr"] * self._factor_of(max(0, self._step - 1)))

    def state_dict(self) -> dict[str, Any]:
        """Numbers only; it loads with `weights_only`."""
        return {"step": self._step, "plateau": self._plateau.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`, and sets the rates."""
        self._step = state["step"]
        self._plateau.load_state_dict(state["plateau"])
        self._apply()

    def _factor_of(self, step: int) -> float:
        rising = min(1.0, (step + 1) / self._warmup) if self._warmup else 1.0
        return rising * self._shape(step) * self._plateau.factor

    def _apply(self) -> None:
        factor = self.factor
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


def _groups(hyperparameters: Hyperparameters, model: nn.Module) -> list[dict[str, Any]]:
    """What learns, in one group per rate and weight decay; the largest distance from the loss comes last."""
    spared = set() if hyperparameters.decay_norm_and_bias else _norms_and_biases(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for distance, parameters in enumerate(reversed(backbones.stages(model))):
        lr = hyperparameters.lr * hyperparameters.layer_decay**distance
        if distance == 0:
            lr *= hyperparameters.head_lr_factor
        for parameter in parameters:
            decay = 0.0 if id(parameter) in spared else hyperparameters.weight_decay
            groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": parameters, "lr": lr, "weight_decay": decay} for (lr, decay), parameters in groups.items()]


def _norms_and_biases(model: nn.Module) -> set[int]:
    """Ids of the parameters of norm layers, and of all biases."""
    found = set()
    for module in model.modules():
        norm = isinstance(module, backbones.NORM_LAYERS)
        for name, parameter in module.named_parameters(recurse=False):
            if norm or name.endswith("bias"):
                found.add(id(parameter))
    return found
