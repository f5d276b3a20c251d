"""Stop a training job.

The job gets SIGTERM, writes the bundle of its best epoch and ends; what it made is kept. SageMaker gives it 120
seconds for that.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from scripts.launcher.context import Context
from scripts.launcher.plan import Call
from scripts.launcher.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the training job")


def plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """One request."""
    return [Call("sagemaker", "StopTrainingJob", {"TrainingJobName": arguments.name})]


def run(calls: Sequence[Call], context: Context) -> int:
    """Sends it."""
    for call in calls:
        context.aws.call(call)
    context.say(f"{context.arguments.name} is stopping; `launch.py logs {context.arguments.name}` shows how it ends")
    return 0
