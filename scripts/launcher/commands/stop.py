"""Stop a training job.

The job gets SIGTERM, writes the bundle of its best epoch and ends; what it made is kept. SageMaker gives it 120
seconds for that. --local stops a job of this machine in the same way, from another terminal than its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from scripts.launcher.context import Context
from scripts.launcher.errors import OutcomeError
from scripts.launcher.local import folders, training
from scripts.launcher.plan import Call
from scripts.launcher.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the training job")
    parser.add_argument("--local", action="store_true", help="a job that `train --local` runs")


def needs_region(arguments: argparse.Namespace) -> bool:
    """Whether the command talks to AWS at all."""
    return not arguments.local


def plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """One request."""
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
    for call in calls:
        context.aws.call(call)
    context.say(f"{context.arguments.name} is stopping; `launch.py logs {context.arguments.name}` shows how it ends")
    return 0
