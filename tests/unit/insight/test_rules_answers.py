from dataclasses import replace

import pytest
from tests.unit.insight.evidence_made import answers

from dogbreed.insight.evidence import Evidence
from dogbreed.insight.rules.answers import ClassImbalance, Confusion
from dogbreed.insight.verdicts import Status

TEN = list(range(10)) * 20


@pytest.mark.parametrize(
    ("rule", "sick", "told", "well"),
    [
        # The rule's public test: 990 of one class and 10 of the other fire.
        (
            ClassImbalance(),
            answers(train=[0] * 990 + [1] * 10),
            "class 0 was seen 990 times and class 1 10 times, a ratio of 99 (limit 10)",
            answers(train=[0] * 900 + [1] * 100),
        ),
        (
            ClassImbalance(samples=100),
            answers(labels=[0] * 50 + [1] * 50, predictions=[0] * 50 + [0] * 36 + [1] * 14),
            "class 1 was answered wrong in 36 of 50 images, 72 % (limit 70 %)",
            answers(labels=[0] * 50 + [1] * 50, predictions=[0] * 50 + [0] * 34 + [1] * 16),
        ),
        # The rule's public tests: an identity of 10 classes does not fire, and one swapped class does.
        (
            Confusion(),
            answers(labels=TEN, predictions=[{8: 9, 9: 8}.get(one, one) for one in TEN]),
            "20 images are of class 8, and 0 of them were recognised",
            answers(labels=TEN, predictions=TEN),
        ),
    ],
)
def test_a_rule_fires_on_its_case_with_evidence_and_not_on_the_other(rule, sick, told, well):
    verdict = rule.judge(sick)
    assert verdict.status is Status.ISSUES_FOUND
    assert told in verdict.evidence
    assert verdict.recommendation
    assert rule.judge(well).status is Status.NO_ISSUES_FOUND


@pytest.mark.parametrize(
    ("rule", "missing"),
    [(ClassImbalance(), "0 labels in training and 0 in validation; 500"), (Confusion(), "No whole")],
)
def test_a_rule_without_labels_says_so(rule, missing):
    verdict = rule.judge(Evidence(missing={"answers": "the hook failed."}))
    assert verdict.status is Status.NOT_ENOUGH_DATA
    assert missing in verdict.evidence
    assert "the hook failed" in verdict.evidence


def test_classes_are_named_where_names_are_known():
    evidence = replace(answers(train=[0] * 990 + [1] * 10), labels=("Beagle", "Boxer"))
    verdict = ClassImbalance().judge(evidence)
    assert "In training Beagle was seen 990 times and Boxer 10 times" in verdict.evidence
