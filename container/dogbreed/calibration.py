"""Two numbers that are fitted to the validation images, which the network has not learned from.

One makes probabilities mean something: the temperature by which logits are divided before the softmax (Guo et al. 2017,
On Calibration of Modern Neural Networks). The order of the classes stays as it is, and with it the accuracy; a network
that is too sure gets a temperature above 1, one that is not sure enough one below.

The other says when an image may show none of the classes: how sure of its answer the network must be, at temperature 1,
as it is of 95% of the validation images (Hendrycks and Gimpel 2017). That score parts known from unknown better here
than the calibrated probability, the largest logit or the energy: benchmarks/unknown.py, docs/performance.md.

Knows logits and the truth; not where they come from. Legend: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dogbreed import statistics

MIN_IMAGES = 50
"""Fewer would fit chance."""

LOWEST, HIGHEST = 0.05, 20.0
"""Temperatures beyond are no calibration but a sign of something else."""

KEPT = 0.95
"""Share of the validation images that count as familiar."""

_PRECISION = 1e-4
"""Of the temperature's logarithm."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted temperature, and what it did on the images that it was fitted on.

    Attributes:
        temperature: logits are divided by it; above 0.
        images: that it was fitted on.
        loss_before: mean cross entropy in nats, at temperature 1.
        loss: the same at the fitted one.
        error_before: expected calibration error (15 bins), in [0, 1].
        error: the same at the fitted one.
    """

    temperature: float
    images: int
    loss_before: float
    loss: float
    error_before: float
    error: float

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Calibration:
        """From a bundle's JSON.

        Raises:
            KeyError, TypeError, ValueError: it is something else, or no temperature.
        """
        found = cls(
            temperature=float(document["temperature"]),
            images=int(document["images"]),
            loss_before=float(document["loss_before"]),
            loss=float(document["loss"]),
            error_before=float(document["error_before"]),
            error=float(document["error"]),
        )
        if not LOWEST <= found.temperature <= HIGHEST:
            raise ValueError(f"a temperature of {found.temperature}")
        return found

    def __str__(self) -> str:
        return (
            f"temperature {self.temperature:.3f} on {self.images} validation images: calibration error "
            f"{self.error_before:.1%} before, {self.error:.1%} after; loss {self.loss_before:.4f} before, "
            f"{self.loss:.4f} after"
        )


@dataclass(frozen=True, slots=True)
class Familiarity:
    """From which score on an image counts as one of the classes.

    Attributes:
        threshold: of `familiarity`, in [0, 1].
        images: that it was fitted on.
        kept: share of them that reach it; 0.95 or a little more.
    """

    threshold: float
    images: int
    kept: float

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Familiarity:
        """From a bundle's JSON.

        Raises:
            KeyError, TypeError, ValueError: it is something else, or no threshold.
        """
        found = cls(
            threshold=float(document["threshold"]), images=int(document["images"]), kept=float(document["kept"])
        )
        if not 0 <= found.threshold <= 1:
            raise ValueError(f"a familiarity of {found.threshold}")
        return found

    def __str__(self) -> str:
        return f"known from {self.threshold:.3f} on, which {self.kept:.1%} of {self.images} validation images reach"


def familiarity(scores_NK: Tensor) -> Tensor:
    """Logits or log-probabilities at temperature 1 [N, K] -> the largest probability, [N] in (0, 1]."""
    return scores_NK.log_softmax(dim=1).amax(dim=1).exp()


def fit_familiarity(logits_NK: Tensor) -> Familiarity | None:
    """The highest threshold that 95% of some images reach, the wrongly answered among them.

    Args:
        logits_NK: of images of the classes that the network has not learned from.

    Returns:
        None for fewer than 50 images, and for logits that are not finite.
    """
    if len(logits_NK) < MIN_IMAGES or not logits_NK.isfinite().all():
        return None
    # As the endpoint computes it, so that the image that decides is on the same side there.
    ordered = familiarity(logits_NK.float().cpu()).sort().values
    threshold = float(ordered[int((1 - KEPT) * len(ordered))])
    return Familiarity(threshold, len(ordered), float((ordered >= threshold).double().mean()))


def fit(logits_NK: Tensor, truth_N: Tensor) -> Calibration | None:
    """Finds the temperature with the lowest cross entropy.

    The loss is convex in 1/T, so that it has one minimum over log T, which golden sections find. Where every answer is
    right it would lie at infinite sureness; as much doubt as one more image of unknown class would bring holds it back
    (Platt 1999 does the same).

    Args:
        logits_NK: of images that the network has not learned from; log-probabilities do as well.
        truth_N: indices of their classes, int64.

    Returns:
        None for fewer than 50 images, for logits that are not finite, and where no temperature betters the loss.
    """
    if len(truth_N) < MIN_IMAGES or not logits_NK.isfinite().all():
        return None
    logits_NK, truth_N = logits_NK.double().cpu(), truth_N.cpu()
    doubt = 1 / (len(truth_N) + 1)

    def doubted_loss(log_temperature: float) -> float:
        scores_NK = (logits_NK / math.exp(log_temperature)).log_softmax(1)
        return (1 - doubt) * _loss(scores_NK, truth_N) - doubt * float(scores_NK.mean())

    temperature = math.exp(_golden_section(doubted_loss, math.log(LOWEST), math.log(HIGHEST)))
    before, after = logits_NK.log_softmax(1), apply(logits_NK, temperature)
    found = Calibration(
        temperature=temperature,
        images=len(truth_N),
        loss_before=_loss(before, truth_N),
        loss=_loss(after, truth_N),
        error_before=_error(before, truth_N),
        error=_error(after, truth_N),
    )
    return found if found.loss < found.loss_before else None


def apply(scores_NK: Tensor, temperature: float) -> Tensor:
    """Logits or log-probabilities [N, K] -> log-probabilities at a temperature; a constant per row does not matter."""
    return (scores_NK / temperature).log_softmax(dim=1)


class Heard:
    """Collects the logits of a pass, of so many images at most: one number needs no more."""

    MOST_IMAGES = 10_000

    def __init__(self) -> None:
        self._logits: list[Tensor] = []
        self._truth: list[Tensor] = []
        self._images = 0

    def hear(self, logits_NK: Tensor, truth_N: Tensor) -> None:
        """A batch's logits [N, K] and class indices int64 [N]."""
        if self._images < self.MOST_IMAGES:
            self._logits.append(logits_NK.detach().float().cpu())
            self._truth.append(truth_N.cpu())
            self._images += len(truth_N)

    def all(self) -> tuple[list[Tensor], list[Tensor]]:
        """What was heard, batch by batch."""
        return self._logits, self._truth


def _loss(scores_NK: Tensor, truth_N: Tensor) -> float:
    return -float(scores_NK.gather(1, truth_N[:, None]).mean())


def _error(scores_NK: Tensor, truth_N: Tensor) -> float:
    best, answers = scores_NK.max(dim=1)
    return statistics.expected_calibration_error(
        statistics.reliability(best.exp().tolist(), (answers == truth_N).tolist())
    )


def _golden_section(value: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum between low and high has it."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = value(left), value(right)
    while high - low > _PRECISION:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = value(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = value(right)
    return (low + high) / 2
