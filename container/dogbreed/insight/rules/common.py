"""What every rule has: a name and parameters that are AWS's, what it needs, and a verdict in words.

A rule is a frozen dataclass: its name is the rule's name, its fields are the parameters with their defaults. `judge` is
pure. Where the evidence does not suffice the verdict is NotEnoughData and says which tensors, mode or steps are
missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from typing import Any, ClassVar, Protocol

from dogbreed.insight.evidence import Evidence, Readings
from dogbreed.insight.verdicts import Parameter, Status, Verdict


class Need(Enum):
    """What must be gathered for a rule."""

    LOSSES = "losses"
    GRADIENTS = "gradients"
    WEIGHTS = "weights"
    RELU_INPUTS = "relu_input"
    RELU_OUTPUTS = "relu_output"
    BOUNDED_INPUTS = "inputs of Tanh and Sigmoid"
    FIRST_STEPS = "first steps"
    """Gradients at each of the first steps, see `PoorWeightInitialization`."""
    ANSWERS = "labels and predictions"
    SYSTEM = "system metrics"
    TIMES = "step times"


class Rule(Protocol):
    """Something that judges a job. Implementations are frozen dataclasses."""

    needs: ClassVar[frozenset[Need]]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def judge(self, evidence: Evidence) -> Verdict:
        """Never raises for want of data: that is the status NotEnoughData, with what is missing."""


def verdict(
    rule: Rule,
    status: Status,
    *,
    evidence: str,
    recommendation: str = "",
    violations: int = 0,
    datapoints: int = 0,
    details: Mapping[str, object] | None = None,
) -> Verdict:
    """A verdict of this rule, with its parameters."""
    parameters: dict[str, Parameter] = asdict(rule)
    return Verdict(
        rule=type(rule).__name__,
        status=status,
        evidence=evidence,
        recommendation=recommendation,
        parameters=parameters,
        violations=violations,
        datapoints=datapoints,
        details=details or {},
    )


def not_enough(rule: Rule, missing: str, recommendation: str = "", *, datapoints: int = 0) -> Verdict:
    """The verdict that something is missing, said in `missing`."""
    return verdict(rule, Status.NOT_ENOUGH_DATA, evidence=missing, recommendation=recommendation, datapoints=datapoints)


def no_tensors(evidence: Evidence, collection: str, what: str) -> str:
    """Says that nothing of a collection was saved, and why where that is known."""
    reason = evidence.missing.get(collection)
    return f"No {what} were saved" + (f": {reason}" if reason else ".")


def select(evidence: Evidence, collection_names: str | None, tensor_regex: str | None) -> dict[str, Readings]:
    """Tensors of the named collections (separated by blanks or `+`), and those whose name matches; without either, all.

    The union of both, as on AWS's page.
    """
    names = re.split(r"[\s+]+", collection_names.strip()) if collection_names else []
    chosen: dict[str, Readings] = {}
    for collection, tensors in evidence.tensors.items():
        for name, readings in tensors.items():
            matches = tensor_regex is not None and re.search(tensor_regex, name) is not None
            if collection in names or matches or not (names or tensor_regex):
                chosen[name] = readings
    return chosen


def times(number: int, noun: str) -> str:
    """`1 step`, `2 steps`, `2 losses`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def listed(names: list[str], limit: int = 3) -> str:
    """The first few of a list, and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
