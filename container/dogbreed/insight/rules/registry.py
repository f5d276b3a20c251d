"""Every rule by name, and the text in which a user chooses rules and their parameters.

    rules=Overfit,Overtraining:patience_validation=3;patience_train=2,AllZero:tensor_regex=fc

Rules are separated by commas, a rule's parameters follow a colon and are separated by semicolons; neither separator can
be part of a value.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from typing import Any

from dogbreed.errors import HyperparameterError
from dogbreed.insight.evidence import Evidence
from dogbreed.insight.rules import answers, bounds, losses, machine, tensors
from dogbreed.insight.rules.common import Need, Rule, verdict
from dogbreed.insight.verdicts import Status, Verdict

RULES: Mapping[str, type[Any]] = {
    rule.__name__: rule
    for rule in (
        losses.LossNotDecreasing,
        losses.Overfit,
        losses.Overtraining,
        tensors.ExplodingTensor,
        tensors.VanishingGradient,
        tensors.PoorWeightInitialization,
        tensors.DeadRelu,
        tensors.SaturatedActivation,
        tensors.WeightUpdateRatio,
        tensors.AllZero,
        tensors.UnchangedTensor,
        tensors.TensorVariance,
        answers.ClassImbalance,
        answers.Confusion,
        machine.StalledTraining,
        machine.LowGPUUtilization,
        machine.CPUBottleneck,
        machine.IOBottleneck,
        machine.BatchSize,
        machine.GPUMemoryIncrease,
        machine.LoadBalancing,
        machine.Dataloader,
        machine.MaxInitializationTime,
        machine.StepOutlier,
        machine.OverallSystemUsage,
        machine.OverallFrameworkMetrics,
    )
}
"""Name -> rule, in the order of a report."""

_ALIASES = {"StalledTrainingRule": "StalledTraining"}
_ON_GPUS = frozenset(
    {
        "LowGPUUtilization",
        "CPUBottleneck",
        "IOBottleneck",
        "BatchSize",
        "GPUMemoryIncrease",
        "LoadBalancing",
        "Dataloader",
    }
)
_ON_REQUEST = frozenset({"SaturatedActivation", "AllZero", "UnchangedTensor", "TensorVariance", "Confusion"})


def default_rules(*, pretrained: bool, gpus: int) -> tuple[Rule, ...]:
    """The rules that apply to a job, with AWS's parameters.

    Left out are those that need a selection of tensors or judge by a taste of their own (`SaturatedActivation`,
    `AllZero`, `UnchangedTensor`, `TensorVariance`, `Confusion`), `PoorWeightInitialization` where the weights are not
    initial but learnt, `LoadBalancing` with fewer than two GPUs, and without a GPU everything that judges one.
    """
    left_out = set(_ON_REQUEST)
    if pretrained:
        left_out.add("PoorWeightInitialization")
    if gpus < 2:
        left_out.add("LoadBalancing")
    if not gpus:
        left_out |= _ON_GPUS
    return tuple(rule() for name, rule in RULES.items() if name not in left_out)


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Reads the rules that a user chose, see the module.

    Raises:
        HyperparameterError: names every unknown rule or parameter and every value that cannot be read or is not
            allowed, and what is known or allowed.
    """
    problems: list[str] = []
    rules: dict[str, Rule] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, given = part.partition(":")
        name = _ALIASES.get(name.strip(), name.strip())
        if name not in RULES:
            problems.append(f"rule {name!r} is unknown; {_hint(name, list(RULES))}")
        elif name in rules:
            problems.append(f"rule {name} is given twice")
        else:
            try:
                rules[name] = _make(name, given)
            except ValueError as error:
                problems.append(str(error))
    if problems:
        raise HyperparameterError("rules: " + "; ".join(problems))
    return tuple(rules.values())


def parse_names(text: str, rules: Sequence[Rule]) -> tuple[str, ...]:
    """Reads the names of rules among those that are on, as `stop-on` gives them.

    Raises:
        HyperparameterError: a name is not among them.
    """
    known = [name_of(rule) for rule in rules]
    names = [_ALIASES.get(part.strip(), part.strip()) for part in text.split(",") if part.strip()]
    wrong = [name for name in names if name not in known]
    if wrong:
        raise HyperparameterError(
            f"stop-on names {', '.join(wrong)}, which is not among the rules of this job: {', '.join(known)}"
        )
    return tuple(dict.fromkeys(names))


def name_of(rule: Rule) -> str:
    """AWS's name of a rule."""
    return type(rule).__name__


def evaluate(rules: Sequence[Rule], evidence: Evidence) -> tuple[Verdict, ...]:
    """One verdict per rule, in their order. A rule that fails itself has the status Error and says how."""
    return tuple(_evaluate(rule, evidence) for rule in rules)


def needs_of(rules: Sequence[Rule]) -> frozenset[Need]:
    """Everything that the rules need together."""
    return frozenset[Need]().union(*(rule.needs for rule in rules))


def _evaluate(rule: Rule, evidence: Evidence) -> Verdict:
    try:
        return rule.judge(evidence)
    except Exception as error:  # a rule's own fault must cost no model and no other verdict
        return verdict(
            rule,
            Status.ERROR,
            evidence=f"The rule itself failed: {type(error).__name__}: {error}. This says nothing of the model.",
            recommendation="Please report this with the job's record.json.",
        )


def _make(name: str, given: str) -> Rule:
    rule = RULES[name]
    kinds = typing.get_type_hints(rule)
    known = [one.name for one in fields(rule)]
    values: dict[str, object] = {}
    for part in filter(None, (piece.strip() for piece in given.split(";"))):
        parameter, equals, text = (piece.strip() for piece in part.partition("="))
        if parameter not in known:
            raise ValueError(f"{name} has no parameter {parameter!r}; {_hint(parameter, known)}")
        if not equals:
            raise ValueError(f"{name}:{parameter} has no value; write {parameter}=VALUE")
        try:
            values[parameter] = _cast(kinds[parameter], text)
        except ValueError:
            raise ValueError(f"{name}:{parameter}={text!r} is not {_words(kinds[parameter])}") from None
    made = typing.cast(Rule, rule(**values))
    wrong = "; ".join(bounds.problems(name, asdict(made)))
    if wrong:
        raise ValueError(wrong)
    return made


def _alternatives(kind: object) -> tuple[object, ...]:
    """The types or texts that a parameter may have."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return tuple(one for part in typing.get_args(kind) for one in _alternatives(part))
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else (kind,)


def _cast(kind: object, text: str) -> object:
    allowed = _alternatives(kind)
    if type(None) in allowed and text in ("", "None", "none"):
        return None
    if bool in allowed:
        return (
            {"true": True, "1": True, "false": False, "0": False}[text.lower()]
            if text.lower() in _BOOLEANS
            else _bad(text)
        )
    if int in allowed:
        return int(text)
    if float in allowed:
        return float(text)
    if str in allowed or text in allowed:
        return text
    return _bad(text)


_BOOLEANS = ("true", "1", "false", "0")


def _bad(text: str) -> object:
    raise ValueError(text)


def _words(kind: object) -> str:
    allowed = _alternatives(kind)
    if bool in allowed:
        return "true or false"
    for one, words in ((int, "a whole number"), (float, "a number"), (str, "a text")):
        if one in allowed:
            return words
    return "one of " + ", ".join("None" if one is type(None) else repr(one) for one in allowed)


def _hint(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]}? " if close else "") + (
        f"known are {', '.join(known)}" if known else "it has none"
    )
