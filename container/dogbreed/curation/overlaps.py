"""Classes that could be merged: pairs that a model cannot tell apart in either direction.

Of a pair of classes, each of their images has to choose between these two alone. The error of that choice, averaged
over both classes, is 0 for classes that are told apart and one half for those that are one and the same. Probabilities
must come from a model that has not learned from the image. Knows numbers only.

Legend: N images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dogbreed.statistics import Interval, wilson

MIN_IMAGES = 10
"""Of each class; fewer say nothing about how it is told from others."""

TOSS = 0.5
"""The error of a coin."""

LEAST_ERROR = 0.2
"""In both directions, for a pair to be told at all: one image of five."""

LEAST_TO_MERGE = 1 / 3
"""Of few images the interval is wide, and holds one half also where most are told apart."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two classes that are taken for each other.

    Attributes:
        first: class index.
        second: class index, greater.
        images: of each.
        wrong: images of the first that look more like the second, and the other way round.
        error: the mean of both shares, in [0, 1].
        interval: of it.
        inseparable: the error is a third or more and its interval holds one half: nothing shows that they are two.
        accuracy: of all N images, now.
        accuracy_merged: the same if the two were one class.
    """

    first: int
    second: int
    images: tuple[int, int]
    wrong: tuple[int, int]
    error: float
    interval: Interval
    inseparable: bool
    accuracy: float
    accuracy_merged: float


def find(probabilities_NK: NDArray[np.floating], given_N: NDArray[np.integer]) -> list[Overlap]:
    """The pairs of classes that are taken for each other both ways, the worst first.

    Args:
        probabilities_NK: out of sample.
        given_N: class indices.
    """
    classes = probabilities_NK.shape[1]
    answers_N = probabilities_NK.argmax(axis=1)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (given_N, answers_N), 1)
    right = int(confusion.trace())
    found = []
    # Classes that are taken for each other are confused at least once each way; of thousands of classes few pairs are.
    for first, second in np.argwhere(np.triu((confusion > 0) & (confusion.T > 0), 1)).tolist():
        shares, images, wrong = [], [], []
        for own, other in ((first, second), (second, first)):
            rows = probabilities_NK[given_N == own]
            images.append(len(rows))
            wrong.append(int((rows[:, other] > rows[:, own]).sum()))
            shares.append(wrong[-1] / len(rows))
        if min(images) < MIN_IMAGES or min(shares) < LEAST_ERROR:
            continue
        error = (shares[0] + shares[1]) / 2
        # As many trials as the mean of two shares is worth: those of the smaller class tell less.
        trials = round(4 / (1 / images[0] + 1 / images[1]))
        interval = wilson(round(error * trials), trials)
        merged = right + int(confusion[first, second] + confusion[second, first])
        found.append(
            Overlap(
                first=first,
                second=second,
                images=(images[0], images[1]),
                wrong=(wrong[0], wrong[1]),
                error=error,
                interval=interval,
                inseparable=error >= LEAST_TO_MERGE and interval.high >= TOSS,
                accuracy=right / len(given_N),
                accuracy_merged=merged / len(given_N),
            )
        )
    return sorted(found, key=lambda one: (-one.error, one.first, one.second))
