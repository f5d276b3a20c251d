"""Make a model an HTTPS endpoint, or update the one of that name.

Three ways to run it:
  real time    instances that wait for requests (the default); billed until deleted
  --serverless nothing runs between requests; no GPU, 4 MB and 60 s a request, the image at most 10 GB
  --async OUT  requests and answers lie in S3 (1 GB, 1 hour); can scale down to no instance

If the endpoint exists, it is updated: with two instances or more in batches, so that one part serves while the other
changes; with one, or serverless, by a second fleet that takes over. It is rolled back when the new instances do not
start, and while an --alarm rings. Type and number of the instances stay as they are unless given.

  launch.py deploy dogs --job dogbreed-20261120-203105-042
  launch.py deploy dogs --model-data s3://bucket/model.tar.gz --instance-type ml.g5.xlarge --autoscale 1:4
  launch.py deploy dogs --job JOB --serverless --memory 4096
  launch.py deploy dogs --job JOB --alarm dogs-5xx --alarm dogs-latency --bake 300
  launch.py deploy dogs --job JOB --local                        on this machine, in Docker, without an account

--local serves a local job's model (or --model-data FOLDER) on 127.0.0.1, by the SageMaker SDK's local mode; the command
returns when it can predict, and `launch.py delete NAME --local` ends it.

`--dry-run` plans a new endpoint, with --update the change of an existing one. What only AWS knows stands in it as
${Operation.Field}. Deploying needs iam:PassRole for the role. The last line says how to delete it all again.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.launcher import arguments as types
from scripts.launcher import costs, hosting
from scripts.launcher import settings as settings_module
from scripts.launcher.context import Context
from scripts.launcher.errors import OutcomeError, ServiceError, SettingError
from scripts.launcher.local import endpoints, folders
from scripts.launcher.plan import Call
from scripts.launcher.settings import Settings
from scripts.launcher.waiting import Progress, wait

VARIANT = "main"
SCALABLE_DIMENSION = "sagemaker:variant:DesiredInstanceCount"

# Offered in every region that has SageMaker, unlike its successors.
_INSTANCE_TYPE = "ml.c5.xlarge"
_POLL_S = 15.0
_STALE_POLLS = 3
_TIMEOUT_S = 600
_PORT = 8080
_MEMORY_MB = tuple(range(1024, 6145, 1024))
# RollingUpdatePolicy: a batch is between 5% and 50% of the instances, so one instance cannot roll.
_BATCH_PERCENT = (5, 50)
_ROLLING_MIN_INSTANCES = 2
# For one batch to be provisioned, started and drained; the sum is limited to 600..28800 by DeploymentConfig.
_BATCH_S = 1800
_UPDATE_MAX_S = 28800
# Of CaptureContentTypeHeader: what is stored as text. Images are stored as base64.
_JSON_TYPES = ["application/json", "application/jsonlines"]


@dataclass(frozen=True, slots=True)
class Existing:
    """The endpoint that is to be updated.

    Attributes:
        variant: name of its one variant, which an update must keep.
        instances: how many it has, 0 when serverless.
        instance_type: empty when serverless.
        asynchronous: whether its requests lie in S3.
        autoscaled: whether the number of instances is a scalable target.
    """

    variant: str = VARIANT
    instances: int = 1
    instance_type: str = _INSTANCE_TYPE
    asynchronous: bool = False
    autoscaled: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("name", type=hosting.base_name, metavar="NAME", help="name of the endpoint")
    hosting.add_model_arguments(parser, parser.add_mutually_exclusive_group(required=True))
    settings_module.add_arguments(parser, "image", "role", "bucket", "prefix")

    instances = parser.add_argument_group("instances")
    instances.add_argument("--instance-type", metavar="TYPE", help=f"default {_INSTANCE_TYPE}; ml.g5.xlarge has a GPU")
    instances.add_argument(
        "--instance-count", type=types.positive, metavar="N", help="default 1, or the minimum of --autoscale"
    )
    instances.add_argument(
        "--autoscale", metavar="MIN:MAX", help="bounds of the number of instances; MIN 0 with --async"
    )
    instances.add_argument(
        "--target-invocations",
        type=float,
        default=200.0,
        metavar="N",
        help="requests per minute and instance that autoscaling aims at (default %(default)g; measure yours)",
    )
    instances.add_argument(
        "--target-backlog",
        type=float,
        default=5.0,
        metavar="N",
        help="with --async: waiting requests per instance that autoscaling aims at (default %(default)g)",
    )
    instances.add_argument(
        "--startup-timeout",
        type=int,
        default=_TIMEOUT_S,
        metavar="S",
        help="seconds from the container's start to a good /ping, 60 to 3600 (default %(default)s)",
    )
    instances.add_argument(
        "--download-timeout",
        type=int,
        default=_TIMEOUT_S,
        metavar="S",
        help="seconds for getting the model from S3, 60 to 3600 (default %(default)s)",
    )

    here = parser.add_argument_group("on this machine")
    here.add_argument("--local", action="store_true", help="by the SageMaker SDK's local mode, with Docker")
    here.add_argument("--port", type=_port, default=_PORT, metavar="PORT", help="of 127.0.0.1 (default %(default)s)")

    modes = parser.add_argument_group("serverless and async")
    mode = modes.add_mutually_exclusive_group()
    mode.add_argument("--serverless", action="store_true", help="no instances of one's own")
    mode.add_argument(
        "--async", dest="asynchronous", type=types.s3_uri, metavar="S3_URI", help="where answers are written"
    )
    modes.add_argument(
        "--memory", type=int, default=4096, metavar="MB", help="serverless: 1024 to 6144 by 1024 (default %(default)s)"
    )
    modes.add_argument(
        "--max-concurrency", type=int, default=5, metavar="N", help="serverless: requests at once (default %(default)s)"
    )
    modes.add_argument("--async-concurrency", type=int, metavar="N", help="async: requests at once per instance")
    modes.add_argument("--success-topic", metavar="ARN", help="async: SNS topic that is told of answers")
    modes.add_argument("--error-topic", metavar="ARN", help="async: SNS topic that is told of errors")

    capture = parser.add_argument_group("data capture")
    capture.add_argument("--data-capture", type=int, metavar="PERCENT", help="store this share of requests and answers")
    capture.add_argument(
        "--data-capture-to", type=types.s3_uri, metavar="S3_URI", help="default s3://BUCKET/PREFIX/capture/NAME"
    )

    update = parser.add_argument_group("updating")
    update.add_argument(
        "--update", action="store_true", help="refuse to make a new endpoint; for --dry-run: plan an update"
    )
    update.add_argument(
        "--alarm",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="CloudWatch alarms that roll an update back, at most 10",
    )
    update.add_argument(
        "--batch-percent", type=int, default=25, metavar="P", help="instances per batch, 5 to 50 (default %(default)s)"
    )
    update.add_argument(
        "--bake",
        type=int,
        default=120,
        metavar="S",
        help="seconds each batch is watched, 0 to 3600 (default %(default)s)",
    )
    parser.add_argument("--no-wait", action="store_true", help="return as soon as AWS has taken the requests")


def needs_region(arguments: argparse.Namespace) -> bool:
    """Whether the command talks to AWS at all."""
    return not arguments.local


def plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """The requests for a new endpoint, or with --update for one that has as many instances as are asked for."""
    if arguments.local:
        return _local_plan(arguments, settings)
    existing = Existing(instances=arguments.instance_count or 1) if arguments.update else None
    return requests(arguments, settings, existing)


def requests(arguments: argparse.Namespace, settings: Settings, existing: Existing | None) -> list[Call]:
    """Every request, in order; autoscaling comes last, because it needs an endpoint in service.

    Raises:
        SettingError: what was asked for does not go together, or not with the existing endpoint.
    """
    name = arguments.name
    _check(arguments)
    if existing is not None:
        _check_mode(arguments, existing)
    version = settings.unique_name(name)
    bounds = _bounds(arguments)
    count = _instance_count(arguments, bounds)
    variant = existing.variant if existing else VARIANT
    instance_type = _instance_type(arguments, existing)
    config = _config(arguments, settings, version=version, variant=variant, instance_type=instance_type, count=count)
    calls = [*hosting.model_calls(arguments, settings, version), config]
    if existing is None:
        parameters = {"EndpointName": name, "EndpointConfigName": version, **hosting.tags(arguments)}
        calls.append(Call("sagemaker", "CreateEndpoint", parameters))
    else:
        calls += _update(arguments, existing, version=version, instance_type=instance_type, count=count)
    return calls + ([] if bounds is None else _scaling(arguments, name, variant, bounds))


def resource(name: str, variant: str) -> str:
    """What Application Auto Scaling calls the variant of an endpoint."""
    return f"endpoint/{name}/variant/{variant}"


def run(calls: Sequence[Call], context: Context) -> int:
    """Creates or updates the endpoint and waits for it."""
    arguments = context.arguments
    if arguments.local:
        model = folders.model(arguments.job, arguments.model_data)
        here = folders.Endpoint(arguments.name, arguments.port, folders.image(context.settings), str(model))
        return endpoints.deploy(calls, here, context)
    existing = _look_up(context)
    # With what is known now; the names are the same, because they are made of the time of the start.
    calls = requests(arguments, context.settings, existing)
    version = context.settings.unique_name(arguments.name)
    context.say(_cost(calls, arguments.name))
    if existing is not None and not arguments.alarm:
        context.say("no --alarm: a version that starts, but answers badly, is not rolled back")
    scaling = [call for call in calls if call.operation in ("RegisterScalableTarget", "PutScalingPolicy")]
    hosting.send([call for call in calls if call not in scaling], context.aws)
    remove = f"it costs money until: launch.py delete {arguments.name}"
    if arguments.no_wait:
        print(f"endpoint {arguments.name} is on its way: launch.py status {arguments.name}\n{remove}")
        return 0
    try:
        wait_for(context, arguments.name, version)
        for call in scaling:
            context.aws.call(call)
    except KeyboardInterrupt:
        context.say(f"endpoint {arguments.name} goes on without being watched; {remove}")
        raise
    except OutcomeError as error:
        # The reason stays first, and what to do about it last.
        raise OutcomeError(f"{error}\n{remove}") from error
    except ServiceError:
        context.say(remove)
        raise
    how = "S3, see docs/aws-endpoints.md" if arguments.asynchronous else f"launch.py predict {arguments.name} photo.jpg"
    print(f"endpoint {arguments.name} is in service: {how}\n{remove}")
    return 0


def wait_for(context: Context, name: str, config: str) -> None:
    """Waits until the endpoint serves the configuration.

    Raises:
        OutcomeError: it failed, or was rolled back; FailureReason stands first.
    """
    logs = f"the container's own words: launch.py logs {name} --kind endpoint"

    stale = _STALE_POLLS

    def ask() -> str | None:
        nonlocal stale
        found = context.aws.call(Call("sagemaker", "DescribeEndpoint", {"EndpointName": name}))
        status = str(found["EndpointStatus"])
        if status == "InService" and found["EndpointConfigName"] == config:
            return None
        # Right after UpdateEndpoint the description may still be that of before.
        stale = stale - 1 if status == "InService" else 0
        if stale > 0:
            return "Updating"
        reason = str(found.get("FailureReason") or "AWS gives no reason")
        if status == "InService":
            raise OutcomeError(
                f"{reason}\nthe update was rolled back; {name} serves {found['EndpointConfigName']} as before\n{logs}"
            )
        if status in ("Failed", "OutOfService", "UpdateRollbackFailed"):
            raise OutcomeError(f"{reason}\nendpoint {name} is {status}\n{logs}")
        return status

    wait(ask, Progress(f"endpoint {name}"), context.sleep, every_s=_POLL_S)


def _local_plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """The requests as the SDK's local mode takes them."""
    folders.refuse(
        {
            "--serverless": arguments.serverless,
            "--async": arguments.asynchronous,
            "--autoscale": arguments.autoscale,
            "--instance-count": arguments.instance_count not in (None, 1),
            "--data-capture": arguments.data_capture,
            "--update": arguments.update,
            "--alarm": arguments.alarm,
            "--no-wait": arguments.no_wait,
            **hosting.account_only(arguments),
        }
    )
    name = arguments.name
    variant = {
        "VariantName": VARIANT,
        "ModelName": name,
        "InstanceType": folders.instance_type(arguments.instance_type),
        "InitialInstanceCount": 1,
    }
    return [
        folders.model_call(name, settings, folders.model(arguments.job, arguments.model_data), dict(arguments.env)),
        Call("sagemaker", "CreateEndpointConfig", {"EndpointConfigName": name, "ProductionVariants": [variant]}),
        Call("sagemaker", "CreateEndpoint", {"EndpointName": name, "EndpointConfigName": name}),
    ]


def _port(text: str) -> int:
    port = types.positive(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port; give 1 to 65535")
    return port


def _check(arguments: argparse.Namespace) -> None:
    """Refuses what AWS would refuse later, or what would be ignored."""
    if arguments.serverless:
        unused = {
            "--instance-type": arguments.instance_type,
            "--instance-count": arguments.instance_count,
            "--autoscale": arguments.autoscale,
            "--data-capture": arguments.data_capture,
            "--subnets": arguments.subnets,
            "--network-isolation": arguments.network_isolation,
            "--kms-key": arguments.kms_key,
        }
        if refused := [argument for argument, value in unused.items() if value]:
            raise SettingError(f"a serverless endpoint has no {', '.join(refused)}")
        if arguments.memory not in _MEMORY_MB:
            raise SettingError(f"--memory {arguments.memory} is not one of {', '.join(map(str, _MEMORY_MB))}")
    if arguments.asynchronous is None and (
        arguments.async_concurrency or arguments.success_topic or arguments.error_topic
    ):
        raise SettingError("--async-concurrency, --success-topic and --error-topic need --async")
    if arguments.no_wait and arguments.autoscale:
        raise SettingError("--autoscale needs an endpoint in service: leave out --no-wait")
    for argument, value, low, high in (
        ("--startup-timeout", arguments.startup_timeout, 60, 3600),
        ("--download-timeout", arguments.download_timeout, 60, 3600),
        ("--max-concurrency", arguments.max_concurrency, 1, 200),
        ("--async-concurrency", arguments.async_concurrency, 1, 1000),
        ("--data-capture", arguments.data_capture, 1, 100),
        ("--batch-percent", arguments.batch_percent, *_BATCH_PERCENT),
        ("--bake", arguments.bake, 0, 3600),
        ("--target-invocations", arguments.target_invocations, 0.1, 1e9),
        ("--target-backlog", arguments.target_backlog, 0.1, 1e9),
    ):
        hosting.check_range(argument, value, low, high)


def _bounds(arguments: argparse.Namespace) -> tuple[int, int] | None:
    """Least and most instances, or None without autoscaling."""
    if arguments.autoscale is None:
        return None
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", arguments.autoscale)
    if match is None:
        raise SettingError(f"--autoscale {arguments.autoscale!r} is not MIN:MAX, for example 1:4")
    low, high = int(match[1]), int(match[2])
    if high < max(low, 1) or (low == 0 and not arguments.asynchronous):
        raise SettingError(f"--autoscale {arguments.autoscale} is not allowed: from 1 (with --async 0) up to MAX")
    return low, high


def _instance_count(arguments: argparse.Namespace, bounds: tuple[int, int] | None) -> int:
    low, high = bounds or (1, 1_000_000)
    count = max(1, low) if arguments.instance_count is None else arguments.instance_count
    if not low <= count <= high:
        raise SettingError(f"--instance-count {count} is outside --autoscale {arguments.autoscale}")
    return int(count)


def _check_mode(arguments: argparse.Namespace, existing: Existing) -> None:
    """Refuses to change the kind of an endpoint, and what it costs, by an argument left out."""
    if not existing.instance_type and not (arguments.serverless or arguments.instance_type):
        raise SettingError(f"{arguments.name} is serverless: give --serverless, or --instance-type to change that")
    if existing.asynchronous and not arguments.asynchronous:
        raise SettingError(f"{arguments.name} is asynchronous: give --async S3_URI again")


def _instance_type(arguments: argparse.Namespace, existing: Existing | None) -> str:
    """The given one, else the present one, else the default; empty for serverless."""
    if arguments.serverless:
        return ""
    return arguments.instance_type or (existing.instance_type if existing else "") or _INSTANCE_TYPE


def _config(
    arguments: argparse.Namespace, settings: Settings, *, version: str, variant: str, instance_type: str, count: int
) -> Call:
    production: dict[str, object] = {"VariantName": variant, "ModelName": version, "InitialVariantWeight": 1.0}
    kms = {"KmsKeyId": arguments.kms_key} if arguments.kms_key else {}
    parameters: dict[str, object] = {
        "EndpointConfigName": version,
        "ProductionVariants": [production],
        **hosting.tags(arguments),
    }
    if not instance_type:
        production["ServerlessConfig"] = {
            "MemorySizeInMB": arguments.memory,
            "MaxConcurrency": arguments.max_concurrency,
        }
    else:
        production |= {
            "InstanceType": instance_type,
            "InitialInstanceCount": count,
            "ModelDataDownloadTimeoutInSeconds": arguments.download_timeout,
            "ContainerStartupHealthCheckTimeoutInSeconds": arguments.startup_timeout,
        }
        if hosting.has_gpu(instance_type):
            production["InferenceAmiVersion"] = hosting.ENDPOINT_AMI
        parameters |= kms
    if arguments.asynchronous:
        parameters["AsyncInferenceConfig"] = _async_config(arguments, kms)
    if arguments.data_capture:
        target = arguments.data_capture_to or settings.s3_uri("capture", arguments.name)
        parameters["DataCaptureConfig"] = {
            "EnableCapture": True,
            "InitialSamplingPercentage": arguments.data_capture,
            "DestinationS3Uri": target.rstrip("/"),
            "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            "CaptureContentTypeHeader": {"JsonContentTypes": _JSON_TYPES},
            **kms,
        }
    return Call("sagemaker", "CreateEndpointConfig", parameters)


def _async_config(arguments: argparse.Namespace, kms: Mapping[str, str]) -> dict[str, object]:
    output = arguments.asynchronous.rstrip("/")
    topics = {"SuccessTopic": arguments.success_topic, "ErrorTopic": arguments.error_topic}
    notified = {key: topic for key, topic in topics.items() if topic}
    config: dict[str, object] = {
        "OutputConfig": {
            "S3OutputPath": output,
            "S3FailurePath": f"{output}/failed",
            **({"NotificationConfig": notified} if notified else {}),
            **kms,
        }
    }
    if arguments.async_concurrency:
        config["ClientConfig"] = {"MaxConcurrentInvocationsPerInstance": arguments.async_concurrency}
    return config


def _update(
    arguments: argparse.Namespace, existing: Existing, *, version: str, instance_type: str, count: int
) -> list[Call]:
    """UpdateEndpoint, after DeregisterScalableTarget where the update would be refused for autoscaling."""
    name, calls = arguments.name, []
    # "If the update would change the instance type for any model that is a target for auto scaling, the update fails"
    # (developer guide, endpoint-scaling-update).
    if existing.autoscaled and instance_type != existing.instance_type:
        if arguments.autoscale is None and instance_type:
            raise SettingError(
                f"{name} is autoscaled, and its instance type would change from {existing.instance_type} to "
                f"{instance_type}: give --autoscale MIN:MAX for that, or --instance-type {existing.instance_type}"
            )
        calls.append(_scalable("DeregisterScalableTarget", name, existing.variant))
    # Autoscaling or a person may have changed the number since; only a number that was given now replaces it.
    keep_count = arguments.instance_count is None and bool(instance_type) and existing.instances > 0
    after = existing.instances if keep_count else count
    parameters: dict[str, object] = {
        "EndpointName": name,
        "EndpointConfigName": version,
        "DeploymentConfig": _deployment(arguments, instances=min(existing.instances, after) if instance_type else 0),
    }
    if keep_count:
        parameters |= {
            "RetainAllVariantProperties": True,
            "ExcludeRetainedVariantProperties": [
                {"VariantPropertyType": "DesiredWeight"},
                {"VariantPropertyType": "DataCaptureConfig"},
            ],
        }
    return [*calls, Call("sagemaker", "UpdateEndpoint", parameters)]


def _deployment(arguments: argparse.Namespace, *, instances: int) -> dict[str, object]:
    """How the new version takes over: batch by batch, or a second fleet at once where there is nothing to divide."""
    deployment: dict[str, object]
    if instances >= _ROLLING_MIN_INSTANCES:
        # Rounded into the allowed 5% to 50%, which at least one instance always is.
        batch = max(1, -(-instances * _BATCH_PERCENT[0] // 100), instances * arguments.batch_percent // 100)
        batches = -(-instances // batch)
        deployment = {
            "RollingUpdatePolicy": {
                "MaximumBatchSize": {"Type": "INSTANCE_COUNT", "Value": batch},
                "WaitIntervalInSeconds": arguments.bake,
                "MaximumExecutionTimeoutInSeconds": min(_UPDATE_MAX_S, batches * (_BATCH_S + arguments.bake)),
            }
        }
    else:
        deployment = {
            "BlueGreenUpdatePolicy": {
                "TrafficRoutingConfiguration": {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": arguments.bake},
                "MaximumExecutionTimeoutInSeconds": _BATCH_S + arguments.bake,
            }
        }
    if arguments.alarm:
        deployment["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": alarm} for alarm in arguments.alarm]}
    return deployment


def _scalable(operation: str, name: str, variant: str, **parameters: object) -> Call:
    return Call(
        "application-autoscaling",
        operation,
        {
            "ServiceNamespace": "sagemaker",
            "ResourceId": resource(name, variant),
            "ScalableDimension": SCALABLE_DIMENSION,
            **parameters,
        },
    )


def _scaling(arguments: argparse.Namespace, name: str, variant: str, bounds: tuple[int, int]) -> list[Call]:
    """The bounds and one policy that follows the load; source: endpoint-auto-scaling, async-inference-autoscale."""
    low, high = bounds
    tracking: dict[str, object] = {"ScaleOutCooldown": 60, "ScaleInCooldown": 300}
    if arguments.asynchronous:
        tracking["TargetValue"] = arguments.target_backlog
        tracking["CustomizedMetricSpecification"] = {
            "MetricName": "ApproximateBacklogSizePerInstance",
            "Namespace": "AWS/SageMaker",
            "Dimensions": [{"Name": "EndpointName", "Value": name}],
            "Statistic": "Average",
        }
    else:
        tracking["TargetValue"] = arguments.target_invocations
        tracking["PredefinedMetricSpecification"] = {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
    return [
        _scalable("RegisterScalableTarget", name, variant, MinCapacity=low, MaxCapacity=high),
        _scalable(
            "PutScalingPolicy",
            name,
            variant,
            PolicyName=f"{name}-load",
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration=tracking,
        ),
    ]


def _look_up(context: Context) -> Existing | None:
    """The endpoint as it is now, or None when there is none."""
    name = context.arguments.name
    try:
        endpoint = context.aws.call(Call("sagemaker", "DescribeEndpoint", {"EndpointName": name}))
    except ServiceError as error:
        if not error.not_found:
            raise
        if context.arguments.update:
            raise SettingError(f"there is no endpoint {name} to update; leave out --update to create it") from error
        return None
    status = endpoint["EndpointStatus"]
    if status != "InService":
        way = (
            f"delete it first: launch.py delete {name}" if status in ("Failed", "OutOfService") else "wait until it is"
        )
        raise OutcomeError(
            f"{endpoint.get('FailureReason') or f'endpoint {name} is {status}'}\n"
            f"endpoint {name} is {status}, and only one in service can be updated; {way}"
        )
    variants: list[Mapping[str, Any]] = endpoint["ProductionVariants"]
    if len(variants) != 1:
        names = ", ".join(variant["VariantName"] for variant in variants)
        raise OutcomeError(f"endpoint {name} has the variants {names}; this command updates endpoints with one")
    config_name = str(endpoint["EndpointConfigName"])
    config = context.aws.call(Call("sagemaker", "DescribeEndpointConfig", {"EndpointConfigName": config_name}))
    variant = str(variants[0]["VariantName"])
    targets = context.aws.call(
        Call(
            "application-autoscaling",
            "DescribeScalableTargets",
            {"ServiceNamespace": "sagemaker", "ResourceIds": [resource(name, variant)]},
        )
    )
    return Existing(
        variant=variant,
        instances=int(variants[0].get("DesiredInstanceCount") or 0),
        instance_type=str(config["ProductionVariants"][0].get("InstanceType", "")),
        asynchronous="AsyncInferenceConfig" in config,
        autoscaled=bool(targets["ScalableTargets"]),
    )


def _cost(calls: Sequence[Call], name: str) -> str:
    """One line on what the endpoint will cost, in instances and time rather than in money."""
    (config,) = (call for call in calls if call.operation == "CreateEndpointConfig")
    variant = config.parameters["ProductionVariants"][0]
    if serverless := variant.get("ServerlessConfig"):
        return (
            f"cost: by request, {serverless['MemorySizeInMB']} MB of memory, at most {serverless['MaxConcurrency']} "
            "requests at once; nothing between requests"
        )
    targets = [call.parameters for call in calls if call.operation == "RegisterScalableTarget"]
    count = targets[0]["MaxCapacity"] if targets else variant["InitialInstanceCount"]
    updates = [call.parameters for call in calls if call.operation == "UpdateEndpoint"]
    if updates and updates[0].get("RetainAllVariantProperties") and not targets:
        return f"cost: {name} keeps its number of {variant['InstanceType']}, and more while it is updated"
    line = costs.line(variant["InstanceType"], count, None)
    return f"{line}; autoscaling goes down to {targets[0]['MinCapacity']} when idle" if targets else line
