"""What costs money: the line before something is started, and the list of what runs now.

Names instances and time, never prices: those differ by region and contract. The list covers what SageMaker bills by the
instance hour for jobs, endpoints and warm pools, of the whole account in one region, whoever started it; it leaves out
notebooks, Studio and storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scripts.launcher.arguments import in_words
from scripts.launcher.aws import Aws
from scripts.launcher.plan import Call
from scripts.launcher.tables import table, when

_RUNNING = "InProgress"
# An endpoint that failed to come up holds no instances.
_FREE_ENDPOINTS = frozenset({"Failed", "Deleting"})


def line(instance_type: str, count: int, seconds: float | None) -> str:
    """The line before anything that costs; ``seconds`` is None for what runs until it is deleted."""
    limit = "until it is deleted" if seconds is None else f"for at most {in_words(seconds)}"
    return f"cost: {count} x {instance_type} {limit}"


@dataclass(frozen=True, slots=True)
class Running:
    """One thing that is being billed.

    Attributes:
        kind: `training job`, `endpoint`, `transform job`, `tuning job` or `warm pool`.
        instances: `2 x ml.g5.xlarge`, or what else it is billed by.
        since: UTC, to the minute.
        end: the command that ends it.
    """

    kind: str
    name: str
    status: str
    instances: str
    since: str
    end: str


def calls() -> list[Call]:
    """The listing requests that `running` starts from."""
    return [
        Call("sagemaker", "ListTrainingJobs", {"StatusEquals": _RUNNING}),
        Call("sagemaker", "ListTrainingJobs", {"WarmPoolStatusEquals": "Available"}),
        Call("sagemaker", "ListHyperParameterTuningJobs", {"StatusEquals": _RUNNING}),
        Call("sagemaker", "ListTransformJobs", {"StatusEquals": _RUNNING}),
        Call("sagemaker", "ListEndpoints", {}),
    ]


def running(aws: Aws) -> list[Running]:
    """Everything that is being billed now; one more request for each."""
    training, pools, tuning, transforms, endpoints = calls()
    return [
        *(_training_job(aws, job) for job in _items(aws, training, "TrainingJobSummaries")),
        *(_warm_pool(aws, job) for job in _items(aws, pools, "TrainingJobSummaries") if _keeps_warm(job)),
        *(_tuning_job(job) for job in _items(aws, tuning, "HyperParameterTuningJobSummaries")),
        *(_transform_job(aws, job) for job in _items(aws, transforms, "TransformJobSummaries")),
        *(
            _endpoint(aws, endpoint)
            for endpoint in _items(aws, endpoints, "Endpoints")
            if endpoint["EndpointStatus"] not in _FREE_ENDPOINTS
        ),
    ]


def as_table(found: list[Running]) -> str:
    """The list for people; one sentence when nothing is being billed."""
    if not found:
        return "nothing is costing money: no job, endpoint or warm pool in this region"
    rows = [[one.kind, one.name, one.status, one.instances, one.since, one.end] for one in found]
    return table(["costing money", "name", "status", "instances", "since (UTC)", "to end it"], rows)


def _items(aws: Aws, call: Call, key: str) -> Iterator[Mapping[str, Any]]:
    for page in aws.pages(call):
        yield from page[key]


def _training_job(aws: Aws, job: Mapping[str, Any]) -> Running:
    name = job["TrainingJobName"]
    return Running(
        "training job",
        name,
        job["TrainingJobStatus"],
        _resources(_describe_training(aws, name)),
        when(job["CreationTime"]),
        f"launch.py stop {name}",
    )


def _keeps_warm(job: Mapping[str, Any]) -> bool:
    status: str = job.get("WarmPoolStatus", {}).get("Status", "")
    return status == "Available"


def _warm_pool(aws: Aws, job: Mapping[str, Any]) -> Running:
    name = job["TrainingJobName"]
    described = _describe_training(aws, name)
    seconds = described.get("ResourceConfig", {}).get("KeepAlivePeriodInSeconds", 0)
    return Running(
        "warm pool",
        name,
        "Available",
        _resources(described),
        when(job.get("TrainingEndTime")),
        f"ends by itself {in_words(seconds)} after the job",
    )


def _describe_training(aws: Aws, name: str) -> dict[str, Any]:
    return aws.call(Call("sagemaker", "DescribeTrainingJob", {"TrainingJobName": name}))


def _tuning_job(job: Mapping[str, Any]) -> Running:
    name = job["HyperParameterTuningJobName"]
    return Running(
        "tuning job",
        name,
        job["HyperParameterTuningJobStatus"],
        "its training jobs",
        when(job["CreationTime"]),
        f"launch.py stop {name}",
    )


def _transform_job(aws: Aws, job: Mapping[str, Any]) -> Running:
    name = job["TransformJobName"]
    described = aws.call(Call("sagemaker", "DescribeTransformJob", {"TransformJobName": name}))
    return Running(
        "transform job",
        name,
        job["TransformJobStatus"],
        _resources(described, "TransformResources"),
        when(job["CreationTime"]),
        f"aws sagemaker stop-transform-job --transform-job-name {name}",
    )


def _endpoint(aws: Aws, endpoint: Mapping[str, Any]) -> Running:
    name = endpoint["EndpointName"]
    described = aws.call(Call("sagemaker", "DescribeEndpoint", {"EndpointName": name}))
    config = aws.call(
        Call("sagemaker", "DescribeEndpointConfig", {"EndpointConfigName": described["EndpointConfigName"]})
    )
    # The endpoint knows how many there are now; only the configuration knows the type.
    counts = {one["VariantName"]: one.get("CurrentInstanceCount") for one in described.get("ProductionVariants", [])}
    instances = [
        "serverless, by request"
        if "ServerlessConfig" in variant
        else _times(
            counts.get(variant["VariantName"], variant.get("InitialInstanceCount")), variant.get("InstanceType")
        )
        for variant in config.get("ProductionVariants", [])
    ]
    return Running(
        "endpoint",
        name,
        endpoint["EndpointStatus"],
        ", ".join(instances) or "-",
        when(endpoint["CreationTime"]),
        f"launch.py delete {name}",
    )


def _resources(described: Mapping[str, Any], key: str = "ResourceConfig") -> str:
    resources = described.get(key, {})
    return _times(resources.get("InstanceCount"), resources.get("InstanceType"))


def _times(count: object, instance_type: object) -> str:
    return f"{'?' if count is None else count} x {instance_type or '?'}"
