"""Argument types that several commands share: `parser.add_argument(..., type=s3_uri)`.

Each takes the text and returns a value, or raises `ArgumentTypeError`, which argparse turns into one sentence and exit
code 2. Pure. Limits are those of the SageMaker API model.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from dogbreed import outputs
from dogbreed.errors import HyperparameterError, OutputError
from dogbreed.hyperparameters import Hyperparameters
from scripts.launcher.errors import SettingError

_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def job_name(text: str) -> str:
    """Name of a job, model or endpoint; also safe as a file name and in an S3 key."""
    if len(text) > 63 or not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name that SageMaker takes; give letters, digits and single hyphens between them, 63 "
            f"characters at most"
        )
    return text


def s3_uri(text: str) -> str:
    """`s3://bucket/key`, as it stands."""
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an S3 URI; give s3://bucket/key. `launch.py upload` sends a folder and prints its URI"
        )
    return text


def checked_s3_uri(argument: str, text: str) -> str:
    """The same for an argument that is a folder with --local; raises `SettingError`."""
    try:
        return s3_uri(text)
    except argparse.ArgumentTypeError as error:
        raise SettingError(f"{argument}: {error}; with --local it is a folder of this machine") from error


def duration(text: str) -> int:
    """`90m`, `4h`, `2d` or plain seconds -> seconds."""
    match = re.fullmatch(r"(\d+)([smhd]?)", text.strip().lower())
    if not match or int(match.group(1)) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; give 90m, 4h, 2d or seconds")
    return int(match.group(1)) * _UNITS_S[match.group(2)]


def positive(text: str) -> int:
    """A whole number, at least 1."""
    if not re.fullmatch(r"\d+", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def number(text: str) -> float:
    """A number, 0 or more."""
    if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on; give one such as 2.5")
    return float(text)


def seed(text: str) -> int:
    """A whole number, at least 0."""
    if not re.fullmatch(r"\d{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 999999999")
    return int(text)


def pair(text: str) -> tuple[str, str]:
    """`name=value`; the value may hold further equals signs and may be empty."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
    return name, value


def add_pairs(group: argparse._ArgumentGroup, option: str, metavar: str, help: str) -> None:
    """Declares an option that takes any number of `name=value`, at once or repeated."""
    group.add_argument(option, type=pair, nargs="+", action="extend", default=[], metavar=metavar, help=help)


def in_words(seconds: float) -> str:
    """Seconds as people say them: `45 s`, `90 min`, `4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3 * 3600 else f"{seconds / 3600:.3g} h"


def hyperparameters(given: list[tuple[str, str]]) -> dict[str, str]:
    """Checks the pairs as the container would, so that a typing error costs a second and no instance.

    Returns:
        Only what was given, names with hyphens, values as text: SageMaker's shape.

    Raises:
        SettingError: one line that names every bad one and what is allowed.
    """
    names = [name.replace("-", "_") for name, _ in given]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingError(f"hyperparameter {twice[0]} is given twice; give it once")
    try:
        Hyperparameters.parse(dict(given))
    except HyperparameterError as error:
        raise SettingError(str(error)) from error
    return {name.replace("_", "-"): value for name, value in given}


def tags(given: list[tuple[str, str]]) -> list[dict[str, str]]:
    """The pairs in the shape of an AWS request."""
    return [{"Key": key, "Value": value} for key, value in given]


def prove(folder: Path) -> None:
    """Shows that results can be written into a folder, before the work; raises SettingError where they cannot."""
    try:
        outputs.prove(folder)
    except OutputError as error:
        raise SettingError(str(error)) from error
