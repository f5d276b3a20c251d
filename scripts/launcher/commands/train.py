r"""Train on SageMaker, and follow the job until it has ended.

    launch.py train --data s3://bucket/dogbreed/data/dogs/ --weights s3://bucket/w/resnet18.pth \
        --hp model=resnet18 lr=0.01 --instance-type ml.g5.xlarge --spot

Hyperparameters are checked here, before anything is started. Log, status and metrics come to stderr while the job
runs; the last line, on stdout, is the URI of its model. Ctrl-C stops the watching, not the job. The insight report is
made by the image in every job and needs no option: `launch.py report NAME` fetches it.

--from-best takes the hyperparameters that `launch.py tune` found, from its file or from the tuning job by its name.

--local trains on this machine instead, in the image, by the SageMaker SDK's local mode and Docker; no account, region
or network is needed. --data, --channel and --weights are folders or files, --instance-count the number of containers:

    launch.py train --local --data photos --weights resnet18.pth --hp model=resnet18 --instance-count 2

The bundle is in build/local/NAME/model, the report in build/local/NAME/output; Ctrl-C stops such a job, as the platform
would, and keeps the model of its best epoch.

--managed-debugger attaches AWS's own SageMaker Debugger as well, with the rules named, such as
`--managed-debugger Overfit:patience=2 VanishingGradient LowGPUUtilization`, or with LossNotDecreasing, Overfit and
ProfilerReport. AWS closed that service to new customers on 2026-07-30: only accounts that used it before can start such
a job. --tensorboard lets the platform send what the image writes for TensorBoard to S3 while the job runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.launcher import arguments as types
from scripts.launcher import debugger, following, jobs
from scripts.launcher import settings as settings_module
from scripts.launcher.context import Context
from scripts.launcher.errors import ServiceError, SettingError
from scripts.launcher.local import folders, training
from scripts.launcher.plan import Call
from scripts.launcher.search import trials, tuning
from scripts.launcher.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    data = jobs.add_data_arguments(parser)
    data.add_argument(
        "--from-best",
        metavar="FILE|JOB",
        help="the best hyperparameters of a search: the file that `launch.py tune` wrote, or a tuning job; --hp goes "
        "before them",
    )
    machines = jobs.add_machine_arguments(parser)
    machines.add_argument(
        "--local", action="store_true", help="on this machine, with Docker; --instance-type local_gpu with its GPUs"
    )
    machines.add_argument(
        "--checkpoints",
        type=types.s3_uri,
        metavar="S3_URI",
        help="folder that is synced with /opt/ml/checkpoints; --spot has one of its own",
    )
    jobs.add_security_arguments(parser)
    other = parser.add_argument_group("other")
    other.add_argument("--name", type=types.job_name, help="of the job; default dogbreed and the UTC time")
    other.add_argument("--tags", type=types.pair, nargs="+", default=[], metavar="KEY=VALUE", help="for the bill")
    other.add_argument("--managed-debugger", nargs="*", metavar="RULE", help="AWS's rules as well; see above")
    other.add_argument("--tensorboard", action="store_true", help="curves and histograms for TensorBoard, live in S3")
    other.add_argument("--no-wait", action="store_true", help="start the job, print its name and return")
    other.add_argument("--quiet", action="store_true", help="of the log, show only the lines with metrics")
    settings_module.add_arguments(parser, "role", "bucket", "prefix", "image")


def needs_region(arguments: argparse.Namespace) -> bool:
    """Whether the command talks to AWS at all."""
    return not arguments.local


def plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """One CreateTrainingJob; before it the description of the tuning job that has its hyperparameters."""
    if arguments.local:
        return [_local_plan(arguments, settings)]
    name = arguments.name or settings.unique_name("dogbreed")
    outputs = settings.s3_uri("jobs")
    checkpoints = arguments.checkpoints or (f"{outputs}/{name}/checkpoints" if arguments.spot else None)
    parameters = {
        "TrainingJobName": name,
        "HyperParameters": _hyperparameters(arguments),
        **jobs.definition(arguments, settings, checkpoints),
    }
    parameters["AlgorithmSpecification"]["EnableSageMakerMetricsTimeSeries"] = True
    if arguments.tags:
        parameters["Tags"] = types.tags(arguments.tags)
    if arguments.managed_debugger is not None:
        parameters |= debugger.request_parts(arguments.managed_debugger, region=settings.region, outputs=outputs)
    if arguments.tensorboard:
        parameters["TensorBoardOutputConfig"] = {"S3OutputPath": outputs}
    create = Call("sagemaker", "CreateTrainingJob", parameters)
    search = _search(arguments)
    return [tuning.describe(search), create] if search else [create]


def run(calls: Sequence[Call], context: Context) -> int:
    """Starts the job, follows it and prints the URI of its model."""
    if context.arguments.local:
        return training.train(calls[0], context)
    arguments, create = context.arguments, calls[-1]
    name = create.parameters["TrainingJobName"]
    if len(calls) > 1:
        best = tuning.best_of(context.aws.call(calls[0]))
        context.say(trials.spoken(best))
        together = _overridden(best.hyperparameters, arguments)
        create = Call(create.service, create.operation, {**create.parameters, "HyperParameters": together})
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
    only = {
        "--checkpoints": arguments.checkpoints,
        "--managed-debugger": arguments.managed_debugger is not None,
        "--tensorboard": arguments.tensorboard,
    }
    folders.refuse(jobs.account_only(arguments) | only)
    channels = [
        jobs.channel(name, folders.given_uri(argument, text), "File")
        for argument, name, text in jobs.given_channels(arguments)
    ]
    jobs.check_names(channels)
    name = arguments.name or settings.unique_name("dogbreed")
    parameters = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {"TrainingImage": folders.image(settings), "TrainingInputMode": "File"},
        "HyperParameters": _hyperparameters(arguments),
        "InputDataConfig": channels,
        "OutputDataConfig": {"S3OutputPath": folders.uri_of(folders.job_folder(name))},
        "ResourceConfig": {
            "InstanceType": folders.instance_type(arguments.instance_type),
            "InstanceCount": arguments.instance_count,
        },
    }
    return Call("sagemaker", "CreateTrainingJob", parameters)


def _best_file(arguments: argparse.Namespace) -> Path | None:
    """The file that --from-best names, or that a search of that name has left; None where it names a tuning job."""
    given = arguments.from_best
    if given is None:
        return None
    return next((file for file in (Path(given), trials.FOLDER / f"{given}.json") if file.is_file()), None)


def _search(arguments: argparse.Namespace) -> str | None:
    """The tuning job whose best only AWS knows."""
    return arguments.from_best if arguments.from_best and not _best_file(arguments) else None


def _hyperparameters(arguments: argparse.Namespace) -> dict[str, str] | str:
    file, given = _best_file(arguments), arguments.from_best
    if file is not None:
        return _overridden(trials.read(file).hyperparameters, arguments)
    checked = types.hyperparameters(arguments.hp)
    if given is None:
        return checked
    if arguments.local or "/" in given or given.endswith(".json"):
        raise SettingError(f"--from-best {given}: there is no such file; `launch.py tune` writes one at its end")
    try:
        types.job_name(given)
    except argparse.ArgumentTypeError as error:
        raise SettingError(f"--from-best {given}: neither a file nor a tuning job: {error}") from error
    return "${DescribeHyperParameterTuningJob.BestTrainingJob.TunedHyperParameters}"


def _overridden(best: Mapping[str, str], arguments: argparse.Namespace) -> dict[str, str]:
    """What the search found, but for what --hp says."""
    given = types.hyperparameters(arguments.hp)
    kept = {name: value for name, value in best.items() if name not in given}
    return types.hyperparameters(list((kept | given).items()))


def _cost_line(create: Call) -> str:
    line = jobs.cost_line(create.parameters)
    if {"DebugRuleConfigurations", "ProfilerRuleConfigurations"} & set(create.parameters):
        line += "; AWS's rules run on machines of theirs"
    return line
