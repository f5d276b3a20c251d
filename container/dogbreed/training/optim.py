"""Optimizer and learning-rate schedule from hyperparameters."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dogbreed.hyperparameters import Hyperparameters


def make_optimizer(hyperparameters: Hyperparameters, model: nn.Module) -> Optimizer:
    """The optimizer over what is trainable in ``model``."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    lr, decay = hyperparameters.lr, hyperparameters.weight_decay
    if hyperparameters.optimizer == "sgd":
        return SGD(parameters, lr=lr, momentum=hyperparameters.momentum, weight_decay=decay)
    if hyperparameters.optimizer == "adam":
        return Adam(parameters, lr=lr, weight_decay=decay)
    return AdamW(parameters, lr=lr, weight_decay=decay)


def make_schedule(hyperparameters: Hyperparameters, optimizer: Optimizer, steps: int) -> LambdaLR:
    """The learning rate at each of ``steps`` optimizer steps, as a multiple of its peak.

    ``cosine`` goes from 1 to 0 without restarts (Loshchilov and Hutter 2017, SGDR, equation 5); ``constant`` stays.
    """
    if hyperparameters.schedule == "constant":
        return LambdaLR(optimizer, lambda _: 1.0)
    return LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps)))))
