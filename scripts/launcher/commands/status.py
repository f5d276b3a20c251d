"""Show recent training jobs, searches and endpoints, and what is costing money.

With a NAME, that training job, search or endpoint in full. The last list holds everything in the account and region
that is billed by the instance hour for jobs, endpoints and warm pools, whoever started it, each with the command that
ends it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.launcher import costs, following
from scripts.launcher.arguments import in_words, job_name, positive
from scripts.launcher.context import Context
from scripts.launcher.errors import OutcomeError, ServiceError
from scripts.launcher.plan import Call
from scripts.launcher.search import trials, tuning
from scripts.launcher.settings import Settings
from scripts.launcher.tables import table, when


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("name", metavar="NAME", nargs="?", type=job_name, help="a training job, tuning job or endpoint")
    parser.add_argument(
        "--last",
        type=positive,
        default=10,
        metavar="N",
        help="how many of each; default %(default)s",
    )


def plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """The listings; each thing that runs is described by one more request."""
    if arguments.name:
        return [following.describe(arguments.name)]
    newest = {"SortBy": "CreationTime", "SortOrder": "Descending", "MaxResults": min(arguments.last, 100)}
    return [
        Call("sagemaker", "ListTrainingJobs", newest),
        Call("sagemaker", "ListHyperParameterTuningJobs", newest),
        Call("sagemaker", "ListEndpoints", newest),
        *costs.calls(),
    ]


def run(calls: Sequence[Call], context: Context) -> int:
    """Prints the tables, or the one."""
    if context.arguments.name:
        _show(calls[0], context)
        return 0
    jobs, searches, endpoints, *_ = calls
    last = context.arguments.last
    rows = [_job_row(job) for page in context.aws.pages(jobs, limit=last) for job in page["TrainingJobSummaries"]]
    print(table(["training job", "status", "created (UTC)", "took"], rows) if rows else "no training jobs")
    rows = [
        _search_row(one)
        for page in context.aws.pages(searches, limit=last)
        for one in page["HyperParameterTuningJobSummaries"]
    ]
    if rows:
        print()
        print(table(["tuning job", "status", "created (UTC)", "trials"], rows))
    rows = [
        [one["EndpointName"], one["EndpointStatus"], when(one["CreationTime"])]
        for page in context.aws.pages(endpoints, limit=last)
        for one in page["Endpoints"]
    ]
    print()
    print(table(["endpoint", "status", "created (UTC)"], rows) if rows else "no endpoints")
    print()
    print(costs.as_table(costs.running(context.aws)))
    return 0


def _job_row(job: Mapping[str, Any]) -> list[str]:
    created, ended = job["CreationTime"], job.get("TrainingEndTime")
    took = in_words((ended - created).total_seconds()) if ended else "-"
    return [job["TrainingJobName"], job["TrainingJobStatus"], when(created), took]


def _search_row(search: Mapping[str, Any]) -> list[str]:
    trials = sum(search.get("TrainingJobStatusCounters", {}).values())
    name, status = search["HyperParameterTuningJobName"], search["HyperParameterTuningJobStatus"]
    return [name, status, when(search["CreationTime"]), str(trials)]


def _show(describe: Call, context: Context) -> None:
    """One training job in full; a search or an endpoint when there is no job of that name."""
    name = context.arguments.name
    try:
        description = context.aws.call(describe)
    except ServiceError as error:
        if not error.not_found:
            raise
        _show_search(name, context)
        return
    resources = description.get("ResourceConfig", {})
    limits = description.get("StoppingCondition", {})
    print("\n".join(following.outcome(description)))
    line = costs.line(
        resources.get("InstanceType", "?"), resources.get("InstanceCount", 0), limits.get("MaxRuntimeInSeconds")
    )
    print(f"created {when(description.get('CreationTime'))} UTC; {line}")
    for name, value in description.get("HyperParameters", {}).items():
        print(f"  {name}={value}")
    if uri := following.model_uri(description):
        print(f"model: {uri}")


def _show_search(name: str, context: Context) -> None:
    if len(name) > tuning.LONGEST_NAME:
        _show_endpoint(name, context)
        return
    try:
        description = context.aws.call(tuning.describe(name))
    except ServiceError as error:
        if not error.not_found:
            raise
        _show_endpoint(name, context)
        return
    print("\n".join(tuning.outcome(description)))
    found = tuning.trials_of(context.aws, name)
    if found:
        print(trials.as_table(found, tuning.objective_of(description)))
    if description["HyperParameterTuningJobStatus"] not in tuning.ENDED:
        context.say(tuning.goes_on(name))


def _show_endpoint(name: str, context: Context) -> None:
    try:
        description = context.aws.call(Call("sagemaker", "DescribeEndpoint", {"EndpointName": name}))
    except ServiceError as error:
        if not error.not_found:
            raise
        raise OutcomeError(
            f"{name} is no training job, tuning job or endpoint in {context.settings.region}; `launch.py status` lists "
            f"them"
        ) from error
    reason = description.get("FailureReason")
    print(f"{name} failed: {reason}" if reason else f"{name}: {description['EndpointStatus']}")
    for one in costs.running(context.aws):
        if one.kind == "endpoint" and one.name == name:
            print(f"{one.instances} since {one.since} UTC; `{one.end}` ends it")
