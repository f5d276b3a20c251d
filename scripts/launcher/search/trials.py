"""The trials of a search, whoever ran them: the table of them, the best one, and the file that keeps it.

The file is JSON, and what `train --from-best` reads. Knows neither SageMaker nor how a trial is run.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dogbreed.logs import METRIC_NAMES
from scripts.launcher.arguments import in_words
from scripts.launcher.errors import OutcomeError, SettingError
from scripts.launcher.search.space import Goal
from scripts.launcher.tables import table

FOLDER = Path("build", "tuning")
"""Where the best hyperparameters of a search are written: NAME.json."""

RUNNING = "InProgress"
_COUNTED = frozenset({"Completed", "Stopped"})


@dataclass(frozen=True, slots=True)
class Objective:
    """The metric that the trials are judged by."""

    metric: str
    goal: Goal

    def better(self, one: float, other: float) -> bool:
        """Whether the first value is the better one."""
        return one > other if self.goal == "maximise" else one < other


@dataclass(frozen=True, slots=True)
class Trial:
    """One job of a search.

    Attributes:
        name: of its job.
        status: `InProgress`, `Completed`, `Stopped` (early, by the search), `Failed`, as SageMaker has them.
        value: of the objective, None before there is one.
        hyperparameters: those that are searched, as text.
        seconds: of training; None where nobody knows.
        billed_seconds: of all instances together; None where nothing is billed.
        reason: why it failed.
    """

    name: str
    status: str
    value: float | None
    hyperparameters: Mapping[str, str]
    seconds: float | None = None
    billed_seconds: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Best:
    """The best hyperparameters of a search, and where they come from.

    Attributes:
        search: name of the tuning job or study.
        trial: name of the job that had them.
        metric: the objective.
        value: that the trial reached.
        hyperparameters: all that were given to the trial, as text.
    """

    search: str
    trial: str
    metric: str
    value: float
    hyperparameters: Mapping[str, str]


def objective(metric: str) -> Objective:
    """The objective of a name: losses are minimised, accuracies maximised. Raises `SettingError` for other names."""
    if metric not in METRIC_NAMES:
        raise SettingError(f"--objective {metric}: no line of a job prints it; give one of " + ", ".join(METRIC_NAMES))
    return Objective(metric, "minimise" if metric.endswith("_loss") else "maximise")


def ranked(trials: Sequence[Trial], objective: Objective) -> list[Trial]:
    """The trials that count, best first."""
    counted = [one for one in trials if one.status in _COUNTED and one.value is not None and math.isfinite(one.value)]
    return sorted(counted, key=lambda one: one.value or 0.0, reverse=objective.goal == "maximise")


def as_table(trials: Sequence[Trial], objective: Objective) -> str:
    """All trials for people, the best first, then those without a value."""
    best = ranked(trials, objective)
    rest = [one for one in trials if one not in best]
    names = sorted({name for one in trials for name in one.hyperparameters})
    return table(
        ["trial", "status", objective.metric, *names, "took", "billed"],
        [
            [
                one.name,
                one.status,
                "-" if one.value is None else f"{one.value:.6g}",
                *(short(one.hyperparameters.get(name, "-")) for name in names),
                "-" if one.seconds is None else in_words(one.seconds),
                "-" if one.billed_seconds is None else f"{one.billed_seconds:.0f} s",
            ]
            for one in [*best, *rest]
        ],
    )


def failures(trials: Sequence[Trial]) -> list[str]:
    """A line for each trial that failed."""
    return [f"{one.name} failed: {one.reason or 'without a reason; see its log'}" for one in trials if _failed(one)]


def raise_without_result(name: str, trials: Sequence[Trial], objective: Objective) -> None:
    """Raises `OutcomeError` where no trial has a value, with the commonest reason."""
    if ranked(trials, objective):
        return
    failed = [one for one in trials if _failed(one)]
    if not failed:
        raise OutcomeError(f"{name}: none of its {len(trials)} trials has a value of {objective.metric}")
    # A reason may name the trial, by its folder say, and be that of all nevertheless.
    reasons = [one.reason.replace(one.name, "") for one in failed]
    ((commonest, count),) = Counter(reasons).most_common(1)
    reason = failed[reasons.index(commonest)].reason or "without a reason"
    which = f"all {len(trials)} trials of {name} failed" if len(failed) == len(trials) else f"{name} has no result"
    raise OutcomeError(f"{which}, {count} of them with: {reason}")


def spoken(best: Best) -> str:
    """The best in one line."""
    values = " ".join(f"{name}={value}" for name, value in best.hyperparameters.items())
    return f"best: {best.metric}={best.value:.6g} of {best.trial} with {values}"


def write(best: Best, file: Path) -> None:
    """Writes the file that `train --from-best` reads."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(best), indent=2) + "\n", encoding="utf-8")


def read(file: Path) -> Best:
    """Reads it again; raises `SettingError` for what is no such file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SettingError(f"{file} cannot be read as the best of a search ({error}); give a file of `tune`") from error
    names = [one.name for one in fields(Best)]
    # A search inside one job writes the same, and all that it tried.
    if not isinstance(found, dict) or set(names) != found.keys() - {"trials"}:
        held = ", ".join([*found][:6]) or "nothing" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise SettingError(
            f"{file} cannot be read as the best of a search: it holds {held} in the place of {', '.join(names)}; "
            f"give a file of `tune`"
        )
    best = Best(**{name: found[name] for name in names})
    if not isinstance(best.hyperparameters, dict) or not all(isinstance(one, str) for one in _texts(best)):
        raise SettingError(f"{file}: its hyperparameters are not names with texts; give a file that `tune` wrote")
    return best


def _texts(best: Best) -> list[object]:
    return [*best.hyperparameters.keys(), *best.hyperparameters.values()]


def _failed(trial: Trial) -> bool:
    return trial.status == "Failed"


def short(value: str) -> str:
    """A searched number has seventeen digits; four tell trials apart."""
    try:
        number = float(value)
    except ValueError:
        return value
    return value if len(value) <= 6 else f"{number:.4g}"
