"""Predict every image under an S3 prefix, as a batch.

One object is one request (SplitType None), so the prefix must hold images alone, all of one --content-type; each gets
an object of its name with .out behind it, under OUTPUT. An object that cannot be decoded gets one with the error in it.
The job ends by itself, and costs until then.

  launch.py transform s3://bucket/photos s3://bucket/answers --job dogbreed-20261120-203105-042
  launch.py transform s3://bucket/photos s3://bucket/answers --model dogs-20261120-203105-042 --instance-count 4
  launch.py transform photos answers --local --job dogs-1        folders of this machine, in Docker, without an account

--local runs it by the SageMaker SDK's local mode: INPUT and OUTPUT are folders, searched in depth for images, and
--job names a local job (or --model-data a folder); one image at a time, none of them lost for the others.

CPU instances only: the newest driver that batch transform offers is 535, and the image's CUDA 13 needs 580. The model
that is made for the job is deleted after it, unless --keep-model or --no-wait is given.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dogbreed import imagefiles
from scripts.launcher import arguments as types
from scripts.launcher import hosting
from scripts.launcher import settings as settings_module
from scripts.launcher.context import Context
from scripts.launcher.errors import OutcomeError, ServiceError, SettingError
from scripts.launcher.local import folders, transforms
from scripts.launcher.plan import Call
from scripts.launcher.settings import Settings
from scripts.launcher.waiting import Progress, wait

_INSTANCE_TYPE = "ml.c5.xlarge"
_POLL_S = 20.0
# CreateTransformJob: MaxPayloadInMB is at most 100, and so is its product with MaxConcurrentTransforms.
_MAX_MB = 100
_MAX_INSTANCES = 100
_SHOWN = 5
# With more than this, counting the answers at every look would cost more than it tells.
_COUNTED = 5000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("input", metavar="INPUT", help="s3://bucket/prefix of the images")
    parser.add_argument("output", metavar="OUTPUT", help="s3://bucket/prefix for the answers")
    parser.add_argument("--local", action="store_true", help="on this machine, with Docker; see above")
    sources = parser.add_mutually_exclusive_group(required=True)
    sources.add_argument("--model", type=types.job_name, metavar="NAME", help="a SageMaker model that exists")
    hosting.add_model_arguments(parser, sources)
    settings_module.add_arguments(parser, "image", "role")
    job = parser.add_argument_group("the job")
    job.add_argument(
        "--name",
        type=hosting.base_name,
        default="dogbreed-transform",
        metavar="NAME",
        help="beginning of its name (%(default)s)",
    )
    job.add_argument("--instance-type", metavar="TYPE", help=f"default {_INSTANCE_TYPE}")
    job.add_argument("--instance-count", type=int, default=1, metavar="N", help="1 to 100 (default %(default)s)")
    job.add_argument("--content-type", default="image/jpeg", metavar="TYPE", help="of every object (%(default)s)")
    job.add_argument("--accept", default="application/json", metavar="TYPE", help="of every answer (%(default)s)")
    job.add_argument(
        "--max-payload", type=int, default=20, metavar="MB", help="largest object, 1 to 100 (default %(default)s)"
    )
    job.add_argument(
        "--max-concurrent",
        type=int,
        metavar="N",
        help="requests at once per instance; N times --max-payload is at most 100 (default: the container says)",
    )
    job.add_argument("--timeout", type=int, default=600, metavar="S", help="per request, 1 to 3600 (%(default)s)")
    job.add_argument("--retries", type=int, default=3, metavar="N", help="per request, 0 to 3 (default %(default)s)")
    job.add_argument("--keep-model", action="store_true", help="do not delete the model that was made for the job")
    job.add_argument("--no-wait", action="store_true", help="return as soon as AWS has taken the requests")


def needs_region(arguments: argparse.Namespace) -> bool:
    """Whether the command talks to AWS at all."""
    return not arguments.local


def plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """The model, unless it exists, and the job."""
    name = settings.unique_name(arguments.name)
    if arguments.local:
        return _local_plan(arguments, settings, name)
    types.checked_s3_uri("INPUT", arguments.input)
    types.checked_s3_uri("OUTPUT", arguments.output)
    calls = [] if arguments.model else hosting.model_calls(arguments, settings, name)
    return [*calls, _job(arguments, name)]


def run(calls: Sequence[Call], context: Context) -> int:
    """Looks at the input, starts the job, waits, and counts the answers."""
    arguments = context.arguments
    if arguments.local:
        return _run_here(calls, context)
    job = calls[-1]
    name = job.parameters["TransformJobName"]
    # Read from the plan, where they have been checked.
    inputs = _keys(context, job.parameters["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"])
    if not inputs:
        raise SettingError(f"there is no object under {arguments.input}")
    _warn_of_strays(inputs, context)
    resources = job.parameters["TransformResources"]
    context.say(
        f"cost: {resources['InstanceCount']} x {resources['InstanceType']} until {len(inputs)} objects are done; "
        "AWS has no other limit for it"
    )
    hosting.send(calls, context.aws)
    stop = f"aws sagemaker stop-transform-job --transform-job-name {name} --region {context.settings.region}"
    if arguments.no_wait:
        print(f"transform {name} is on its way: launch.py status\nto stop it: {stop}")
        return 0
    try:
        _wait(context, name, inputs)
    except KeyboardInterrupt:
        context.say(f"transform {name} goes on without being watched; to stop it: {stop}")
        raise
    try:
        return _report(context, name, inputs)
    finally:
        if not arguments.model and not arguments.keep_model:
            context.aws.call(Call("sagemaker", "DeleteModel", {"ModelName": name}))


def _local_plan(arguments: argparse.Namespace, settings: Settings, name: str) -> list[Call]:
    """The requests as the SDK's local mode takes them."""
    folders.refuse(
        {
            "--model": arguments.model,
            "--instance-count": arguments.instance_count != 1,
            "--max-concurrent": arguments.max_concurrent,
            "--keep-model": arguments.keep_model,
            "--no-wait": arguments.no_wait,
            **hosting.account_only(arguments),
        }
    )
    if not Path(arguments.input).is_dir():
        raise SettingError(f"INPUT {arguments.input}: with --local give a folder of this machine")
    if arguments.output.startswith("s3://"):
        raise SettingError(f"OUTPUT {arguments.output}: with --local give a folder of this machine")
    images = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": folders.uri_of(Path(arguments.input))}}
    parameters = {
        "TransformJobName": name,
        "ModelName": name,
        "BatchStrategy": "SingleRecord",
        "MaxPayloadInMB": arguments.max_payload,
        "TransformInput": {"DataSource": images, "ContentType": arguments.content_type},
        "TransformOutput": {"S3OutputPath": folders.uri_of(Path(arguments.output)), "Accept": arguments.accept},
        "TransformResources": {
            "InstanceType": folders.instance_type(arguments.instance_type),
            "InstanceCount": arguments.instance_count,
        },
    }
    return [
        folders.model_call(name, settings, folders.model(arguments.job, arguments.model_data), dict(arguments.env)),
        Call("sagemaker", "CreateTransformJob", parameters),
    ]


def _run_here(calls: Sequence[Call], context: Context) -> int:
    arguments = context.arguments
    model, create = calls
    source = Path(arguments.input)
    images = [path.relative_to(source) for path in hosting.images_below(source)]
    readable = [image for image in images if (source / image).is_file()]
    refused = {image: "no file with content" for image in images if image not in readable}
    refused |= transforms.transform(model, create, readable, context)
    for image, reason in refused.items():
        context.say(f"{image}: {reason}")
    without = f"; no answer for {_some([str(image) for image in refused])}" if refused else ""
    context.say(f"{len(images) - len(refused)} of {len(images)} images were answered{without}")
    print(arguments.output)
    return 1 if refused else 0


def _job(arguments: argparse.Namespace, name: str) -> Call:
    instance_type = arguments.instance_type or _INSTANCE_TYPE
    for argument, value, low, high in (
        ("--instance-count", arguments.instance_count, 1, _MAX_INSTANCES),
        ("--max-payload", arguments.max_payload, 1, _MAX_MB),
        ("--max-concurrent", arguments.max_concurrent, 1, _MAX_MB),
        ("--timeout", arguments.timeout, 1, 3600),
        ("--retries", arguments.retries, 0, 3),
    ):
        hosting.check_range(argument, value, low, high)
    if arguments.max_concurrent and arguments.max_concurrent * arguments.max_payload > _MAX_MB:
        raise SettingError(
            f"--max-concurrent {arguments.max_concurrent} times --max-payload {arguments.max_payload} is over "
            f"{_MAX_MB} MB; with this payload give at most {_MAX_MB // arguments.max_payload}"
        )
    if hosting.has_gpu(instance_type):
        raise SettingError(
            f"--instance-type {instance_type} has GPUs, and the newest driver that batch transform has "
            "is 535, while CUDA 13 needs 580; take a CPU instance such as ml.c7i.4xlarge"
        )
    kms = arguments.kms_key
    parameters: dict[str, object] = {
        "TransformJobName": name,
        "ModelName": arguments.model or name,
        "MaxPayloadInMB": arguments.max_payload,
        "ModelClientConfig": {
            "InvocationsTimeoutInSeconds": arguments.timeout,
            "InvocationsMaxRetries": arguments.retries,
        },
        "TransformInput": {
            # With the slash: a prefix is a text, and `photos` would take `photos-old/` too.
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": arguments.input.rstrip("/") + "/"}},
            "ContentType": arguments.content_type,
            "CompressionType": "None",
            "SplitType": "None",
        },
        "TransformOutput": {
            "S3OutputPath": arguments.output.rstrip("/"),
            "Accept": arguments.accept,
            "AssembleWith": "None",
            **({"KmsKeyId": kms} if kms else {}),
        },
        "TransformResources": {
            "InstanceType": instance_type,
            "InstanceCount": arguments.instance_count,
            **({"VolumeKmsKeyId": kms} if kms else {}),
        },
        **hosting.tags(arguments),
    }
    if arguments.max_concurrent:
        parameters["MaxConcurrentTransforms"] = arguments.max_concurrent
    return Call("sagemaker", "CreateTransformJob", parameters)


def _keys(context: Context, uri: str) -> list[str]:
    """Names of the objects under the prefix, without the prefix; the empty objects that stand for folders are none."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    pages = context.aws.pages(Call("s3", "ListObjectsV2", {"Bucket": bucket, "Prefix": prefix}))
    keys = [str(item["Key"]) for page in pages for item in page.get("Contents", [])]
    return [key.removeprefix(prefix) for key in keys if not key.endswith("/")]


def _warn_of_strays(inputs: Sequence[str], context: Context) -> None:
    """Every object is sent, a forgotten .DS_Store as well, and fails the job in the end."""
    strays = [key for key in inputs if not key.lower().endswith(imagefiles.SUFFIXES)]
    if strays:
        context.say(f"{len(strays)} of {len(inputs)} objects do not look like images and may fail: {_some(strays)}")


def _wait(context: Context, name: str, inputs: Sequence[str]) -> None:
    """Waits for the job's end, whatever it is."""

    def ask() -> str | None:
        status = context.aws.call(Call("sagemaker", "DescribeTransformJob", {"TransformJobName": name}))
        if status["TransformJobStatus"] in ("Completed", "Failed", "Stopped"):
            return None
        state = str(status["TransformJobStatus"])
        return state if len(inputs) > _COUNTED else f"{state}, {len(_answered(context, inputs))} of {len(inputs)}"

    wait(ask, Progress(f"transform {name}"), context.sleep, every_s=_POLL_S)


def _answered(context: Context, inputs: Sequence[str]) -> set[str]:
    """Those inputs whose answer lies in the output."""
    output = context.arguments.output.rstrip("/") + "/"
    return {key.removesuffix(".out") for key in _keys(context, output) if key.endswith(".out")} & set(inputs)


def _report(context: Context, name: str, inputs: Sequence[str]) -> int:
    """Says what was answered and what was not.

    Raises:
        OutcomeError: the job failed or was stopped; FailureReason stands first.
    """
    job = context.aws.call(Call("sagemaker", "DescribeTransformJob", {"TransformJobName": name}))
    try:
        answered = _answered(context, inputs)
    except ServiceError as error:
        context.say(f"the answers could not be counted: {error}")
        answered = set()
    missing = [key for key in inputs if key not in answered]
    count = f"{len(answered)} of {len(inputs)} objects were answered"
    without = f"; no answer for {_some(missing)}" if missing else ""
    if job["TransformJobStatus"] != "Completed":
        reason = job.get("FailureReason") or f"the job is {job['TransformJobStatus']}"
        raise OutcomeError(
            f"{reason}\ntransform {name} is {job['TransformJobStatus']}; {count}{without}\n"
            f"the container's own words: launch.py logs {name} --kind transform"
        )
    context.say(f"{count}{without}")
    print(context.arguments.output)
    return 1 if missing else 0


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
