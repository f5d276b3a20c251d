r"""Train on SageMaker, and follow the job until it has ended.

    launch.py train --data s3://bucket/dogbreed/data/dogs/ --weights s3://bucket/w/resnet18.pth \
        --hp model=resnet18 lr=0.01 --instance-type ml.g5.xlarge --spot

Hyperparameters are checked here, before anything is started. Log, status and metrics come to stderr while the job
runs; the last line, on stdout, is the URI of its model. Ctrl-C stops the watching, not the job. The insight report is
made by the image in every job and needs no option: `launch.py report NAME` fetches it.

--local trains on this machine instead, in the image, by the SageMaker SDK's local mode and Docker; no account, region
or network is needed. --data, --channel and --weights are folders or files, --instance-count the number of containers:

    launch.py train --local --data photos --weights resnet18.pth --hp model=resnet18 --instance-count 2

The bundle is in build/local/NAME/model, the report in build/local/NAME/output; Ctrl-C stops such a job, as the platform
would, and keeps the model of its best epoch.

--managed-debugger attaches AWS's own SageMaker Debugger with the rules LossNotDecreasing and Overfit as well. AWS
closed that service to new customers on 2026-07-30: only accounts that used it before can start such a job.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dogbreed.logs import METRIC_REGEXES
from scripts.launcher import arguments as types
from scripts.launcher import costs, following
from scripts.launcher import settings as settings_module
from scripts.launcher.context import Context
from scripts.launcher.errors import ServiceError, SettingError
from scripts.launcher.local import folders, training
from scripts.launcher.plan import Call
from scripts.launcher.settings import Settings

_INSTANCE_TYPE = "ml.g4dn.xlarge"
_RUN_S = 4 * 3600
_LONGEST_RUN_S = 28 * 86400
# The API takes 21600 s, its documentation says 3600.
_LONGEST_WARM_S = 3600
_WEIGHTS_CHANNEL = "pretrained"
_WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors")
# Families without disks of their own. The others encrypt theirs in hardware and refuse a VolumeKmsKeyId
# (API reference: ResourceConfig).
_EBS_ONLY = re.compile(r"ml\.(t3|p2|p3|[mcr]\d+(n|i|i-flex)?)\.")

# sagemaker-debugger-rules:latest per region, from image_uri_config/debugger.json of sagemaker-core 2.27.
_RULES_REGISTRIES: Mapping[str, str] = {
    "af-south-1": "314341159256",
    "ap-east-1": "199566480951",
    "ap-northeast-1": "430734990657",
    "ap-northeast-2": "578805364391",
    "ap-northeast-3": "479947661362",
    "ap-south-1": "904829902805",
    "ap-southeast-1": "972752614525",
    "ap-southeast-2": "184798709955",
    "ca-central-1": "519511493484",
    "cn-north-1": "618459771430",
    "cn-northwest-1": "658757709296",
    "eu-central-1": "482524230118",
    "eu-north-1": "314864569078",
    "eu-south-1": "563282790590",
    "eu-west-1": "929884845733",
    "eu-west-2": "250201462417",
    "eu-west-3": "447278800020",
    "me-south-1": "986000313247",
    "sa-east-1": "818342061345",
    "us-east-1": "503895931360",
    "us-east-2": "915447279597",
    "us-gov-west-1": "515509971035",
    "us-west-1": "685455198987",
    "us-west-2": "895741380848",
}
# Overfit compares the losses of training with those of evaluation; smdebug's own interval, 500, is too long for both.
_LOSSES: Mapping[str, str] = {"train.save_interval": "10", "eval.save_interval": "1"}
_RULES = ("LossNotDecreasing", "Overfit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    data = parser.add_argument_group("what goes in")
    data.add_argument("--data", metavar="S3_URI", help="images, as the channel `train`")
    data.add_argument(
        "--channel",
        type=types.pair,
        action="append",
        default=[],
        metavar="NAME=S3_URI",
        help="a further channel, as validation=s3://...; may be repeated",
    )
    data.add_argument("--weights", metavar="S3_URI", help="pretrained weights: a state dict, or a folder of them")
    data.add_argument(
        "--input-mode",
        choices=("File", "FastFile"),
        default="File",
        help="copy the images before the start, or stream them as they are read; default %(default)s",
    )
    data.add_argument(
        "--hp",
        type=types.pair,
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="hyperparameters, as model=resnet18 lr=0.01; the README lists them",
    )
    machines = parser.add_argument_group("machines, and what they may cost")
    machines.add_argument(
        "--local", action="store_true", help="on this machine, with Docker; --instance-type local_gpu with its GPUs"
    )
    machines.add_argument("--instance-type", metavar="TYPE", help=f"default {_INSTANCE_TYPE}")
    machines.add_argument("--instance-count", type=types.positive, default=1, metavar="N", help="default %(default)s")
    machines.add_argument(
        "--max-run", type=types.duration, metavar="TIME", help="stop the job then; default 4h, with --local never"
    )
    machines.add_argument(
        "--spot",
        action="store_true",
        help="spare capacity, cheaper; a reclaimed job goes on from its newest checkpoint",
    )
    machines.add_argument(
        "--max-wait",
        type=types.duration,
        metavar="TIME",
        help="with --spot: running and waiting for capacity together; default twice --max-run",
    )
    machines.add_argument(
        "--checkpoints",
        type=types.s3_uri,
        metavar="S3_URI",
        help="folder that is synced with /opt/ml/checkpoints; --spot has one of its own",
    )
    machines.add_argument(
        "--warm-pool",
        type=types.duration,
        metavar="TIME",
        help="keep the instances for the next job, at most 1h; billed, and not with --spot",
    )
    machines.add_argument(
        "--volume-gb", type=types.positive, default=50, metavar="GB", help="disk, where the type has none of its own"
    )
    security = parser.add_argument_group("security")
    security.add_argument("--subnets", nargs="+", default=[], metavar="ID", help="run inside these subnets of your VPC")
    security.add_argument("--security-groups", nargs="+", default=[], metavar="ID", help="of that VPC")
    security.add_argument("--kms-key", metavar="KEY", help="encrypts the results, and disks that take a key")
    security.add_argument(
        "--network-isolation",
        action="store_true",
        help="no network inside the container: weights must come by --weights or be in the image",
    )
    other = parser.add_argument_group("other")
    other.add_argument("--name", type=types.job_name, help="of the job; default dogbreed and the UTC time")
    other.add_argument("--tags", type=types.pair, nargs="+", default=[], metavar="KEY=VALUE", help="for the bill")
    other.add_argument("--managed-debugger", action="store_true", help="AWS's rules as well; see above")
    other.add_argument("--no-wait", action="store_true", help="start the job, print its name and return")
    other.add_argument("--quiet", action="store_true", help="of the log, show only the lines with metrics")
    settings_module.add_arguments(parser, "role", "bucket", "prefix", "image")


def needs_region(arguments: argparse.Namespace) -> bool:
    """Whether the command talks to AWS at all."""
    return not arguments.local


def plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """One CreateTrainingJob."""
    if arguments.local:
        return [_local_plan(arguments, settings)]
    name = arguments.name or settings.unique_name("dogbreed")
    outputs = settings.s3_uri("jobs")
    parameters: dict[str, Any] = {
        "TrainingJobName": name,
        "RoleArn": settings.role,
        "AlgorithmSpecification": {
            "TrainingImage": settings.image,
            "TrainingInputMode": arguments.input_mode,
            "MetricDefinitions": [{"Name": metric, "Regex": regex} for metric, regex in METRIC_REGEXES.items()],
            "EnableSageMakerMetricsTimeSeries": True,
        },
        "HyperParameters": types.hyperparameters(arguments.hp),
        "InputDataConfig": _channels(arguments),
        "OutputDataConfig": {"S3OutputPath": outputs},
        "ResourceConfig": _resources(arguments),
        "StoppingCondition": _limits(arguments),
    }
    if arguments.kms_key:
        parameters["OutputDataConfig"]["KmsKeyId"] = arguments.kms_key
    if arguments.spot:
        parameters["EnableManagedSpotTraining"] = True
    if arguments.spot or arguments.checkpoints:
        parameters["CheckpointConfig"] = {"S3Uri": arguments.checkpoints or f"{outputs}/{name}/checkpoints"}
    if bool(arguments.subnets) != bool(arguments.security_groups):
        raise SettingError("--subnets and --security-groups go together: give both, or neither")
    if arguments.subnets:
        parameters["VpcConfig"] = {"Subnets": arguments.subnets, "SecurityGroupIds": arguments.security_groups}
    if arguments.network_isolation:
        parameters["EnableNetworkIsolation"] = True
    if arguments.tags:
        parameters["Tags"] = types.tags(arguments.tags)
    if arguments.managed_debugger:
        parameters |= _managed_debugger(settings.region, outputs)
    return [Call("sagemaker", "CreateTrainingJob", parameters)]


def run(calls: Sequence[Call], context: Context) -> int:
    """Starts the job, follows it and prints the URI of its model."""
    if context.arguments.local:
        return training.train(calls[0], context)
    (create,) = calls
    arguments, name = context.arguments, create.parameters["TrainingJobName"]
    context.say(_cost_line(create))
    context.aws.call(create)
    if arguments.no_wait:
        context.say(f"started; `launch.py logs {name} --follow` watches it, `launch.py stop {name}` ends it")
        print(name)
        return 0
    context.say(f"started {name}; Ctrl-C leaves it running")
    try:
        description = following.follow(context.aws, name, say=context.say, sleep=context.sleep, quiet=arguments.quiet)
    except KeyboardInterrupt:
        context.say(following.goes_on(name))
        return following.INTERRUPTED
    except ServiceError:
        context.say(
            f"{name} was started and may be running: `launch.py status {name}` tells, `launch.py stop {name}` ends it"
        )
        raise
    following.raise_if_failed(description)
    for line in following.outcome(description):
        context.say(line)
    context.say(f"`launch.py report {name}` fetches the report")
    print(following.model_uri(description) or name)
    return 0


def _local_plan(arguments: argparse.Namespace, settings: Settings) -> Call:
    """The request as the SDK's local mode takes it: folders for S3, and nothing that only the account has."""
    folders.refuse(
        {
            "--input-mode FastFile": arguments.input_mode == "FastFile",
            "--spot": arguments.spot,
            "--max-wait": arguments.max_wait,
            "--checkpoints": arguments.checkpoints,
            "--warm-pool": arguments.warm_pool,
            "--subnets": arguments.subnets,
            "--security-groups": arguments.security_groups,
            "--kms-key": arguments.kms_key,
            "--network-isolation": arguments.network_isolation,
            "--tags": arguments.tags,
            "--managed-debugger": arguments.managed_debugger,
            "--no-wait": arguments.no_wait,
        }
    )
    channels = [
        _channel(name, folders.given_uri(argument, text), "File") for argument, name, text in _given_channels(arguments)
    ]
    _check_names(channels)
    name = arguments.name or settings.unique_name("dogbreed")
    parameters = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {"TrainingImage": folders.image(settings), "TrainingInputMode": "File"},
        "HyperParameters": types.hyperparameters(arguments.hp),
        "InputDataConfig": channels,
        "OutputDataConfig": {"S3OutputPath": folders.uri_of(folders.job_folder(name))},
        "ResourceConfig": {
            "InstanceType": folders.instance_type(arguments.instance_type),
            "InstanceCount": arguments.instance_count,
        },
    }
    return Call("sagemaker", "CreateTrainingJob", parameters)


def _channels(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    channels = []
    for argument, name, text in _given_channels(arguments):
        uri = types.checked_s3_uri(argument, text)
        if name == _WEIGHTS_CHANNEL and argument == "--weights":
            folder = not uri.endswith(_WEIGHTS_SUFFIXES)
            # Read once and whole: there is nothing to stream.
            channels.append(_channel(name, uri.rstrip("/") + "/" if folder else uri, "File"))
        else:
            channels.append(_channel(name, uri.rstrip("/") + "/", arguments.input_mode))
    _check_names(channels)
    return channels


def _given_channels(arguments: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Argument, name of the channel, and where its data is; at least one with images."""
    given = [("--data", "train", arguments.data)] if arguments.data else []
    given += [("--channel", name, text) for name, text in arguments.channel]
    if not given:
        where = "FOLDER" if arguments.local else "s3://bucket/key, which `launch.py upload FOLDER` prints"
        raise SettingError(f"no data: give --data {where}")
    return given + ([("--weights", _WEIGHTS_CHANNEL, arguments.weights)] if arguments.weights else [])


def _check_names(channels: Sequence[Mapping[str, Any]]) -> None:
    names = [channel["ChannelName"] for channel in channels]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9.\-_]{1,64}", name):
            raise SettingError(f"channel {name!r} is not a name that SageMaker takes; give letters, digits and . - _")
        if names.count(name) > 1:
            raise SettingError(f"channel {name!r} is given twice: --data is `train`, --weights is `{_WEIGHTS_CHANNEL}`")


def _channel(name: str, uri: str, mode: str) -> dict[str, Any]:
    """A folder's URI ends with a slash: `dogs` alone is a prefix of `dogs-old` too."""
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": mode}


def _resources(arguments: argparse.Namespace) -> dict[str, Any]:
    instance_type = arguments.instance_type or _INSTANCE_TYPE
    resources = {
        "InstanceType": instance_type,
        "InstanceCount": arguments.instance_count,
        "VolumeSizeInGB": arguments.volume_gb,
    }
    if not instance_type.startswith("ml."):
        raise SettingError(f"--instance-type {instance_type!r} is not one of SageMaker's; they look like ml.g5.xlarge")
    if arguments.kms_key and _EBS_ONLY.match(instance_type):
        resources["VolumeKmsKeyId"] = arguments.kms_key
    if arguments.warm_pool:
        if arguments.spot:
            raise SettingError("--warm-pool and --spot exclude each other on SageMaker; give one of them")
        if arguments.warm_pool > _LONGEST_WARM_S:
            raise SettingError(f"--warm-pool is {arguments.warm_pool} s; give at most {_LONGEST_WARM_S} s")
        resources["KeepAlivePeriodInSeconds"] = arguments.warm_pool
    return resources


def _limits(arguments: argparse.Namespace) -> dict[str, int]:
    max_run = arguments.max_run or _RUN_S
    if max_run > _LONGEST_RUN_S:
        raise SettingError(f"--max-run is {max_run} s; SageMaker's limit is 28d")
    limits = {"MaxRuntimeInSeconds": max_run}
    if arguments.spot:
        wait = 2 * max_run if arguments.max_wait is None else arguments.max_wait
        # The API says greater or equal, the guide greater.
        if wait <= max_run:
            raise SettingError(
                f"--max-wait is {wait} s and --max-run {max_run} s; waiting includes running, so give more"
            )
        limits["MaxWaitTimeInSeconds"] = wait
    elif arguments.max_wait is not None:
        raise SettingError("--max-wait is for --spot; give both, or neither")
    return limits


def _managed_debugger(region: str, outputs: str) -> dict[str, Any]:
    account = _RULES_REGISTRIES.get(region)
    if account is None:
        raise SettingError(
            f"--managed-debugger: the registry of AWS's rules in {region} is not known here; known are "
            + ", ".join(sorted(_RULES_REGISTRIES))
        )
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    image = f"{account}.dkr.ecr.{region}.{domain}/sagemaker-debugger-rules:latest"
    return {
        "DebugHookConfig": {
            "S3OutputPath": outputs,
            "CollectionConfigurations": [{"CollectionName": "losses", "CollectionParameters": dict(_LOSSES)}],
        },
        "DebugRuleConfigurations": [
            {
                "RuleConfigurationName": rule,
                "RuleEvaluatorImage": image,
                "RuleParameters": {"rule_to_invoke": rule},
            }
            for rule in _RULES
        ],
    }


def _cost_line(create: Call) -> str:
    resources, limits = create.parameters["ResourceConfig"], create.parameters["StoppingCondition"]
    line = costs.line(resources["InstanceType"], resources["InstanceCount"], limits["MaxRuntimeInSeconds"])
    if "MaxWaitTimeInSeconds" in limits:
        line += f", at the spot price, over at most {types.in_words(limits['MaxWaitTimeInSeconds'])}"
    if "KeepAlivePeriodInSeconds" in resources:
        line += f", and {types.in_words(resources['KeepAlivePeriodInSeconds'])} as a warm pool after it"
    if "DebugRuleConfigurations" in create.parameters:
        line += "; AWS's rules run on machines of theirs"
    return line
