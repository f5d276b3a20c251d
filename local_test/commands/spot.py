"""Interrupt a job at random moments and demand the model of an uninterrupted one.

One job runs through. Then N jobs with the same request lose all their hosts once, at a random moment, and start again
from their checkpoints. Moments lie between the start of the containers, or the first line that --from finds, and the
end as the first job had it. The compared files in model.tar.gz must be the same, byte for byte. The exit code is 0 when
all are. See docs/local-platform.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import hashlib
import math
import random
import re
import sys
import tarfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from local_test.cli import UsageError
from local_test.commands import train
from local_test.simulator import choosing, consoles, jobs
from local_test.simulator.records import Record
from local_test.simulator.subjects import Subject


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the request, and how often."""
    train.add_request_arguments(parser)
    parser.add_argument("--name", help="beginning of the names of the jobs; default spot-DATE-TIME")
    parser.add_argument("--times", type=int, default=20, metavar="N", help="interrupted jobs: 20")
    parser.add_argument("--for", type=float, dest="budget_s", metavar="S", help="begin no further job after S seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--from", dest="begin", metavar="REGEX", help="moments begin at the first line with it")
    parser.add_argument(
        "--compare", default="*.safetensors", metavar="PATTERN", help="files of the model: *.safetensors"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs them one after the other; one line each."""
    if arguments.times < 1:
        raise UsageError(f"--times {arguments.times}: give 1 at least")
    if arguments.checkpoints is None:
        raise UsageError("without --checkpoints nothing outlives an interruption; add it")
    with train.stopping() as stop:
        return _compare(arguments, stop)


def _compare(arguments: argparse.Namespace, stop: threading.Event) -> int:
    subject = choosing.subject(arguments.image, arguments.process, gpus=arguments.gpus)
    name = arguments.name or train.new_name("spot")
    request = train.request_of(arguments, f"{name}-whole")
    moments = random.Random(arguments.seed)
    began = time.monotonic()
    watch = _Watch(_regex(arguments.begin))
    whole = _job(request, subject, arguments.folder, watch, stop)
    length_s = watch.ended - watch.began
    wanted = digests(whole.folder / "output" / "model.tar.gz", arguments.compare)
    if math.isnan(length_s):
        raise UsageError(f"--from {arguments.begin!r} is in no line of the uninterrupted job; see {whole.folder}/logs")
    if whole.status != "Completed" or not wanted:
        found = whole.content.get("FailureReason", f"no file {arguments.compare} in its model")
        raise UsageError(f"the uninterrupted job {whole.status}: {found}")
    print(f"{request.name}: {length_s:.1f} s to be interrupted in, compared: {', '.join(wanted)}", flush=True)
    equal = done = interrupted = 0
    for number in range(1, arguments.times + 1):
        if arguments.budget_s is not None and time.monotonic() - began > arguments.budget_s:
            break
        moment_s = moments.uniform(0, length_s)
        watch = _Watch(_regex(arguments.begin), moment_s)
        record = _job(dataclasses.replace(request, name=f"{name}-{number:03}"), subject, arguments.folder, watch, stop)
        if stop.is_set():
            break
        verdict = _verdict(record, wanted, arguments.compare)
        done += 1
        equal += verdict == "equal"
        interrupted += watch.lost
        told = "" if watch.lost else ", but it ended before"
        print(f"{name}-{number:03}: lost after {moment_s:.2f} s{told}: {verdict}", flush=True)
    print(f"{equal} of {done} equal, {interrupted} of them interrupted")
    return 0 if equal == done and not stop.is_set() else 1


def digests(archive: Path, pattern: str) -> Mapping[str, str]:
    """SHA-256 of the files in an archive whose names match; empty without an archive."""
    if not archive.is_file():
        return {}
    found = {}
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            file = packed.extractfile(member) if fnmatch.fnmatch(member.name, pattern) else None
            if file is not None:
                found[member.name] = hashlib.sha256(file.read()).hexdigest()
    return found


class _Watch(consoles.Quiet):
    """Chooses the moment of a loss.

    Args:
        begin: time runs from the first line with it; None: from the start of the containers.
        moment_s: of the loss; None is never.
    """

    def __init__(self, begin: re.Pattern[str] | None, moment_s: float | None = None) -> None:
        self._begin = begin
        self._moment_s = moment_s
        self.began = self.ended = math.nan
        self.lost = False

    def line(self, host: str, text: str) -> None:
        """Perhaps the first one."""
        if self._begin and math.isnan(self.began) and self._begin.search(text):
            self.began = time.monotonic()

    def status(self, record: Record) -> None:
        """Perhaps the start, or the end."""
        status = record.content["SecondaryStatus"]
        if not self._begin and math.isnan(self.began) and status == "Training":
            self.began = time.monotonic()
        if status == "Uploading":
            self.ended = time.monotonic()

    def is_due(self) -> bool:
        """Once, and never before the beginning: nothing is later than no number."""
        if self.lost or self._moment_s is None or not time.monotonic() - self.began >= self._moment_s:
            return False
        self.lost = True
        return True


def _job(request: jobs.Request, subject: Subject, folder: Path, watch: _Watch, stop: threading.Event) -> Record:
    print(f"{request.name} runs", file=sys.stderr, flush=True)
    return jobs.run(request, subject, folder, watch, stop=stop.is_set, lose=watch.is_due)


def _regex(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise UsageError(f"--from {text!r} is no regular expression: {error}") from error


def _verdict(record: Record, wanted: Mapping[str, str], pattern: str) -> str:
    if record.status != "Completed":
        return f"{record.status}: {record.content.get('FailureReason', '')}"
    found = digests(record.folder / "output" / "model.tar.gz", pattern)
    different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return f"different: {', '.join(different)}" if different else "equal"
