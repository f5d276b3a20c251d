"""Rules on labels and predictions: is the data set fair, and which classes does the model mix up?

Pure: class indices in, one verdict out. Parameters and defaults are those of AWS's page `debugger-built-in-rules`.
Parameters that there name tensors by a regex are left out: labels and predictions come from the criterion itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dogbreed.insight.evidence import Evidence
from dogbreed.insight.rules.common import Need, not_enough, times, verdict
from dogbreed.insight.verdicts import Status, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassImbalance:
    """Fires when one class is far more frequent than another, or when a class is mostly answered wrong.

    The page: after at least `samples` labels, the largest count divided by the smallest exceeds `threshold_imbalance`,
    or the share of a class's wrong answers exceeds `threshold_misprediction`. It does not say which labels. Here the
    imbalance is that of the labels seen in training, which is what skews a model; the wrong answers are those of the
    last validation pass, because those of training are of weights long gone.

    Attributes:
        threshold_imbalance: largest ratio between the counts of two classes.
        threshold_misprediction: largest share of wrong answers of a class, in [0, 1].
        samples: labels that must have been seen, of either kind.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.ANSWERS})

    threshold_imbalance: float = 10.0
    threshold_misprediction: float = 0.7
    samples: int = 500

    def judge(self, evidence: Evidence) -> Verdict:
        """Counts the labels, then the wrong answers."""
        answers = evidence.answers
        seen = len(answers.train_labels)
        if max(seen, answers.evaluated) < self.samples:
            reason = f" {evidence.missing['answers']}" if "answers" in evidence.missing else ""
            return not_enough(
                self,
                f"The job saw {times(seen, 'label')} in training and {answers.evaluated} in validation; {self.samples} "
                f"of a kind are needed.{reason}",
                "Train for more epochs, or lower the number: ClassImbalance:samples=100.",
            )
        signs = [
            sign
            for sign in (
                self._imbalance(evidence) if seen >= self.samples else None,
                self._mistakes(evidence) if answers.evaluated >= self.samples else None,
            )
            if sign is not None
        ]
        broken = [text for fired, text in signs if fired]
        left_out = "" if len(signs) > 1 else f" Only one of the two signs has {self.samples} labels."
        return verdict(
            self,
            Status.ISSUES_FOUND if broken else Status.NO_ISSUES_FOUND,
            evidence=" ".join(broken or [text for _, text in signs]) + left_out,
            recommendation="Collect more images of the rare or confused classes, or leave images of the frequent ones "
            "out; judge the model by the recall of each class rather than by its accuracy."
            if broken
            else "",
            violations=len(broken),
            datapoints=len(signs),
        )

    def _imbalance(self, evidence: Evidence) -> tuple[bool, str]:
        counts = np.bincount(evidence.answers.train_labels)
        present = np.flatnonzero(counts)
        rare, frequent = present[counts[present].argmin()], present[counts[present].argmax()]
        ratio = counts[frequent] / counts[rare]
        return bool(ratio > self.threshold_imbalance), (
            f"In training {_named(evidence, frequent)} was seen {counts[frequent]} times and {_named(evidence, rare)} "
            f"{counts[rare]} times, a ratio of {ratio:.3g} (limit {self.threshold_imbalance:g})."
        )

    def _mistakes(self, evidence: Evidence) -> tuple[bool, str] | None:
        labels, predictions = evidence.answers.labels, evidence.answers.predictions
        if not len(labels):
            return None
        totals = np.bincount(labels)
        wrong = np.bincount(labels[labels != predictions], minlength=len(totals))
        shares = np.divide(wrong, totals, out=np.zeros(len(totals)), where=totals > 0)
        worst = int(shares.argmax())
        return bool(shares[worst] > self.threshold_misprediction), (
            f"In the last validation pass {_named(evidence, worst)} was answered wrong in {wrong[worst]} of "
            f"{times(int(totals[worst]), 'image')}, {shares[worst] * 100:.3g} % (limit "
            f"{self.threshold_misprediction * 100:g} %)."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Fires when a class is recognised too rarely, or taken too often for one other class.

    The page does not fire while `confusion[i][i] / sum_j(confusion[j][j]) >= min_diag` and `confusion[j][i] /
    sum_j(confusion[j][i]) <= max_off_diag`. The first can never hold at 0.9 for two classes or more, and the rule's
    public tests say that a perfect matrix of 10 classes must not fire. So the diagonal is divided by its row here, the
    images of that class, and the other cells by their column, as printed.

    Attributes:
        category_no: number of classes; None counts those that occur.
        min_diag: smallest share of a class's images that must be answered right, in [0, 1].
        max_off_diag: largest share of an answer's uses that may belong to one other class, in [0, 1].
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.ANSWERS})

    category_no: int | None = None
    min_diag: float = 0.9
    max_off_diag: float = 0.1

    def judge(self, evidence: Evidence) -> Verdict:
        """Counts the answers of the last validation pass."""
        labels, predictions = evidence.answers.labels, evidence.answers.predictions
        if not len(labels):
            reason = f" {evidence.missing['answers']}" if "answers" in evidence.missing else ""
            return not_enough(
                self, f"No whole validation pass was seen; its labels and predictions are needed.{reason}"
            )
        classes = max(self.category_no or 0, int(labels.max()) + 1, int(predictions.max()) + 1)
        counts = np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)
        rows, columns = counts.sum(axis=1), counts.sum(axis=0)
        right = np.divide(counts.diagonal(), rows, out=np.ones(classes), where=rows > 0)
        mixed = np.divide(counts, columns, out=np.zeros(counts.shape), where=columns > 0)
        np.fill_diagonal(mixed, 0.0)
        low = np.flatnonzero(right < self.min_diag)
        high = np.argwhere(mixed > self.max_off_diag)
        worst = int(right.argmin())
        true, answer = (int(index) for index in np.unravel_index(mixed.argmax(), mixed.shape))
        told = (
            f"{int(rows[worst])} images are of {_named(evidence, worst)}, and {counts[worst, worst]} of them were "
            f"recognised ({right[worst] * 100:.3g} %, at least {self.min_diag * 100:g} % is expected); of the answers "
            f"{_named(evidence, answer)} {mixed[true, answer] * 100:.3g} % were images of {_named(evidence, true)} "
            f"(at most {self.max_off_diag * 100:g} %)"
        )
        violations = len(low) + len(high)
        return verdict(
            self,
            Status.ISSUES_FOUND if violations else Status.NO_ISSUES_FOUND,
            evidence=f"{told}; {times(len(low), 'class')} below the first limit, {times(len(high), 'pair')} above the "
            f"second."
            if violations
            else f"{told}, the worst of {times(classes, 'class')}.",
            recommendation="Look at the worst confused pairs in the report: mislabelled images, or classes that a "
            "photo can hardly tell apart."
            if violations
            else "",
            violations=violations,
            datapoints=classes + classes * (classes - 1),
        )


def _named(evidence: Evidence, index: int) -> str:
    """A class in words: its name where it is known, else its index."""
    return evidence.labels[index] if index < len(evidence.labels) else f"class {index}"
