"""What a model says of images that it has not learned from, for every image of the training split.

The images are dealt into folds; for each fold a linear head learns from the features of the others, all heads as one
stack on the same batches. Images of other splits get the mean of all heads, none of which has seen them.

Legend: N images, T folds and their heads, B batch, F features, K classes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dogbreed.training.heads import StackedHeads

FOLDS = 5
NO_FOLD = -1
"""Of an image that no head has seen: all of them judge it."""

# Few epochs: a head that learns longer learns the wrong labels by heart (docs/curation.md).
_EPOCHS = 12
_LEAST_STEPS = 100
_BATCH = 128
_LEARNING_RATE = 1.0
"""Divided by the square root of the number of features, as these are: a step then moves the logits alike for all."""

_WEIGHT_DECAY = 0.01


def deal(
    indices_N: Sequence[int], groups: Sequence[Sequence[int]] = (), *, folds: int = FOLDS, seed: int = 0
) -> NDArray[np.int64]:
    """A fold for each image, int64 [N]: as evenly as can be within each class.

    Args:
        indices_N: class indices.
        groups: positions that must not be apart: a copy that another head learns from would vouch for its own label.
        folds: T, 2 or more.
        seed: of the order in which they are dealt.
    """
    generator = random.Random(seed)
    grouped = {position for group in groups for position in group}
    units = [tuple(group) for group in groups] + [
        (position,) for position in range(len(indices_N)) if position not in grouped
    ]
    generator.shuffle(units)
    # Large ones first: what is dealt last evens out.
    units.sort(key=len, reverse=True)
    of_class = np.zeros((folds, max(indices_N, default=0) + 1), dtype=np.int64)
    of_all = np.zeros(folds, dtype=np.int64)
    found = np.zeros(len(indices_N), dtype=np.int64)
    for unit in units:
        classes = [indices_N[position] for position in unit]
        fold = min(range(folds), key=lambda number: (of_class[number, classes].sum(), of_all[number], number))
        np.add.at(of_class[fold], classes, 1)
        of_all[fold] += len(unit)
        found[list(unit)] = fold
    return found


def probabilities(
    features_NF: NDArray[np.floating],
    indices_N: NDArray[np.int64],
    folds_N: NDArray[np.int64],
    learning_N: NDArray[np.bool_],
    *,
    classes: int,
    seed: int = 0,
    device: torch.device = torch.device("cpu"),  # noqa: B008  an immutable value
    stop_requested: Callable[[], bool] = lambda: False,
) -> NDArray[np.float32] | None:
    """Out-of-sample probabilities, float32 [N, K]; None when a stop was requested.

    Args:
        features_NF: of all images.
        indices_N: class indices.
        folds_N: from `deal`; of images that no head learns from, that of a copy which one does, or NO_FOLD.
        learning_N: images that heads learn from; the others are only judged.
        classes: K.
        seed: of weights and order.
        device: that trains.
        stop_requested: asked before every epoch.
    """
    learning = torch.from_numpy(np.flatnonzero(learning_N))
    folds = int(folds_N.max()) + 1
    features_NF = np.asarray(features_NF, dtype=np.float32)
    seen = features_NF[learning.numpy()]
    mean, spread = seen.mean(axis=0), seen.std(axis=0)
    # Every feature on one scale: one learning rate for all, whatever the network.
    inputs_NF = torch.from_numpy((features_NF - mean) / (np.where(spread > 0, spread, 1) * features_NF.shape[1] ** 0.5))
    inputs_NF = inputs_NF.to(device)
    indices = torch.from_numpy(indices_N).to(device)
    members_NT = torch.from_numpy(folds_N)[:, None] != torch.arange(folds)
    members = members_NT.float().to(device)
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(features_NF.shape[1], classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    heads = StackedHeads(nn.Sequential(nn.Dropout(0.0), linear), folds).to(device)
    optimizer = torch.optim.AdamW(
        heads.parameters(), lr=_LEARNING_RATE / features_NF.shape[1] ** 0.5, weight_decay=_WEIGHT_DECAY
    )
    batches = math.ceil(len(learning) / _BATCH)
    epochs = max(_EPOCHS, math.ceil(_LEAST_STEPS / batches))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for _ in range(epochs):
        if stop_requested():
            return None
        for rows in torch.split(learning[torch.randperm(len(learning), generator=generator)], _BATCH):
            optimizer.zero_grad()
            _loss(heads(inputs_NF[rows]), indices[rows], members[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        found = [
            _unseen(heads(inputs), folds_).cpu()
            for inputs, folds_ in zip(
                torch.split(inputs_NF, _BATCH), torch.split(torch.from_numpy(folds_N).to(device), _BATCH), strict=True
            )
        ]
    return torch.cat(found).numpy()


def _loss(logits_BTK: Tensor, indices_B: Tensor, members_BT: Tensor) -> Tensor:
    """The sum of the heads' losses, each the mean cross entropy of the images that are its own to learn from."""
    truth_BT1 = indices_B[:, None, None].expand(-1, logits_BTK.shape[1], 1)
    losses_BT = -logits_BTK.log_softmax(dim=2).gather(2, truth_BT1).squeeze(2)
    return ((losses_BT * members_BT).sum(dim=0) / members_BT.sum(dim=0).clamp(min=1)).sum()


def _unseen(logits_BTK: Tensor, folds_B: Tensor) -> Tensor:
    """Probabilities [B, K] by the head that has not seen an image, or the mean of all, where none has."""
    probabilities_BTK = logits_BTK.softmax(dim=2)
    own_BK = probabilities_BTK[torch.arange(len(folds_B)), folds_B.clamp(min=0)]
    return torch.where((folds_B == NO_FOLD)[:, None], probabilities_BTK.mean(dim=1), own_BK)
