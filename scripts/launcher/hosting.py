"""What an endpoint and a batch transform have in common: a model made of a bundle, and machines that fit the image.

Arguments and settings in, requests out; only `send` talks to AWS, through what it is given.

Sources: CreateModel and ProductionVariant in boto's service model; the instance families are those of its
ProductionVariantInstanceType. CUDA 13, which the image carries, needs NVIDIA driver 580 and a GPU of the Turing
generation or later (CUDA 13.0 release notes).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dogbreed import imagefiles
from scripts.launcher import arguments as types
from scripts.launcher import following
from scripts.launcher.aws import Aws
from scripts.launcher.errors import OutcomeError, SettingError
from scripts.launcher.plan import Call
from scripts.launcher.settings import Settings

ENDPOINT_AMI = "al2023-ami-sagemaker-inference-gpu-4-1"
"""The hosting machine image with driver 580. Without it SageMaker takes an older driver, and CUDA 13 does not start."""

_OWN_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
}

IMAGE_TYPES = {suffix: _OWN_TYPES.get(suffix, "application/x-image") for suffix in imagefiles.SUFFIXES}
"""File name endings of images, and the Content-Type that the container takes for them: SageMaker's name for any image
where it takes no name of their own."""

_MODEL_OF_JOB = "${DescribeTrainingJob.ModelArtifacts.S3ModelArtifacts}"
# SageMaker's limit of 63, less what Settings.unique_name appends.
_BASE_MAX_CHARACTERS = 63 - len("-20261120-203105-042")
_STAMP = r"-\d{8}-\d{6}-\d{3}"

_INSTANCE_TYPE = re.compile(r"ml\.(?P<family>[a-z0-9-]+)\.[a-z0-9]+")
_GPU = re.compile(r"[gp]\d")
_OLD_GPU = ("p2", "p3")
_ARM = re.compile(r"[cmrt]\d+g[dn]*|p6e-gb200")
_OTHER_ACCELERATOR = re.compile(r"(inf|trn|dl)\d")


def add_model_arguments(parser: argparse.ArgumentParser, sources: argparse._MutuallyExclusiveGroup) -> None:
    """Declares where the model comes from, how its container runs, and what is made for it.

    Args:
        parser: of the command.
        sources: of which exactly one must be given; the command may have added one of its own.
    """
    sources.add_argument("--job", type=types.job_name, metavar="JOB", help="take the model of this training job")
    sources.add_argument(
        "--model-data", metavar="S3_URI", help="take this model.tar.gz; with --local a file, or a folder with a bundle"
    )
    container = parser.add_argument_group("container and security")
    container.add_argument(
        "--env", type=types.pair, nargs="+", default=[], metavar="NAME=VALUE", help="environment of the container"
    )
    container.add_argument(
        "--subnets", nargs="+", default=[], metavar="ID", help="run inside these subnets of your VPC"
    )
    container.add_argument("--security-groups", nargs="+", default=[], metavar="ID", help="of that VPC")
    container.add_argument("--kms-key", metavar="KEY", help="encrypts disks that take a key, and what is written to S3")
    container.add_argument("--network-isolation", action="store_true", help="no network inside the container")
    container.add_argument("--tags", type=types.pair, nargs="+", default=[], metavar="KEY=VALUE", help="for the bill")


def account_only(arguments: argparse.Namespace) -> dict[str, object]:
    """Those of the arguments above that mean nothing on one machine, and what was given for them."""
    return {
        "--subnets": arguments.subnets,
        "--security-groups": arguments.security_groups,
        "--kms-key": arguments.kms_key,
        "--network-isolation": arguments.network_isolation,
        "--tags": arguments.tags,
    }


def model_calls(arguments: argparse.Namespace, settings: Settings, model_name: str) -> list[Call]:
    """CreateModel, after DescribeTrainingJob when the model is a job's; `send` puts its answer in."""
    container: dict[str, Any] = {"Image": settings.image, "ModelDataUrl": arguments.model_data or _MODEL_OF_JOB}
    if not arguments.job:
        types.checked_s3_uri("--model-data", arguments.model_data)
    if not arguments.job and not arguments.model_data.endswith(".tar.gz"):
        raise SettingError(f"--model-data={arguments.model_data} must name the model.tar.gz itself")
    if arguments.env:
        container["Environment"] = dict(arguments.env)
    parameters: dict[str, Any] = {
        "ModelName": model_name,
        "PrimaryContainer": container,
        "ExecutionRoleArn": settings.role,
        **tags(arguments),
    }
    if bool(arguments.subnets) != bool(arguments.security_groups):
        raise SettingError("--subnets and --security-groups go together: give both, or neither")
    if arguments.subnets:
        parameters["VpcConfig"] = {"Subnets": arguments.subnets, "SecurityGroupIds": arguments.security_groups}
    if arguments.network_isolation:
        parameters["EnableNetworkIsolation"] = True
    described = [following.describe(arguments.job)] if arguments.job else []
    return [*described, Call("sagemaker", "CreateModel", parameters)]


def send(calls: Iterable[Call], aws: Aws) -> None:
    """Sends the calls in order; the model of a job that was described goes into CreateModel.

    Raises:
        OutcomeError: the job has left no model; why stands first.
    """
    model_data: str | None = None
    for call in calls:
        if call.operation == "DescribeTrainingJob":
            description = aws.call(call)
            following.raise_if_failed(description)
            model_data = following.model_uri(description)
            if model_data is None or description["TrainingJobStatus"] not in following.ENDED:
                raise OutcomeError(
                    f"training job {description['TrainingJobName']} is {description['TrainingJobStatus']} and has left "
                    "no model yet; `launch.py status` tells when it is done"
                )
        elif call.operation == "CreateModel" and model_data:
            container = {**call.parameters["PrimaryContainer"], "ModelDataUrl": model_data}
            aws.call(Call(call.service, call.operation, {**call.parameters, "PrimaryContainer": container}))
        else:
            aws.call(call)


def base_name(text: str) -> str:
    """Type of an argument: a name that leaves room for the time, which is part of the names made of it."""
    if len(types.job_name(text)) > _BASE_MAX_CHARACTERS:
        raise argparse.ArgumentTypeError(f"{text!r} is too long; give {_BASE_MAX_CHARACTERS} characters at most")
    return text


def versions_of(name: str, found: Iterable[str]) -> list[str]:
    """Those of the names found that were made for the endpoint: its own name and a time."""
    pattern = re.compile(re.escape(name) + _STAMP)
    return [one for one in found if pattern.fullmatch(one)]


def images_below(folder: Path) -> list[Path]:
    """The images of a folder and those below it, sorted.

    Raises:
        SettingError: there is none, or the name of one is not UTF-8.
    """
    found = imagefiles.images_below(folder)
    check_names(found)
    if not found:
        raise SettingError(f"{folder} holds no image; these are looked for: {', '.join(imagefiles.SUFFIXES)}")
    return found


def check_names(paths: Iterable[Path]) -> None:
    """Raises `SettingError` for a name that neither a table nor S3 takes."""
    objection = imagefiles.objection_to_names(paths)
    if objection is not None:
        raise SettingError(objection)


def has_gpu(instance_type: str) -> bool:
    """Whether the instance type has GPUs, after refusing those on which the image cannot run.

    Raises:
        SettingError: not an instance type, or one that the image is not built for.
    """
    match = _INSTANCE_TYPE.fullmatch(instance_type)
    if match is None:
        raise SettingError(f"--instance-type {instance_type!r} is not one of SageMaker's; they look like ml.g5.xlarge")
    family = match["family"]
    if _ARM.fullmatch(family):
        raise SettingError(f"--instance-type {instance_type} has ARM processors, and the image is built for x86-64")
    if _OTHER_ACCELERATOR.match(family):
        raise SettingError(f"--instance-type {instance_type} has accelerators that the image's PyTorch cannot use")
    if family in _OLD_GPU:
        raise SettingError(f"--instance-type {instance_type} has GPUs too old for CUDA 13; take ml.g4dn or later")
    return bool(_GPU.match(family))


def tags(arguments: argparse.Namespace) -> dict[str, list[dict[str, str]]]:
    """`Tags` as a request has them, or nothing when none were given."""
    return {"Tags": types.tags(arguments.tags)} if arguments.tags else {}


def check_range(argument: str, value: float | None, low: float, high: float) -> None:
    """Refuses a number outside of AWS's limits, with one sentence that names them."""
    if value is not None and not low <= value <= high:
        raise SettingError(f"{argument} {value} is not allowed; give {low:g} to {high:g}")
