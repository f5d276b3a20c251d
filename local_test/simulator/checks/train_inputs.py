"""The shapes in which a job's files come; none of them may change what the job does."""

from __future__ import annotations

from local_test.simulator.checks import pages
from local_test.simulator.checks.check import Outcome, check, judge
from local_test.simulator.checks.context import Context
from local_test.simulator.checks.jobs import Ended, Job
from local_test.simulator.checks.layout import Trait

_GROUP = "what a job is given"

# These go together, so one job tries them all; only when it differs from the plain one is each tried by itself.
_TOGETHER = frozenset(Trait) - {Trait.LEAST}


@check("train.quoted", "Hyperparameters give the same bare and encoded as JSON", pages.TRAIN_INPUT, _GROUP)
def quoted(context: Context) -> Outcome:
    """Which of the two comes depends on the launcher."""
    return _same(context, Trait.QUOTED)


@check("train.tuning-key", "Tolerates the tuner's `_tuning_objective_metric`", pages.TUNING_METRICS, _GROUP)
def tuning_key(context: Context) -> Outcome:
    """It is never encoded as JSON."""
    return _same(context, Trait.TUNING_KEY)


@check("train.sdk-keys", "Tolerates the SDK's `sagemaker_*` hyperparameters", pages.TRAIN_INPUT, _GROUP)
def sdk_keys(context: Context) -> Outcome:
    """As its framework estimators add them."""
    return _same(context, Trait.SDK_KEYS)


@check("train.side-channels", "Ignores the SDK's channels `code` and `sm_drivers`", pages.TRAIN_INPUT, _GROUP)
def side_channels(context: Context) -> Outcome:
    """Data looked for in all channels would find Python files."""
    return _same(context, Trait.SIDE_CHANNELS)


@check("train.fast-file", 'Reads a channel that is reported as "FastFile"', pages.TRAIN_INPUT, _GROUP)
def fast_file(context: Context) -> Outcome:
    """The current page has File there, that of 2023 FastFile."""
    return _same(context, Trait.FAST_FILE)


@check(
    "train.least",
    "Does without the optional keys of resourceconfig.json and inputdataconfig.json",
    pages.TRAIN_INPUT,
    _GROUP,
)
def least(context: Context) -> Outcome:
    """Local mode writes no more."""
    return _same(context, Trait.LEAST)


@check("train.more-files", "Is not disturbed by further files in input/config", pages.TRAIN_INPUT, _GROUP)
def more_files(context: Context) -> Outcome:
    """The platform writes some that no page documents."""
    return _same(context, Trait.MORE_FILES)


@check(
    "train.no-interface",
    "Does not need the network interface that resourceconfig.json names",
    pages.TRAIN_INPUT,
    _GROUP,
)
def no_interface(context: Context) -> Outcome:
    """Local mode names `ethwe`, which no container has."""
    return _same(context, Trait.NO_INTERFACE)


def _same(context: Context, trait: Trait) -> Outcome:
    plain = context.plain_job()
    if trait in _TOGETHER and _difference(context, plain, context.jobs.run(Job(_TOGETHER))) is None:
        return judge(None, "in one job with the others of its kind")
    problem = _difference(context, plain, context.jobs.run(Job(frozenset({trait}))))
    return judge(f"with {trait}, {problem}" if problem else None)


def _difference(context: Context, plain: Ended, other: Ended) -> str | None:
    """What differs, in words that follow "with ..., "; None when nothing does."""
    if other.exit_code != 0:
        return other.how
    if plain.model and not other.model:
        return "the model folder stays empty"
    if _result(context, plain) == _result(context, other):
        return None
    if _result(context, plain) != _result(context, context.jobs.run(Job(again=True))):
        # Two equal jobs do not give the same either; that both succeed is all that can be said.
        return None
    if plain.model != other.model:
        return f"the model folder holds {other.model[:5]}, else {plain.model[:5]}"
    return f"the objective is {_result(context, other)[1]}, else {_result(context, plain)[1]}"


def _result(context: Context, ended: Ended) -> tuple[list[str], list[float | None]]:
    values = context.jobs.objectives(ended.log) if context.jobs.training.objective_regex else []
    return ended.model, values


CHECKS = (quoted, tuning_key, sdk_keys, side_channels, fast_file, least, more_files, no_interface)
