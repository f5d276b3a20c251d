"""Reduces tensors to the few numbers that rules look at, on the device that they are on.

Legend: N batch, U units (channels or features).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STATISTICS = ("min", "max", "mean", "variance", "abs_mean", "zeros")
"""What `statistics` gives, in this order; see `evidence.Reading`."""
EXTRA = ("zeros", "p5", "p95", "change", "largest_change", "before")
"""What stands, in this order, in the saved tensor ``insight/NAME`` beside smdebug's own reductions."""
UNKNOWN = -math.inf
"""Stands there for what was not computed: a statistic of a network that diverged may itself be NaN."""
PLACES = {
    ("min", False): 0,
    ("max", False): 1,
    ("mean", False): 2,
    ("variance", False): 3,
    ("mean", True): 4,
}
"""Reduction of smdebug, and whether of absolute values -> its place among `STATISTICS`."""
SAMPLE = 4096
"""Elements of a tensor from which percentiles and changes are taken."""


def summarise(value: Tensor) -> Tensor:
    """Smallest, largest, mean, variance (over all elements), mean of absolute values and share of zeros.

    On a CPU by numpy: torch wakes all its threads for each of these short passes, which takes four times as much CPU
    time for the 38,000 weights of a head.
    """
    if value.device.type == "cpu":
        return torch.from_numpy(_summarise_on_cpu(value.numpy()))
    low, high = torch.aminmax(value)
    mean = value.mean()
    # torch.var takes ten times as long on a CPU.
    variance = (value - mean).square_().mean()
    zeros = 1.0 - torch.count_nonzero(value) / value.numel()
    return torch.stack([low, high, mean, variance, value.abs().mean(), zeros.to(value.dtype)]).float()


def _summarise_on_cpu(value: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):  # of a network that diverged
        mean = value.mean()
        centred = (value - mean).reshape(-1)
        zeros = 1.0 - np.count_nonzero(value) / value.size
        found = (value.min(), value.max(), mean, centred @ centred / value.size, np.abs(value).mean(), zeros)
        return np.array(found, dtype=np.float32)


def sample(value: Tensor) -> Tensor:
    """Up to 4096 elements, evenly spread in memory, and always the same ones."""
    dense = (
        value.is_contiguous() or value.is_contiguous(memory_format=torch.channels_last)
        if value.dim() == 4
        else (value.is_contiguous())
    )
    flat = value.as_strided((value.numel(),), (1,)) if dense else value.reshape(-1)
    return flat[:: max(1, math.ceil(value.numel() / SAMPLE))]


def share(active_NU: Tensor) -> Tensor:
    """Share of batch and image positions at which each unit is active, float32 [U]; axis 1 are the units."""
    if active_NU.dim() < 2:
        return active_NU.float().reshape(-1)
    others = [axis for axis in range(active_NU.dim()) if axis != 1]
    return active_NU.float().mean(dim=others)


class Together:
    """Tensors of any device that come to the CPU in one copy per device, because each copy waits for the device."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def add(self, tensor: Tensor) -> int:
        """Takes a tensor; returns its place in what `fetch` gives."""
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def fetch(self) -> list[NDArray[Any]]:
        """Everything that was added, in its shape; small floating tensors as float32."""
        fetched: list[NDArray[Any]] = [np.zeros(0)] * len(self._tensors)
        groups: dict[torch.device, list[int]] = {}
        for place, tensor in enumerate(self._tensors):
            if tensor.numel() <= SAMPLE and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16):
                groups.setdefault(tensor.device, []).append(place)
            else:
                fetched[place] = tensor.cpu().numpy()
        for places in groups.values():
            flat = torch.cat([self._tensors[place].reshape(-1).float() for place in places]).cpu().numpy()
            start = 0
            for place in places:
                shape = self._tensors[place].shape
                end = start + math.prod(shape)
                fetched[place] = flat[start:end].reshape(shape)
                start = end
        return fetched
