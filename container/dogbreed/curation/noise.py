"""Which labels are likely wrong: confident learning.

Northcutt, Jiang and Chuang 2021, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 70. A class's
threshold is the mean probability that its own images get for it. An image counts as one of another class when its
probability for that class reaches the class's threshold, and is the greatest of those that do: the confident joint. How
many images lie off its diagonal says how many labels are wrong; which ones, their self-confidence: the probability of
the given label. Probabilities must come from a model that has not learned from the image.

Knows numbers; neither images nor how they were judged.

Legend: N images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-6
"""A probability that is its threshold but for rounding has reached it."""


@dataclass(frozen=True, slots=True)
class LabelNoise:
    """What confident learning finds.

    Attributes:
        joint: int64 [K, K], images by given and by likely true class; images that reach no threshold are not counted.
        suspects: int64, positions of the images whose labels are likely wrong, the most suspicious first.
        likely: int64, the likely class of each suspect.
    """

    joint: NDArray[np.int64]
    suspects: NDArray[np.int64]
    likely: NDArray[np.int64]


def thresholds(probabilities_NK: NDArray[np.floating], given_N: NDArray[np.integer]) -> NDArray[np.float64]:
    """The mean probability of each class among the images labelled so, [K]; infinite for classes without images."""
    classes = probabilities_NK.shape[1]
    own_N = probabilities_NK[np.arange(len(given_N)), given_N].astype(np.float64)
    counts_K = np.bincount(given_N, minlength=classes)
    sums_K = np.bincount(given_N, weights=own_N, minlength=classes)
    found_K: NDArray[np.float64] = np.where(counts_K > 0, sums_K / np.maximum(counts_K, 1), np.inf)
    return found_K


def find(probabilities_NK: NDArray[np.floating], given_N: NDArray[np.integer]) -> LabelNoise:
    """As many images as the confident joint has off its diagonal, those with the least self-confidence.

    An image that is likelier of its given class than of any other is never among them.

    Args:
        probabilities_NK: in [0, 1], rows that add up to 1, out of sample.
        given_N: class indices.

    Raises:
        ValueError: there is a probability that is not finite.
    """
    if not np.isfinite(probabilities_NK).all():
        raise ValueError("a probability is not finite")
    classes = probabilities_NK.shape[1]
    reached_NK = probabilities_NK >= thresholds(probabilities_NK, given_N) - _ROUNDING
    counted_N = reached_NK.any(axis=1)
    likely_N = np.where(reached_NK, probabilities_NK, -1.0).argmax(axis=1)
    joint = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(joint, (given_N[counted_N], likely_N[counted_N]), 1)
    wrong = int(joint.sum() - joint.trace())
    answers_N = probabilities_NK.argmax(axis=1)
    doubted = np.flatnonzero(answers_N != given_N)
    # Stable, so that equal ones stay in the order of the images.
    order = np.argsort(probabilities_NK[doubted, given_N[doubted]], kind="stable")
    suspects = doubted[order][:wrong]
    return LabelNoise(joint, suspects, answers_N[suspects])
