"""What a rule concludes about a job, and the JSON layout in which AWS writes it.

Knows neither rules nor tensors nor the page that shows verdicts. The words are those of SageMaker Debugger, so that
what was written about its rules can be looked up; the evidence and the recommendation are what Debugger never gave.

Source: AWS API reference, DebugRuleEvaluationStatus; awslabs/sagemaker-debugger 1.0.34, smdebug/rules/rule.py, for the
keys of a rule's report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

Parameter = float | int | str | bool | None


class Status(Enum):
    """How a rule ended. The values are AWS's words."""

    NO_ISSUES_FOUND = "NoIssuesFound"
    ISSUES_FOUND = "IssuesFound"
    NOT_ENOUGH_DATA = "NotEnoughData"
    """The rule needs more than the job saved, and says what. AWS writes Error here, which reads like a bad model."""
    ERROR = "Error"
    """The rule itself failed. It says nothing of the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One rule's conclusion.

    Attributes:
        rule: AWS's name of the rule.
        status: how it ended.
        evidence: one or two sentences with step, value and threshold, or with what is missing.
        recommendation: a sentence that a person can act on, or empty.
        parameters: name -> value with which the rule was evaluated.
        violations: how many of the datapoints broke the rule.
        datapoints: how many comparisons were made.
        details: further figures, for programs: plain JSON values.
    """

    rule: str
    status: Status
    evidence: str
    recommendation: str
    parameters: Mapping[str, Parameter]
    violations: int
    datapoints: int
    details: Mapping[str, object] = field(default_factory=dict)


def to_document(verdict: Verdict) -> dict[str, object]:
    """A verdict as JSON: the keys of AWS's report of a rule first, then ours.

    `RuleTriggered` counts in AWS's report how often the rule was invoked and fired; a verdict is one invocation.
    """
    return {
        "RuleTriggered": int(verdict.status is Status.ISSUES_FOUND),
        "Violations": verdict.violations,
        "Datapoints": verdict.datapoints,
        "RuleParameters": "\n".join(f"{name}:{value}" for name, value in verdict.parameters.items()),
        "Details": dict(verdict.details),
        "Rule": verdict.rule,
        "Status": verdict.status.value,
        "Evidence": verdict.evidence,
        "Recommendation": verdict.recommendation,
    }
