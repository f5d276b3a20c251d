"""Print the log of a training job, a batch transform or an endpoint; --follow goes on until a job has ended.

Of a training job that failed, the first line is why.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from scripts.launcher import following
from scripts.launcher.arguments import job_name
from scripts.launcher.context import Context
from scripts.launcher.errors import OutcomeError
from scripts.launcher.following import GROUPS, LogTail
from scripts.launcher.plan import Call
from scripts.launcher.settings import Settings

_POLL_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("name", metavar="NAME", type=job_name, help="name of the job or endpoint")
    parser.add_argument("--kind", choices=tuple(GROUPS), default="training", help="what NAME is; default %(default)s")
    parser.add_argument("--follow", action="store_true", help="go on until the job has ended, or until Ctrl-C")


def plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """What a training job is doing, and the streams of its log; reading them takes one GetLogEvents per page."""
    group, prefix = _place(arguments)
    listing = Call(
        "logs", "DescribeLogStreams", {"logGroupName": group} | ({"logStreamNamePrefix": prefix} if prefix else {})
    )
    return [following.describe(arguments.name), listing] if arguments.kind == "training" else [listing]


def run(calls: Sequence[Call], context: Context) -> int:
    """Prints the lines; exit code 1 for a training job that failed."""
    arguments = context.arguments
    if arguments.kind != "training":
        return _print(context)
    description = context.aws.call(calls[0])
    if description["TrainingJobStatus"] in following.ENDED:
        print("\n".join(following.outcome(description)), flush=True)
        _print(context)
        return 1 if description["TrainingJobStatus"] == "Failed" else 0
    if not arguments.follow:
        context.say("\n".join(following.outcome(description)))
        return _print(context)
    try:
        description = following.follow(context.aws, arguments.name, say=_say, sleep=context.sleep)
    except KeyboardInterrupt:
        context.say(following.goes_on(arguments.name))
        return following.INTERRUPTED
    following.raise_if_failed(description)
    context.say("\n".join(following.outcome(description)))
    return 0


def _place(arguments: argparse.Namespace) -> tuple[str, str]:
    """Log group, and prefix of the streams."""
    group = GROUPS[arguments.kind]
    return (f"{group}/{arguments.name}", "") if arguments.kind == "endpoint" else (group, f"{arguments.name}/")


def _print(context: Context) -> int:
    """Prints what there is, and with --follow what comes."""
    group, prefix = _place(context.arguments)
    tail = LogTail(context.aws, group, prefix)
    count = 0
    while True:
        for line in tail.read():
            _say(line)
            count += 1
        if not context.arguments.follow or context.arguments.kind == "training":
            break
        context.sleep(_POLL_S)
    if not count and context.arguments.kind != "training":
        raise OutcomeError(f"no log of {context.arguments.name} in {group}: check the name, --kind and --region")
    if not count:
        context.say("no log yet; the first lines come when the container has started")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)
