"""A job on two hosts: they end well and together, and what they leave can be put into one archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from local_test.simulator.checks import pages
from local_test.simulator.checks.check import BlockedError, NotApplicableError, Outcome, check, failed, judge, passed
from local_test.simulator.checks.context import Context
from local_test.simulator.checks.jobs import Ended

_GROUP = "a job on two hosts"


@check("train.two-hosts", "Two hosts end with exit code 0", pages.TRAIN_INPUT, _GROUP)
def two_hosts(context: Context) -> Outcome:
    """Those that ended in time; see train.hosts-together for the others."""
    return judge(_failing(_two(context)))


@check("train.hosts-together", "The hosts of a job end together", pages.TRAIN_INPUT, _GROUP)
def hosts_together(context: Context) -> Outcome:
    """The first that is gone leaves the others without a peer; local mode then stops them."""
    ends = _two(context)
    late = [number for number, end in enumerate(ends, 1) if end.exit_code is None]
    if late:
        waited = context.patience.together_s
        return judge(f"host {late[0]} still ran {waited:g} s after the other had ended{ends[late[0] - 1].last_words}")
    return passed(f"{abs(ends[0].seconds - ends[1].seconds):.1f} s apart")


@check(
    "train.hosts-model", "No two hosts leave files of the same name in the model folder", pages.TRAIN_STORAGE, _GROUP
)
def hosts_model(context: Context) -> Outcome:
    """Their trees are merged into one model.tar.gz."""
    return judge(_clash(_good(context), lambda end: end.model))


@check("train.hosts-output", "No two hosts leave files of the same name in output/data", pages.TRAIN_STORAGE, _GROUP)
def hosts_output(context: Context) -> Outcome:
    """Their trees are merged into one output.tar.gz."""
    return judge(_clash(_good(context), lambda end: end.output))


@check("train.hosts-objective", "One host alone prints the objective", pages.TRAINING_METRICS, _GROUP)
def hosts_objective(context: Context) -> Outcome:
    """The logs of all hosts are scraped into one metric."""
    if not context.jobs.training.objective_regex:
        raise NotApplicableError("the profile has no objective_regex")
    telling = [number for number, end in enumerate(_good(context), 1) if context.jobs.objectives(end.log)]
    return judge(None if len(telling) == 1 else f"{len(telling)} of 2 hosts print it")


@check(
    "train.empty-shard",
    "Where a host gets no object of its channel, the job works, or fails on all hosts with the reason",
    pages.DISTRIBUTION,
    _GROUP,
)
def empty_shard(context: Context) -> Outcome:
    """ShardedByS3Key with fewer objects than hosts; AWS's page: "Keep this in mind when developing algorithms"."""
    _good(context)
    ends = context.once("empty shard", lambda: context.jobs.run_hosts(2, empty=1))
    if all(end.exit_code == 0 for end in ends):
        return passed("it works")
    if any(end.exit_code is None for end in ends):
        return failed("one host did not end with the other")
    if any(end.exit_code == 0 for end in ends):
        return failed(f"one host succeeds without the other: {_failing(ends)}")
    reasons = [(end.failure or b"").decode("utf-8", "replace").strip() for end in ends]
    if not all(reasons):
        return failed(f"a host fails without a reason: {_failing(ends)}")
    return passed(f"it fails: {reasons[-1][:200]}")


def _two(context: Context) -> Sequence[Ended]:
    context.plain_job()
    return context.once("two hosts", lambda: context.jobs.run_hosts(2))


def _good(context: Context) -> Sequence[Ended]:
    ends = _two(context)
    if _failing(ends) or any(end.exit_code is None for end in ends):
        raise BlockedError("a job on two hosts fails: see train.two-hosts and train.hosts-together")
    return ends


def _failing(ends: Sequence[Ended]) -> str | None:
    if all(end.exit_code is None for end in ends):
        return f"no host ended in time{ends[0].last_words}"
    failing = [number for number, end in enumerate(ends, 1) if end.exit_code]
    return f"host {failing[0]}: {ends[failing[0] - 1].how}" if failing else None


def _clash(ends: Sequence[Ended], files: Callable[[Ended], list[str]]) -> str | None:
    same = sorted(set(files(ends[0])) & set(files(ends[1])))
    return f"both hosts left {', '.join(same[:5])}" if same else None


CHECKS = (two_hosts, hosts_together, hosts_model, hosts_output, hosts_objective, empty_shard)
