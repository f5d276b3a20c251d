"""A rule of the image as a rule of smdebug: run by its `invoke_rule`, on what its reader finds in a job's files."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from smdebug import modes
from smdebug.exceptions import RuleEvaluationConditionMet
from smdebug.rules.rule import Rule as SmdebugRule
from smdebug.rules.rule_invoker import invoke_rule
from smdebug.trials import create_trial

from dogbreed.insight.evidence import Answers, Evidence, Losses, Point, Reading
from dogbreed.insight.reductions import EXTRA, PLACES, UNKNOWN
from dogbreed.insight.rules.common import Need, Rule
from dogbreed.insight.verdicts import Status

COLLECTIONS = {
    Need.LOSSES: ("losses",),
    Need.GRADIENTS: ("gradients",),
    Need.WEIGHTS: ("weights",),
    Need.RELU_INPUTS: ("relu_input",),
    Need.RELU_OUTPUTS: ("relu_output",),
    Need.BOUNDED_INPUTS: ("tanh_input", "sigmoid_input"),
    Need.ANSWERS: ("labels", "predictions"),
}


class Declared(SmdebugRule):  # type: ignore[misc]
    """Requires at each step the tensors that a rule declares to need, and judges with it at the last one.

    Args:
        trial: of a job's folder.
        ours: the rule.
    """

    def __init__(self, trial: Any, ours: Rule) -> None:
        super().__init__(trial, "")
        self.ours = ours
        self.last = max(trial.steps())
        names = [name for need in ours.needs for name in COLLECTIONS.get(need, ())]
        saved = trial.collections()
        # What stands beside a tensor has its name in its own, and is no member.
        self.members = {
            name: {one for one in trial.tensor_names(collection=name) if not one.startswith(("insight/", "units/"))}
            for name in names
            if name in saved
        }
        self.losses: list[Point] = []
        self.passes: dict[int, list[float]] = defaultdict(list)
        self.readings: dict[str, dict[str, list[Reading]]] = defaultdict(lambda: defaultdict(list))
        self.train_labels: list[Any] = []
        self.labels: dict[str, Any] = {}
        self.evaluated = 0

    def set_required_tensors(self, step: int) -> None:
        """What of the declared collections is saved at this step.

        smdebug can require no tensor that is saved as reductions alone: there it is what stands beside it.
        """
        here = set(self.base_trial.tensor_names(step=step))
        for collection, members in self.members.items():
            whole = collection in ("losses", "labels", "predictions")
            for name in members & here:
                for one in {name} if whole else {f"insight/{name}", f"units/{name}"} & here:
                    self.req_tensors.add(one, [step])

    def invoke_at_step(self, step: int) -> bool:
        """Gathers; at the last step says whether the rule has found an issue."""
        training = self.base_trial.mode(step) == modes.TRAIN
        mode_step = self.base_trial.mode_step(step)
        required = set(self.req_tensors.get_names())
        for collection, members in self.members.items():
            for name in sorted(one for one in members if {one, f"insight/{one}"} & required):
                tensor = self.base_trial.tensor(name)
                if collection == "losses":
                    if "_output_" in name:
                        value = float(tensor.value(step))
                        if training:
                            self.losses.append(Point(mode_step, value))
                        else:
                            self.passes[step - mode_step].append(value)
                elif collection in ("labels", "predictions"):
                    if training:
                        self.train_labels.append(tensor.value(step))
                    else:
                        self.labels[collection] = tensor.value(step)
                        self.evaluated += len(tensor.value(step)) * (collection == "labels")
                else:
                    self.readings[collection][name].append(self.reading(name, step, mode_step, required))
        return step == self.last and self.ours.judge(self.evidence()).status is Status.ISSUES_FOUND

    def reading(self, name: str, step: int, mode_step: int, required: set[str]) -> Reading:
        """The statistics of a tensor at a step."""
        tensor = self.base_trial.tensor(name)
        values = {
            f"abs_{reduction}" if absolute else reduction: float(tensor.reduction_value(step, reduction, abs=absolute))
            for reduction, absolute in PLACES
        }
        extra = self.base_trial.tensor(f"insight/{name}").value(step)
        values |= {one: float(value) for one, value in zip(EXTRA, extra, strict=True) if value != UNKNOWN}
        units = self.base_trial.tensor(f"units/{name}").value(step) if f"units/{name}" in required else None
        return Reading(mode_step, values, units)

    def evidence(self) -> Evidence:
        """What was gathered."""
        none = np.zeros(0, dtype=np.int64)
        return Evidence(
            losses=Losses(
                tuple(self.losses),
                tuple(Point(before, sum(values) / len(values)) for before, values in self.passes.items()),
            ),
            tensors={
                collection: {name: tuple(readings) for name, readings in named.items()}
                for collection, named in self.readings.items()
            },
            answers=Answers(
                train_labels=np.concatenate(self.train_labels) if self.train_labels else none,
                labels=self.labels.get("labels", none),
                predictions=self.labels.get("predictions", none),
                evaluated=self.evaluated,
            ),
        )


def fires(folder: Path, ours: Rule) -> tuple[bool, Declared]:
    """Whether smdebug's `invoke_rule` says that the rule's condition was met on a job's folder."""
    trial = create_trial(str(folder))
    rule = Declared(trial, ours)
    try:
        invoke_rule(rule, end_step=rule.last + 1, raise_eval_cond=True)
    except RuleEvaluationConditionMet:
        return True, rule
    return False, rule
