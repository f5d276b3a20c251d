"""What training jobs have in common, alone or as the trials of a search: channels, machines, limits, security.

Declares the arguments that `train` and `tune` share, and makes of them the parts of their requests. Pure.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dogbreed.logs import METRIC_REGEXES
from scripts.launcher import arguments as types
from scripts.launcher import costs
from scripts.launcher.errors import SettingError
from scripts.launcher.settings import Settings

INSTANCE_TYPE = "ml.g4dn.xlarge"
"""Where none is given."""

_RUN_S = 4 * 3600
_LONGEST_RUN_S = 28 * 86400
# The API takes 21600 s, its documentation says 3600.
_LONGEST_WARM_S = 3600
_WEIGHTS_CHANNEL = "pretrained"
_WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors")
_RECORDS_SUFFIX = ".rec"
# Channels with lists, and the files that they may be.
_LIST_SUFFIX = "_lst"
_LIST_FILES = (".lst", ".manifest", ".jsonl")
# Families without disks of their own. The others encrypt theirs in hardware and refuse a VolumeKmsKeyId
# (API reference: ResourceConfig).
_EBS_ONLY = re.compile(r"ml\.(t3|p2|p3|[mcr]\d+(n|i|i-flex)?)\.")


def add_data_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Declares what goes in; returns the group."""
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
        choices=("File", "FastFile", "Pipe"),
        default="File",
        help="copy the images before the start, stream them as they are read, or all at once from a manifest or "
        "RecordIO; default %(default)s",
    )
    data.add_argument(
        "--manifest-attributes",
        nargs="+",
        default=[],
        metavar="NAME",
        help="with --input-mode Pipe: the data are augmented manifests, in which these are image and label, as "
        "source-ref class",
    )
    types.add_pairs(data, "--hp", "NAME=VALUE", "hyperparameters, as model=resnet18 lr=0.01; the README lists them")
    return data


def add_machine_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Declares the machines and the limits of one job; returns the group."""
    machines = parser.add_argument_group("machines, and what they may cost")
    machines.add_argument("--instance-type", metavar="TYPE", help=f"default {INSTANCE_TYPE}")
    machines.add_argument("--instance-count", type=types.positive, default=1, metavar="N", help="default %(default)s")
    machines.add_argument(
        "--max-run", type=types.duration, metavar="TIME", help="stop a job then; default 4h, with --local never"
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
        "--warm-pool",
        type=types.duration,
        metavar="TIME",
        help="keep the instances for the next job, at most 1h; billed, and not with --spot",
    )
    machines.add_argument(
        "--volume-gb", type=types.positive, default=50, metavar="GB", help="disk, where the type has none of its own"
    )
    return machines


def add_security_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares network and keys."""
    security = parser.add_argument_group("security")
    security.add_argument("--subnets", nargs="+", default=[], metavar="ID", help="run inside these subnets of your VPC")
    security.add_argument("--security-groups", nargs="+", default=[], metavar="ID", help="of that VPC")
    security.add_argument("--kms-key", metavar="KEY", help="encrypts the results, and disks that take a key")
    security.add_argument(
        "--network-isolation",
        action="store_true",
        help="no network inside the container: weights must come by --weights or be in the image",
    )


def account_only(arguments: argparse.Namespace) -> dict[str, object]:
    """The shared options that mean nothing with --local, and what was given for each."""
    return {
        f"--input-mode {arguments.input_mode}": arguments.input_mode != "File",
        "--manifest-attributes": arguments.manifest_attributes,
        "--spot": arguments.spot,
        "--max-wait": arguments.max_wait,
        "--warm-pool": arguments.warm_pool,
        "--subnets": arguments.subnets,
        "--security-groups": arguments.security_groups,
        "--kms-key": arguments.kms_key,
        "--network-isolation": arguments.network_isolation,
        "--tags": arguments.tags,
        "--no-wait": arguments.no_wait,
    }


def definition(arguments: argparse.Namespace, settings: Settings, checkpoints: str | None) -> dict[str, Any]:
    """The members that CreateTrainingJob and a tuning job's TrainingJobDefinition spell alike.

    Args:
        arguments: with all that this module declares.
        settings: role, image and bucket.
        checkpoints: URI that is synced with the checkpoint folder; None for none.

    Raises:
        SettingError: something is missing or does not go together.
    """
    parameters: dict[str, Any] = {
        "RoleArn": settings.role,
        "AlgorithmSpecification": {
            "TrainingImage": settings.image,
            "TrainingInputMode": arguments.input_mode,
            "MetricDefinitions": [{"Name": metric, "Regex": regex} for metric, regex in METRIC_REGEXES.items()],
        },
        "InputDataConfig": channels(arguments),
        "OutputDataConfig": {"S3OutputPath": settings.s3_uri("jobs")},
        "ResourceConfig": _resources(arguments),
        "StoppingCondition": _limits(arguments),
    }
    if arguments.kms_key:
        parameters["OutputDataConfig"]["KmsKeyId"] = arguments.kms_key
    if arguments.spot:
        parameters["EnableManagedSpotTraining"] = True
    if checkpoints:
        parameters["CheckpointConfig"] = {"S3Uri": checkpoints}
    if bool(arguments.subnets) != bool(arguments.security_groups):
        raise SettingError("--subnets and --security-groups go together: give both, or neither")
    if arguments.subnets:
        parameters["VpcConfig"] = {"Subnets": arguments.subnets, "SecurityGroupIds": arguments.security_groups}
    if arguments.network_isolation:
        parameters["EnableNetworkIsolation"] = True
    return parameters


def cost_line(parameters: Mapping[str, Any]) -> str:
    """What one job of a definition may cost."""
    resources, limits = parameters["ResourceConfig"], parameters["StoppingCondition"]
    line = costs.line(resources["InstanceType"], resources["InstanceCount"], limits["MaxRuntimeInSeconds"])
    if "MaxWaitTimeInSeconds" in limits:
        line += f", at the spot price, over at most {types.in_words(limits['MaxWaitTimeInSeconds'])}"
    if "KeepAlivePeriodInSeconds" in resources:
        line += f", and {types.in_words(resources['KeepAlivePeriodInSeconds'])} as a warm pool after it"
    return line


def channels(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The InputDataConfig of what was given, in S3."""
    _check_attributes(arguments)
    found = []
    for argument, name, text in given_channels(arguments):
        uri = types.checked_s3_uri(argument, text)
        if name == _WEIGHTS_CHANNEL and argument == "--weights":
            folder = not uri.endswith(_WEIGHTS_SUFFIXES)
            # Read once and whole: there is nothing to stream.
            found.append(channel(name, uri.rstrip("/") + "/" if folder else uri, "File"))
        elif name.endswith(_LIST_SUFFIX):
            found.append(channel(name, uri if uri.endswith(_LIST_FILES) else uri.rstrip("/") + "/", "File"))
        elif arguments.input_mode == "Pipe":
            found.append(_piped_channel(argument, name, uri, arguments.manifest_attributes))
        else:
            found.append(channel(name, uri.rstrip("/") + "/", arguments.input_mode))
    check_names(found)
    return found


def _check_attributes(arguments: argparse.Namespace) -> None:
    """Raises SettingError when they cannot be those of images with labels."""
    names = arguments.manifest_attributes
    if not names:
        return
    given = f"--manifest-attributes {' '.join(names)}"
    if arguments.input_mode != "Pipe":
        raise SettingError(
            f"{given}: SageMaker reads augmented manifests in Pipe mode alone; add --input-mode Pipe, or leave the "
            f"attributes out and give the folder that holds both images and manifest"
        )
    images = [name for name in names if name.endswith("-ref")]
    if len(images) != 1 or not 2 <= len(names) <= 3 or len(set(names)) != len(names):
        raise SettingError(f"{given}: give the image, its label and perhaps the label's metadata, as source-ref class")


def _piped_channel(argument: str, name: str, uri: str, attributes: Sequence[str]) -> dict[str, Any]:
    """One channel in Pipe mode: an augmented manifest with these attributes, or RecordIO files where there are none."""
    if not attributes:
        found = channel(name, uri if uri.endswith(_RECORDS_SUFFIX) else uri.rstrip("/") + "/", "Pipe")
    else:
        if uri.endswith("/"):
            raise SettingError(f"{argument}: {uri} is a folder; with --manifest-attributes give the manifest's own URI")
        found = channel(name, uri, "Pipe")
        found["DataSource"]["S3DataSource"] |= {
            "S3DataType": "AugmentedManifestFile",
            "AttributeNames": list(attributes),
        }
        found["RecordWrapperType"] = "RecordIO"
    return {**found, "ContentType": "application/x-recordio"}


def given_channels(arguments: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Argument, name of the channel, and where its data is; at least one with images."""
    given = [("--data", "train", arguments.data)] if arguments.data else []
    given += [("--channel", name, text) for name, text in arguments.channel]
    if not given:
        where = "FOLDER" if arguments.local else "s3://bucket/key, which `launch.py upload FOLDER` prints"
        raise SettingError(f"no data: give --data {where}")
    return given + ([("--weights", _WEIGHTS_CHANNEL, arguments.weights)] if arguments.weights else [])


def check_names(given: Sequence[Mapping[str, Any]]) -> None:
    """Refuses names that SageMaker does not take, and those that stand twice."""
    names = [one["ChannelName"] for one in given]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9.\-_]{1,64}", name):
            raise SettingError(f"channel {name!r} is not a name that SageMaker takes; give letters, digits and . - _")
        if names.count(name) > 1:
            raise SettingError(f"channel {name!r} is given twice: --data is `train`, --weights is `{_WEIGHTS_CHANNEL}`")


def channel(name: str, uri: str, mode: str) -> dict[str, Any]:
    """One channel, of S3 or this machine. A folder's URI ends with a slash: `dogs` is a prefix of `dogs-old` too."""
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": mode}


def _resources(arguments: argparse.Namespace) -> dict[str, Any]:
    instance_type = arguments.instance_type or INSTANCE_TYPE
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
