"""Which hyperparameters a search's result depended on, by Optuna's evaluator, for searches of any origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dogbreed.hyperparameters import SearchRange
from scripts.launcher.search.space import is_whole, text
from scripts.launcher.search.trials import Objective, Trial, ranked

if TYPE_CHECKING:
    import optuna

# With fewer there is nothing to compare.
_FEWEST = 4


def importances(trials: Sequence[Trial], ranges: Mapping[str, SearchRange], objective: Objective) -> dict[str, float]:
    """Share of each hyperparameter, the most important first; shares add up to 1.

    A study is made of the trials anew, so that trials of SageMaker are judged like local ones: by PED-ANOVA (Watanabe
    et al. 2023), which asks how much the best tenth's values differ from all trials'.

    Returns:
        Empty without Optuna, with fewer than four trials that count, and where all reached the same.
    """
    counted = [one for one in ranked(trials, objective) if set(ranges) <= set(one.hyperparameters)]
    if len(counted) < _FEWEST or len({one.value for one in counted}) == 1 or not ranges:
        return {}
    try:
        import optuna
    except ImportError:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {name: _distribution(optuna, name, one) for name, one in ranges.items()}
    study = optuna.create_study(direction="maximize" if objective.goal == "maximise" else "minimize")
    for one in counted:
        params = {name: _value(name, ranges[name], one.hyperparameters[name]) for name in ranges}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=one.value))
    try:
        found: dict[str, float] = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    except (RuntimeError, ValueError):  # too few trials differ for what it asks
        return {}
    return dict(found)


def _distribution(library: Any, name: str, one: SearchRange) -> optuna.distributions.BaseDistribution:  # noqa: ANN401  a module
    found: optuna.distributions.BaseDistribution
    if one.choices:
        found = library.distributions.CategoricalDistribution([text(choice) for choice in one.choices])
    elif is_whole(name):
        found = library.distributions.IntDistribution(int(one.low or 0), int(one.high or 0), log=one.scale == "log")
    else:
        found = library.distributions.FloatDistribution(one.low or 0.0, one.high or 0.0, log=one.scale == "log")
    return found


def _value(name: str, one: SearchRange, given: str) -> Any:  # noqa: ANN401  what the distribution takes
    if one.choices:
        return given
    low, high = one.low or 0.0, one.high or 0.0
    inside = min(high, max(low, float(given)))
    return int(inside) if is_whole(name) else inside
