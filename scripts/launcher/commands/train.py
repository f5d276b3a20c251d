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

--managed-debugger attaches AWS's own SageMaker Debugger with the rules LossNotDecreasing and Overfit as well. AWS
closed that service to new customers on 2026-07-30: only accounts that used it before can start such a job.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.launcher import arguments as types
from scripts.launcher import following, jobs
from scripts.launcher import settings as settings_module
from scripts.launcher.context import Context
from scripts.launcher.errors import ServiceError, SettingError
from scripts.launcher.local import folders, training
from scripts.launcher.plan import Call
from scripts.launcher.search import trials, tuning
from scripts.launcher.settings import Settings

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
    other.add_argument("--managed-debugger", action="store_true", help="AWS's rules as well; see above")
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
    if arguments.managed_debugger:
        parameters |= _managed_debugger(settings.region, outputs)
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
    debugger = {"--checkpoints": arguments.checkpoints, "--managed-debugger": arguments.managed_debugger}
    folders.refuse(jobs.account_only(arguments) | debugger)
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
    line = jobs.cost_line(create.parameters)
    if "DebugRuleConfigurations" in create.parameters:
        line += "; AWS's rules run on machines of theirs"
    return line
