import json

import pytest

from dogbreed.insight.verdicts import Status, Verdict, to_document


def make_verdict(status=Status.ISSUES_FOUND):
    return Verdict(
        rule="Overfit",
        status=status,
        evidence="At step 40 it was so.",
        recommendation="Do this.",
        parameters={"start_step": 0, "ratio_threshold": 0.1, "only_nan": False},
        violations=2,
        datapoints=5,
    )


def test_the_words_are_those_of_aws():
    assert [status.value for status in Status] == ["NoIssuesFound", "IssuesFound", "NotEnoughData", "Error"]


def test_a_document_has_the_keys_of_aws_and_ours():
    assert json.loads(json.dumps(to_document(make_verdict()))) == {
        "RuleTriggered": 1,
        "Violations": 2,
        "Datapoints": 5,
        "RuleParameters": "start_step:0\nratio_threshold:0.1\nonly_nan:False",
        "Details": {},
        "Rule": "Overfit",
        "Status": "IssuesFound",
        "Evidence": "At step 40 it was so.",
        "Recommendation": "Do this.",
    }


@pytest.mark.parametrize("status", [Status.NO_ISSUES_FOUND, Status.NOT_ENOUGH_DATA, Status.ERROR])
def test_only_a_rule_that_found_issues_is_triggered(status):
    assert to_document(make_verdict(status))["RuleTriggered"] == 0
