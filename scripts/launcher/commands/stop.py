"""Stop a training job, or a search with all its trials.

The job gets SIGTERM, writes the bundle of its best epoch and ends; what it made is kept. SageMaker gives it 120
seconds for that. --local stops a job of this machine in the same way, from another terminal than its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from scripts.launcher.context import Context
from scripts.launcher.errors import OutcomeError, ServiceError
from scripts.launcher.local import folders, training
from scripts.launcher.plan import Call
from scripts.launcher.search import tuning
from scripts.launcher.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the training or tuning job")
    parser.add_argument("--local", action="store_true", help="a job that `train --local` runs")


def needs_region(arguments: argparse.Namespace) -> bool:
    """Whether the command talks to AWS at all."""
    return not arguments.local


def plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """One request; a second one, where no training job but a tuning job has that name."""
    return [Call("sagemaker", "StopTrainingJob", {"TrainingJobName": arguments.name})]


def run(calls: Sequence[Call], context: Context) -> int:
    """Sends it."""
    if context.arguments.local:
        if not training.stop(context.arguments.name):
            raise OutcomeError(f"no local job {context.arguments.name} is running")
        context.say(
            f"{context.arguments.name} has stopped; its results are in {folders.job_folder(context.arguments.name)}"
        )
        return 0
    name = context.arguments.name
    try:
        context.aws.call(calls[0])
    except ServiceError as error:
        if not error.not_found:
            raise
        _stop_search(name, context)
        return 0
    context.say(f"{name} is stopping; `launch.py logs {name}` shows how it ends")
    return 0


def _stop_search(name: str, context: Context) -> None:
    nothing = (
        f"{name} is neither a training nor a tuning job in {context.settings.region}; `launch.py status` lists both"
    )
    if len(name) > tuning.LONGEST_NAME:
        raise OutcomeError(nothing)
    try:
        context.aws.call(tuning.stop(name))
    except ServiceError as error:
        if not error.not_found:
            raise
        raise OutcomeError(nothing) from error
    context.say(f"{name} is stopping, and its trials with it; `launch.py tune --follow {name}` shows what it found")
