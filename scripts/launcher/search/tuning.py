"""SageMaker's tuning jobs: the request for one, what it is doing, and its trials.

Limits are those of the API model and of the developer guide (AWS docs: automatic-model-tuning-limits). Sleeping is
injected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from dogbreed.hyperparameters import SearchRange, declarations, declared
from scripts.launcher import following
from scripts.launcher.aws import Aws
from scripts.launcher.errors import OutcomeError, ServiceError, SettingError
from scripts.launcher.plan import Call
from scripts.launcher.search import trials as results
from scripts.launcher.search.space import Space, is_whole, most_epochs, text
from scripts.launcher.search.trials import Best, Objective, Trial

STRATEGIES = ("Bayesian", "Random", "Hyperband", "Grid")
WARM_STARTS = ("IdenticalDataAndAlgorithm", "TransferLearning")

ENDED = frozenset({"Completed", "Failed", "Stopped", "DeleteFailed"})
"""Values of HyperParameterTuningJobStatus after which nothing more happens."""

LONGEST_NAME = 32
"""Characters of a tuning job's name."""

_MOST_TRIALS = 750
MOST_RANDOM_TRIALS = 10_000
"""With the strategy Random; with the others fewer."""

_MOST_PARALLEL = 100
_MOST_SEARCHED = 30
_MOST_CHOICES = 30
_MOST_PARENTS = 5
# One epoch of a new head says little of what becomes of it.
_FIRST_RUNG = 2
_POLL_S = 20.0

_GOALS = {"maximise": "Maximize", "minimise": "Minimize"}
_SCALES = {"linear": "Linear", "log": "Logarithmic"}


def configuration(
    space: Space,
    objective: Objective,
    *,
    strategy: str,
    trials: int | None,
    parallel: int,
    early_stopping: Literal["auto", "off"] | None,
    seconds: int | None,
) -> dict[str, Any]:
    """A HyperParameterTuningJobConfig.

    Args:
        space: what is searched.
        objective: what it is judged by.
        strategy: one of `STRATEGIES`.
        trials: jobs at most; None is 20, and every combination for Grid.
        parallel: jobs at a time.
        early_stopping: None is auto where the strategy and the objective allow it.
        seconds: the whole search at most; None is no limit.

    Raises:
        SettingError: they do not go together, or are more than the platform takes.
    """
    count = _count(space, strategy, trials)
    limits = {"MaxParallelTrainingJobs": min(parallel, count)}
    if strategy != "Grid":
        limits["MaxNumberOfTrainingJobs"] = count
    if parallel > _MOST_PARALLEL:
        raise SettingError(f"--parallel {parallel}: SageMaker takes {_MOST_PARALLEL} at most, and 10 without asking")
    if seconds is not None:
        if not 120 <= seconds <= 30 * 86400:
            raise SettingError(f"--stop-after is {seconds} s; SageMaker takes 2m to 30d")
        limits["MaxRuntimeInSeconds"] = seconds
    found: dict[str, Any] = {
        "Strategy": strategy,
        "HyperParameterTuningJobObjective": {"Type": _GOALS[objective.goal], "MetricName": objective.metric},
        "ResourceLimits": limits,
        "ParameterRanges": parameter_ranges(space),
        "TrainingJobEarlyStoppingType": _early_stopping(strategy, objective, early_stopping),
    }
    if strategy == "Hyperband":
        epochs = most_epochs(space)
        if epochs < _FIRST_RUNG:
            raise SettingError(f"Hyperband needs epochs to stop between; epochs={epochs} leaves none, give 2 or more")
        resources = {"MinResource": min(_FIRST_RUNG, epochs - 1), "MaxResource": epochs}
        found["StrategyConfig"] = {"HyperbandStrategyConfig": resources}
    return found


def parameter_ranges(space: Space) -> dict[str, Any]:
    """The space in the shape of ParameterRanges."""
    if len(space.ranges) > _MOST_SEARCHED:
        raise SettingError(f"{len(space.ranges)} hyperparameters are searched; SageMaker takes {_MOST_SEARCHED}")
    found: dict[str, Any] = {}
    for name, one in space.ranges.items():
        if len(one.choices) > _MOST_CHOICES:
            raise SettingError(f"{name} has {len(one.choices)} choices; SageMaker takes {_MOST_CHOICES}")
        if one.choices:
            entry = {"Name": name, "Values": [text(choice) for choice in one.choices]}
            found.setdefault("CategoricalParameterRanges", []).append(entry)
        elif one.low is not None and one.high is not None:
            kind = "IntegerParameterRanges" if is_whole(name) else "ContinuousParameterRanges"
            ends = {"MinValue": text(one.low), "MaxValue": text(one.high)}
            found.setdefault(kind, []).append({"Name": name, **ends, "ScalingType": _SCALES[one.scale]})
    return found


def warm_start(parents: Sequence[str], kind: str, strategy: str) -> dict[str, Any]:
    """A WarmStartConfig; SageMaker has it for Bayesian and Random (AWS docs: automatic-model-tuning-warm-start)."""
    if strategy not in ("Bayesian", "Random"):
        raise SettingError(f"--warm-start is for Bayesian and Random, and the strategy is {strategy}")
    if len(parents) > _MOST_PARENTS:
        raise SettingError(f"--warm-start names {len(parents)} tuning jobs; SageMaker takes {_MOST_PARENTS}")
    return {
        "ParentHyperParameterTuningJobs": [{"HyperParameterTuningJobName": name} for name in parents],
        "WarmStartType": kind,
    }


def checked_name(name: str) -> str:
    """The name, where SageMaker takes it for a tuning job: half as long as for a training job."""
    if len(name) > LONGEST_NAME:
        raise SettingError(f"--name {name}: a tuning job's has {LONGEST_NAME} characters at most, it has {len(name)}")
    return name


def static(space: Space, objective: Objective) -> dict[str, str]:
    """What is the same for every trial; the best epoch is picked by what the search is judged by."""
    if objective.metric in declared("objective").choices and "objective" not in space.ranges:
        return {"objective": objective.metric, **space.fixed}
    return dict(space.fixed)


def combinations(config: Mapping[str, Any]) -> int:
    """How many trials the grid of a HyperParameterTuningJobConfig has."""
    return math.prod(len(one["Values"]) for one in config["ParameterRanges"]["CategoricalParameterRanges"])


def describe(name: str) -> Call:
    """The request for everything that is known of a tuning job, but its trials."""
    return Call("sagemaker", "DescribeHyperParameterTuningJob", {"HyperParameterTuningJobName": name})


def stop(name: str) -> Call:
    """The request that ends a tuning job and its trials."""
    return Call("sagemaker", "StopHyperParameterTuningJob", {"HyperParameterTuningJobName": name})


def objective_of(description: Mapping[str, Any]) -> Objective:
    """What a tuning job is judged by."""
    found = description["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]
    return Objective(found["MetricName"], "maximise" if found["Type"] == "Maximize" else "minimise")


def ranges_of(description: Mapping[str, Any]) -> dict[str, SearchRange]:
    """What a tuning job searches, as `parameter_ranges` wrote it; names that are not ours are left out."""
    config = description["HyperParameterTuningJobConfig"].get("ParameterRanges", {})
    found: dict[str, SearchRange] = {}
    for kind in ("IntegerParameterRanges", "ContinuousParameterRanges"):
        for one in config.get(kind, []):
            scale: Literal["linear", "log"] = "log" if one.get("ScalingType") == "Logarithmic" else "linear"
            found[one["Name"]] = SearchRange(low=float(one["MinValue"]), high=float(one["MaxValue"]), scale=scale)
    for one in config.get("CategoricalParameterRanges", []):
        found[one["Name"]] = SearchRange(choices=tuple(value.strip('"') for value in one["Values"]))
    known = {one.name for one in declarations()}
    return {name: one for name, one in found.items() if name in known}


def fixed_of(description: Mapping[str, Any]) -> dict[str, str]:
    """What was the same for every trial of a tuning job."""
    fixed = description.get("TrainingJobDefinition", {}).get("StaticHyperParameters", {})
    return {name: value for name, value in fixed.items() if not name.startswith("_")}


def trials_of(aws: Aws, name: str) -> list[Trial]:
    """The trials of a tuning job so far, in the order in which they were started."""
    listing = Call(
        "sagemaker",
        "ListTrainingJobsForHyperParameterTuningJob",
        {"HyperParameterTuningJobName": name, "SortBy": "CreationTime", "SortOrder": "Ascending", "MaxResults": 100},
    )
    return [_trial(summary) for page in aws.pages(listing) for summary in page["TrainingJobSummaries"]]


def with_times(aws: Aws, trials: Sequence[Trial]) -> list[Trial]:
    """The trials with what they took and cost; one request for each."""
    return [_timed(aws, one) for one in trials]


def follow(
    aws: Aws, name: str, *, say: Callable[[str], None], sleep: Callable[[float], None]
) -> tuple[dict[str, Any], list[Trial]]:
    """Says what a tuning job does until it has ended.

    Args:
        aws: executes calls.
        name: of the job.
        say: takes one line.
        sleep: takes seconds.

    Returns:
        The last description, and the trials.

    Raises:
        ServiceError: the job cannot be described, for other reasons than a passing one.
    """
    teller = _Teller(say)

    def look() -> tuple[dict[str, Any], list[Trial]] | None:
        description = aws.call(describe(name))
        trials = trials_of(aws, name)
        teller.tell(description, trials)
        return (description, trials) if description["HyperParameterTuningJobStatus"] in ENDED else None

    return following.patiently(look, "search", say=say, sleep=sleep, every_s=_POLL_S)


def goes_on(name: str) -> str:
    """What to say when the watching ends and the search does not."""
    return (
        f"{name} goes on, and goes on costing: `launch.py tune --follow {name}` watches it again, "
        f"`launch.py stop {name}` ends it and its trials"
    )


def best_of(description: Mapping[str, Any], trials: Sequence[Trial] = ()) -> Best:
    """The best hyperparameters so far, with those that were the same for every trial.

    Args:
        description: of the tuning job.
        trials: if known; else what the description names as the best.

    Raises:
        OutcomeError: no trial has a value yet.
    """
    name, objective = description["HyperParameterTuningJobName"], objective_of(description)
    summary = description.get("BestTrainingJob") or {}
    known = results.ranked(trials, objective) or results.ranked([_trial(summary)] if summary else [], objective)
    if not known or known[0].value is None:
        raise OutcomeError(f"{name} has no best trial yet; `launch.py status {name}` tells how it stands")
    best = known[0]
    together = {**fixed_of(description), **best.hyperparameters}
    return Best(name, best.name, objective.metric, known[0].value, together)


def outcome(description: Mapping[str, Any]) -> list[str]:
    """How a tuning job stands, for people."""
    name, status = description["HyperParameterTuningJobName"], description["HyperParameterTuningJobStatus"]
    reason = description.get("FailureReason")
    lines = [f"{name} failed: {reason}" if status == "Failed" and reason else f"{name}: {status}"]
    lines.append(_counted(description))
    return lines


def raise_without_trials(description: Mapping[str, Any], trials: Sequence[Trial]) -> None:
    """Raises `OutcomeError` for a tuning job that ended before its first trial."""
    if not trials:
        raise OutcomeError("; ".join(outcome(description)[:1]) + "; it has no trials")


class _Teller:
    """Says what is new: a line per trial that has started or ended, and one when the counts change."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told: dict[str, str] = {}
        self._counts = ""
        self._best: float | None = None

    def tell(self, description: Mapping[str, Any], trials: Sequence[Trial]) -> None:
        objective = objective_of(description)
        for trial in trials:
            if self._told.get(trial.name) != trial.status:
                self._told[trial.name] = trial.status
                self._say(self._line(trial, objective))
        counts = _counted(description)
        if counts != self._counts:
            self._counts = counts
            self._say(counts)

    def _line(self, trial: Trial, objective: Objective) -> str:
        searched = " ".join(f"{name}={value}" for name, value in trial.hyperparameters.items())
        if trial.status == "Failed":
            return f"{trial.name} failed: {trial.reason or 'SageMaker gives no reason; see its log'} ({searched})"
        line = f"{trial.name} {trial.status}"
        if trial.status != results.RUNNING and trial.value is not None:
            line += f" {objective.metric}={trial.value:.6g}"
            if self._best is None or objective.better(trial.value, self._best):
                self._best = trial.value
                line += ", the best so far"
        return f"{line} ({searched})"


def _counted(description: Mapping[str, Any]) -> str:
    counters = description.get("TrainingJobStatusCounters", {})
    failed = counters.get("NonRetryableError", 0) + counters.get("RetryableError", 0)
    most = description["HyperParameterTuningJobConfig"]["ResourceLimits"].get("MaxNumberOfTrainingJobs")
    completed, stopped, running = (counters.get(status, 0) for status in ("Completed", "Stopped", "InProgress"))
    line = f"trials: {completed} completed, {stopped} stopped early, {failed} failed, {running} running"
    return line + (f", of {most} at most" if most else "")


def _trial(summary: Mapping[str, Any]) -> Trial:
    final = summary.get("FinalHyperParameterTuningJobObjectiveMetric", {})
    tuned = {name: value for name, value in summary.get("TunedHyperParameters", {}).items() if name[:1] != "_"}
    return Trial(
        summary["TrainingJobName"],
        summary["TrainingJobStatus"],
        final.get("Value"),
        {name: value.strip('"') for name, value in tuned.items()},
        reason=summary.get("FailureReason", ""),
    )


def _timed(aws: Aws, trial: Trial) -> Trial:
    try:
        found = aws.call(Call("sagemaker", "DescribeTrainingJob", {"TrainingJobName": trial.name}))
    except ServiceError as error:
        if not error.not_found:
            raise
        return trial
    billed = found.get("BillableTimeInSeconds")
    instances = found.get("ResourceConfig", {}).get("InstanceCount", 1)
    return replace(
        trial,
        seconds=found.get("TrainingTimeInSeconds"),
        billed_seconds=None if billed is None else billed * instances,
        reason=trial.reason or found.get("FailureReason", ""),
    )


def _count(space: Space, strategy: str, trials: int | None) -> int:
    if strategy == "Grid":
        combinations = space.combinations
        if combinations is None:
            name = next(name for name, one in space.ranges.items() if not one.choices)
            raise SettingError(f"Grid tries choices, and {name} is a range; give --choice {name}=VALUE,VALUE,...")
        if trials not in (None, combinations):
            raise SettingError(f"--trials {trials}: Grid tries all {combinations} combinations; leave it out")
        trials = combinations
    count = 20 if trials is None else trials
    most = MOST_RANDOM_TRIALS if strategy == "Random" else _MOST_TRIALS
    if count > most:
        raise SettingError(f"{count} trials: SageMaker takes {most} at most with {strategy}")
    return count


def _early_stopping(strategy: str, objective: Objective, asked: str | None) -> str:
    once = objective.metric.startswith("test_")
    if strategy == "Hyperband":
        if asked == "auto":
            raise SettingError(
                "--early-stopping auto: Hyperband stops trials by itself, and SageMaker refuses both; leave it out"
            )
        if once:
            raise SettingError(f"Hyperband judges trials by their epochs, and {objective.metric} is printed at the end")
        return "Off"
    if asked == "auto" and once:
        raise SettingError(
            f"--early-stopping auto: {objective.metric} is printed at the end, when there is nothing left to stop; "
            f"give an objective of the validation images"
        )
    return "Off" if asked == "off" or once else "Auto"
