"""How sure a measured accuracy is, whether two models differ, and whether probabilities mean what they say.

Pure functions of plain numbers: no files, no torch, no other module of the project.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

CALIBRATION_BINS = 15
"""As in Guo et al. 2017, On Calibration of Modern Neural Networks."""

EXACT_UP_TO = 1000
"""Discordant pairs up to which McNemar's test is exact; beyond, the normal distribution is as good."""

# Two-sided 95% of the standard normal distribution.
_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95% confidence interval, ``low <= high``."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Bin:
    """The answers whose probability lies in (low, high], the first bin with 0 itself.

    Attributes:
        low: lower edge, in [0, 1].
        high: upper edge.
        count: answers in it.
        confidence: their mean probability; NaN without any.
        accuracy: share of them that was right; NaN without any.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class McNemar:
    """What two models make of the same images.

    Attributes:
        only_first: images that only the first answered right.
        only_second: images that only the second answered right.
        p_value: probability of at least so uneven a split, were both equally good.
        exact: by the binomial distribution; else by chi-squared with continuity correction.
    """

    only_first: int
    only_second: int
    p_value: float
    exact: bool


def wilson(right: int, count: int) -> Interval:
    """95% interval of a share (Wilson 1927): honest for few images and near 0 and 1, unlike the textbook's.

    Args:
        right: successes, from 0 to ``count``.
        count: trials; of none nothing is known, and the interval is [0, 1].
    """
    if not 0 <= right <= count:
        raise ValueError(f"{right} successes in {count} trials")
    if count == 0:
        return Interval(0.0, 1.0)
    share, z2 = right / count, _Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    # Exactly 0 and 1 at the ends, where the formula leaves a rounding error.
    return Interval(max(0.0, centre - half) if right else 0.0, min(1.0, centre + half) if right < count else 1.0)


def standard_error(share: float, count: int) -> float:
    """How far chance moves a share in [0, 1] of ``count`` answers: its binomial standard deviation."""
    return math.sqrt(share * (1 - share) / count)


def mcnemar(only_first: int, only_second: int) -> McNemar:
    """McNemar's test (1947) of two classifiers on the same images; the images on which they agree say nothing."""
    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts are not negative: {only_first}, {only_second}")
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    if discordant <= EXACT_UP_TO:
        tail = sum(math.comb(discordant, successes) for successes in range(fewer + 1))
        # Whole numbers as long as possible: 2^1000 is more than a float multiplies safely.
        p_value = min(1.0, 2 * tail / 2**discordant)
        return McNemar(only_first, only_second, p_value, exact=True)
    chi2 = (abs(only_first - only_second) - 1) ** 2 / discordant
    # The survival function of chi-squared with one degree of freedom.
    return McNemar(only_first, only_second, math.erfc(math.sqrt(chi2 / 2)), exact=False)


def paired_difference(only_first: int, only_second: int, count: int) -> Interval:
    """95% interval of (accuracy of the second - accuracy of the first) on the same ``count`` images.

    Agresti and Min 2005, Simple improved confidence intervals for comparing matched proportions: the textbook's
    interval after half an image is added to each of the four cells. Within [-1, 1].
    """
    if count <= 0 or only_first + only_second > count or min(only_first, only_second) < 0:
        raise ValueError(f"{only_first} and {only_second} discordant images of {count}")
    total, first, second = count + 2, only_first + 0.5, only_second + 0.5
    difference = (second - first) / total
    half = _Z95 * math.sqrt((first + second) - (second - first) ** 2 / total) / total
    return Interval(max(-1.0, difference - half), min(1.0, difference + half))


def reliability(probabilities: Sequence[float], right: Sequence[bool], bins: int = CALIBRATION_BINS) -> list[Bin]:
    """Sorts answers into bins of equal width by the probability that the model gave them.

    Args:
        probabilities: of the answers, in [0, 1]; a hair beyond counts as the end.
        right: whether each answer was right.
        bins: how many.
    """
    if len(probabilities) != len(right):
        raise ValueError(f"{len(probabilities)} probabilities and {len(right)} answers")
    counts, sums, hits = [0] * bins, [0.0] * bins, [0] * bins
    for probability, hit in zip(probabilities, right, strict=True):
        place = min(bins - 1, max(0, math.ceil(probability * bins) - 1))
        counts[place] += 1
        sums[place] += probability
        hits[place] += hit
    return [
        Bin(
            place / bins,
            (place + 1) / bins,
            count,
            sums[place] / count if count else math.nan,
            hits[place] / count if count else math.nan,
        )
        for place, count in enumerate(counts)
    ]


def expected_calibration_error(bins: Iterable[Bin]) -> float:
    """Mean distance of probability and accuracy over the bins, weighted by answers, in [0, 1]; NaN without answers."""
    filled = [one for one in bins if one.count]
    total = sum(one.count for one in filled)
    return sum(one.count * abs(one.accuracy - one.confidence) for one in filled) / total if total else math.nan


def brier(log_probabilities: Sequence[float], true: int) -> float:
    """Squared distance of one answer's probabilities from the truth over all classes (Brier 1950), in [0, 2]."""
    return sum((math.exp(value) - (index == true)) ** 2 for index, value in enumerate(log_probabilities))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed (nearest rank); NaN of none."""
    if not 0 < share <= 1:
        raise ValueError(f"a share of {share}")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


@dataclass(frozen=True, slots=True)
class ClassScores:
    """How one class was recognised.

    Attributes:
        support: images of the class.
        predicted: images that were answered with it.
        right: images in both.
    """

    support: int
    predicted: int
    right: int

    @property
    def precision(self) -> float:
        """Share of the answers with this class that were right; NaN when there was none."""
        return self.right / self.predicted if self.predicted else math.nan

    @property
    def recall(self) -> float:
        """Share of the images of this class that were answered right; NaN when there is none."""
        return self.right / self.support if self.support else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of the two; NaN for a class that is neither there nor answered."""
        both = self.support + self.predicted
        return 2 * self.right / both if both else math.nan


def class_scores(confusion: Sequence[Sequence[int]]) -> list[ClassScores]:
    """Scores of every class of a K x K matrix ``confusion[true][predicted]``."""
    predicted = [sum(column) for column in zip(*confusion, strict=True)]
    return [ClassScores(sum(row), predicted[index], row[index]) for index, row in enumerate(confusion)]


def without_nan(value: object) -> object:
    """The value with null for every number that JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return value
