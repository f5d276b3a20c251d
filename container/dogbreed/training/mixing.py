"""Soft targets: label smoothing, and batches whose samples are blended (mixup) or pasted into one another (cutmix).

A `Mixing` runs on the device, on what the network is about to see: images, normalised or not, or the stored outputs of
a frozen part. It draws from torch's global generator on the CPU, which the loop seeds for each step, and pairs each
sample with its neighbour, which is a random one since the batch is shuffled.

Legend: N batch, K classes, C channels, H and W sides of an image or a feature map, D anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn.functional import cross_entropy, one_hot

from dogbreed.errors import HyperparameterError
from dogbreed.hyperparameters import Hyperparameters

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Inputs [N, *D] and class indices int64 [N] -> inputs of the same shape, dtype and memory format, and targets: the
indices themselves where nothing is mixed, else float32 [N, K] in [0, 1] with sums of 1."""


class SmoothedCrossEntropyLoss(nn.CrossEntropyLoss):
    """Mean cross-entropy that smooths labels only where it is learnt from. smdebug knows a loss by its class's name.

    In eval mode it is the plain loss, so that validation losses can be compared whatever the recipe (Szegedy et al.
    2016, Rethinking the Inception Architecture, section 7).
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Logits [N, K] and a `Mixing`'s targets -> mean loss."""
        smoothing = self.label_smoothing if self.training else 0.0
        return cross_entropy(input, target, label_smoothing=smoothing)


def make_mixing(hyperparameters: Hyperparameters, classes: int) -> Mixing:
    """What is done to each training batch; with both mixup and cutmix, one or the other by the toss of a coin.

    Args:
        hyperparameters: of the job.
        classes: K.
    """
    ways: list[Mixing] = []
    if hyperparameters.mixup:
        ways.append(partial(mixup, alpha=hyperparameters.mixup, classes=classes))
    if hyperparameters.cutmix:
        ways.append(partial(cutmix, alpha=hyperparameters.cutmix, classes=classes))
    if len(ways) == 2:
        return partial(_either, ways[0], ways[1])
    return ways[0] if ways else unmixed


def unmixed(inputs: Tensor, indices_N: Tensor) -> tuple[Tensor, Tensor]:
    """The batch as it is."""
    return inputs, indices_N


def mixup(inputs: Tensor, indices_N: Tensor, *, alpha: float, classes: int) -> tuple[Tensor, Tensor]:
    """Blends each sample with another: a share of each, drawn per batch from Beta(alpha, alpha).

    Zhang et al. 2018, mixup: Beyond Empirical Risk Minimization; on hidden outputs it is Verma et al. 2019, Manifold
    Mixup. It commutes with the normalisation of images, so it may run before or after.

    Args:
        inputs: uint8 or floating point [N, *D].
        indices_N: int64 [N].
        alpha: above 0; small ones leave most batches nearly as they are, 1 draws all shares alike.
        classes: K.
    """
    share = _draw_share(alpha)
    exact = inputs if inputs.dtype is torch.float32 else inputs.float()
    blended = torch.lerp(_neighbours(exact), exact, share)
    if not inputs.is_floating_point():
        blended = blended.round_()
    return blended.to(inputs.dtype), _targets(indices_N, share, classes)


def cutmix(inputs: Tensor, indices_N: Tensor, *, alpha: float, classes: int) -> tuple[Tensor, Tensor]:
    """Pastes a box of another sample into each; its share of the area is drawn per batch from Beta(alpha, alpha).

    Yun et al. 2019, CutMix, algorithm 1. The targets follow the box as it is after clipping and rounding, which on a
    small feature map differs from what was drawn.

    Args:
        inputs: images or feature maps of any dtype [N, C, H, W]; also [N, H, W, C] where H = W differs from C, as
            Swin's are.
        indices_N: int64 [N].
        alpha: above 0.
        classes: K.

    Raises:
        HyperparameterError: the inputs have no sides.
    """
    if inputs.dim() != 4:
        raise HyperparameterError(
            f"cutmix={alpha:g} needs images or feature maps, but what learns here is given {inputs.dim() - 1} "
            f"dimensions per sample; give mixup instead, or cache=false"
        )
    channels_last = inputs.shape[1] == inputs.shape[2] != inputs.shape[3]
    height, width = inputs.shape[1:3] if channels_last else inputs.shape[2:]
    rows, columns = _draw_box(height, width, _draw_share(alpha))
    box = (slice(None), rows, columns) if channels_last else (slice(None), slice(None), rows, columns)
    pasted = inputs.clone()
    pasted[box] = _neighbours(inputs[box])
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return pasted, _targets(indices_N, 1.0 - area / (height * width), classes)


def _either(first: Mixing, second: Mixing, inputs: Tensor, indices_N: Tensor) -> tuple[Tensor, Tensor]:
    return (first if torch.rand(()) < 0.5 else second)(inputs, indices_N)


def _draw_share(alpha: float) -> float:
    """In [0, 1]. In float64: of two small gammas that both underflow the quotient would not be a number."""
    concentration = torch.tensor(alpha, dtype=torch.float64)
    return float(Beta(concentration, concentration).sample())


def _draw_box(height: int, width: int, kept: float) -> tuple[slice, slice]:
    """Rows and columns of a box around a random centre, clipped at the border, that leaves about a share ``kept``."""
    half = 0.5 * math.sqrt(1.0 - kept)
    spans = []
    for side in (height, width):
        centre, reach = int(torch.randint(side, ())), int(half * side)
        spans.append(slice(max(0, centre - reach), min(side, centre + reach)))
    return spans[0], spans[1]


def _neighbours(inputs: Tensor) -> Tensor:
    """The batch moved on by one, in the memory format of the batch."""
    return torch.empty_like(inputs).copy_(inputs.roll(1, 0))


def _targets(indices_N: Tensor, share: float, classes: int) -> Tensor:
    own = one_hot(indices_N, classes).float()
    return torch.lerp(own.roll(1, 0), own, share)
