"""How far a quick engine's answers are from those of float32, and whether that is near enough.

Half precision is not neutral: measured on real photos it changed 3 to 4 answers of 120. A job therefore scores
validation images with both at its end, the bundle keeps what was found, and a server looks at it before it chooses.

Knows numbers; not how they came to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

MAX_ACCURACY_LOSS = 0.002
"""A quick engine may lose 0.2 percentage points of accuracy."""

MAX_CHANGED = 0.01
"""And give another answer for one image in a hundred, be it better or worse."""

MAX_PROBABILITY_CHANGE = 0.05
"""And move no probability by more than 5 points, of any class of any image: a threshold of a user's would notice."""

MIN_IMAGES = 200
"""Fewer prove nothing: of 200 images without a change, up to 1.5% may still change (the rule of three, 95%)."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a comparison found.

    Attributes:
        images: that were compared; fewer than there were when those were enough to refuse the engine.
        changed: whose best class is another one.
        accuracy_reference: of float32, in [0, 1].
        accuracy: of the engine, in [0, 1].
        max_probability_change: over all images and classes, in [0, 1].
        of_images: that there were to compare; None: all were compared.
    """

    images: int
    changed: int
    accuracy_reference: float
    accuracy: float
    max_probability_change: float
    of_images: int | None = None

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Agreement:
        """From a bundle's JSON.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        return cls(
            images=int(document["images"]),
            changed=int(document["changed"]),
            accuracy_reference=float(document["accuracy_reference"]),
            accuracy=float(document["accuracy"]),
            max_probability_change=float(document["max_probability_change"]),
            # Bundles of before know of none.
            of_images=None if document.get("of_images") is None else int(document["of_images"]),
        )

    @property
    def is_refused(self) -> bool:
        """Whether the engine may not be used, whatever the images that were not compared would show."""
        allowed = MAX_CHANGED * (self.images if self.of_images is None else self.of_images)
        return self.changed > allowed or not self.max_probability_change <= MAX_PROBABILITY_CHANGE  # also of a NaN

    def objection(self) -> str | None:
        """Why the engine may not be used; None when it may."""
        if self.changed > MAX_CHANGED * self.images:
            return f"it changed {self.changed} of {self.images} validation answers, allowed is {MAX_CHANGED:.0%}"
        if not self.max_probability_change <= MAX_PROBABILITY_CHANGE:  # also of a NaN
            return (
                f"it moved a probability by {100 * self.max_probability_change:.1f} points, allowed are "
                f"{100 * MAX_PROBABILITY_CHANGE:g}"
            )
        if self.images < MIN_IMAGES:
            return f"only {self.images} validation images were compared, {MIN_IMAGES} are needed"
        loss = self.accuracy_reference - self.accuracy
        if loss > MAX_ACCURACY_LOSS:
            return f"it lost {100 * loss:.2f} points of validation accuracy, allowed are {100 * MAX_ACCURACY_LOSS:g}"
        return None

    def __str__(self) -> str:
        of = "" if self.of_images is None else f" most doubtful of {self.of_images}"
        return (
            f"{self.changed} of {self.images}{of} answers changed, accuracy {self.accuracy:.4f} against "
            f"{self.accuracy_reference:.4f}, probabilities moved by up to {self.max_probability_change:.3f}"
        )


def most_doubtful(scores_NK: Tensor) -> list[int]:
    """Numbers of the answers, those first whose two likeliest classes are nearest to each other in probability.

    A small error changes such an answer, and moves its probabilities far.

    Args:
        scores_NK: log-probabilities; K is at least 2.
    """
    best_N2 = scores_NK.exp().nan_to_num(0.0).topk(2, dim=1).values
    order: list[int] = (best_N2[:, 0] - best_N2[:, 1]).argsort().tolist()
    return order


def compare(reference_NK: Tensor, scores_NK: Tensor, truth_N: Tensor) -> Agreement:
    """Compares log-probabilities of the same images; N is at least 1.

    Args:
        reference_NK: of float32.
        scores_NK: of the engine.
        truth_N: indices of the right classes.
    """
    best_reference, best = reference_NK.argmax(1), scores_NK.argmax(1)
    return Agreement(
        images=len(truth_N),
        changed=int((best_reference != best).sum()),
        accuracy_reference=float((best_reference == truth_N).float().mean()),
        accuracy=float((best == truth_N).float().mean()),
        max_probability_change=float((reference_NK.exp() - scores_NK.exp()).abs().max()),
    )
