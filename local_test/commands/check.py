"""Hold an image or a pair of programs to SageMaker's container contract, check by check.

Without --profile, this project's own: drawn photos and a small network. For another image, write a profile in TOML:

  [train]
  channels = { train = "data" }            # folders beside the profile
  hyperparameters = { epochs = "3" }       # of a job of seconds; all values are strings
  long = { epochs = "100000" }             # changes for a job that can be stopped on its way
  bad = { epochs = "many" }                # changes that must be refused
  objective_regex = "loss=([0-9.]+)"
  epochs = 3                               # how often the objective is printed
  resume = { epochs = "20" }               # changes for a job that is lost on its way, and started again
  resume_epochs = 20
  environment = { LOG_LEVEL = "info" }

  [serve]
  request = "sample.csv"                   # is answered with 200
  content_type = "text/csv"
  model = "model"                          # folder; without it, what training leaves
  bad_request = "bad.csv"
  payload_mb = 25
  environment = {}

Everything but channels and request may be left out; checks that need it are then not applicable. Exit code 0 when
nothing failed, 1 when something did.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from local_test.cli import UsageError
from local_test.simulator import choosing
from local_test.simulator.checks import reports
from local_test.simulator.checks.check import Status
from local_test.simulator.checks.context import Context
from local_test.simulator.checks.profile import Profile, ProfileError, Serving, read_profile
from local_test.simulator.checks.registry import CHECKS, select
from local_test.simulator.checks.running import Result
from local_test.simulator.checks.running import run as run_checks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subject, what it is given, and where the report goes."""
    choosing.add_arguments(parser)
    parser.add_argument(
        "--profile", metavar="FILE", type=Path, help="what the subject trains on and is asked, see above"
    )
    parser.add_argument("--model", metavar="DIR", type=Path, help="trained model, in the place of the profile's")
    parser.add_argument("--request", metavar="FILE", type=Path, help="body to ask with, in the place of the profile's")
    parser.add_argument("--content-type", metavar="TYPE", help="of --request")
    parser.add_argument("--objective-regex", metavar="REGEX", help="reads the objective from a log line, group 1")
    parser.add_argument(
        "--only", metavar="PATTERN", action="append", default=[], help="run these checks: serve.*; may be repeated"
    )
    parser.add_argument("--list", action=_List, nargs=0, help="print the checks and run none")
    parser.add_argument("--junit", metavar="FILE", type=Path, help="write JUnit XML")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write JSON")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write Markdown")
    parser.add_argument(
        "--keep", metavar="DIR", type=Path, help="new folder for everything that is made, logs included; it is kept"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the checks and writes the reports."""
    try:
        checks = select(arguments.only)
    except KeyError as error:
        raise UsageError(f"--only {error.args[0]!r} matches no check; see --list") from error
    # The contract asks for all interfaces, of which a bare process is otherwise kept from all but one.
    subject = choosing.subject(arguments.image, arguments.process, gpus=arguments.gpus, as_contained=True)
    work = _new_folder(arguments.keep)
    try:
        profile = _profile(arguments, work)
        context = Context(subject, profile, work / "runs", contained=arguments.image is not None)
        print(f"conformance of {subject.title}")
        results = run_checks(checks, context, _Telling())
    finally:
        if arguments.keep is None:
            shutil.rmtree(work, ignore_errors=True)
    print(f"\n{reports.summary(results)}")
    command = f"python -m local_test check {shlex.join(sys.argv[2:])}"
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    _write(arguments.junit, reports.junit(results, subject.title))
    _write(arguments.json, reports.as_json(results, subject.title))
    _write(arguments.markdown, reports.markdown(results, subject.title, command, today))
    return int(any(result.outcome.status is Status.FAILED for result in results))


class _List(argparse.Action):
    """Prints the checks and leaves, without a subject, as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        print(reports.listing(CHECKS))
        parser.exit()


class _Telling:
    """Prints results as they come, with a heading above each group."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._heading = ""

    def __call__(self, result: Result) -> None:
        heading = reports.heading(result.check)
        if heading != self._heading:
            self._heading = heading
            print(heading)
        print(reports.line(result, colour=self._colour), flush=True)


def _new_folder(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="conformance-"))
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise UsageError(f"--keep {keep} is not empty; name a new folder")
    keep.mkdir(parents=True, exist_ok=True)
    return keep.resolve()


def _profile(arguments: argparse.Namespace, work: Path) -> Profile:
    if arguments.profile is None:
        # Drawing needs this project's own libraries, which another's profile does not.
        from local_test.simulator.checks.own import own_profile

        profile = own_profile(work / "given")
    else:
        try:
            profile = read_profile(arguments.profile)
        except ProfileError as error:
            raise UsageError(str(error)) from error
    training, serving = profile.training, profile.serving
    if arguments.objective_regex is not None and training is not None:
        try:
            groups = re.compile(arguments.objective_regex).groups
        except re.error as error:
            raise UsageError(f"--objective-regex {arguments.objective_regex!r}: {error}") from error
        if not groups:
            raise UsageError(f"--objective-regex {arguments.objective_regex!r} has no group; write loss=([0-9.]+)")
        training = dataclasses.replace(training, objective_regex=arguments.objective_regex)
    if arguments.model is not None:
        if not arguments.model.is_dir():
            raise UsageError(f"--model {arguments.model} is not a folder; name one with a trained model's files")
        serving = dataclasses.replace(serving or Serving(), model=arguments.model.resolve())
    if arguments.request is not None:
        try:
            body = arguments.request.read_bytes()
        except OSError as error:
            raise UsageError(f"--request {arguments.request} cannot be read: {error.strerror}") from error
        serving = dataclasses.replace(serving or Serving(), request=body)
    if arguments.content_type is not None:
        serving = dataclasses.replace(serving or Serving(), content_type=arguments.content_type)
    return Profile(training, serving)


def _write(file: Path | None, text: str) -> None:
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from error
