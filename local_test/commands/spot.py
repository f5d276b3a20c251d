"""Interrupt a job at random moments and demand the model of an uninterrupted one.

One job runs through. Then N jobs with the same request lose all their hosts once, at a random moment, and start again
from their checkpoints. Moments lie between the start of the containers, or the first line that --from finds, and the
end as the quickest job so far had it. A job that ended before its moment is no interruption: it is told, must give the
same model too, and another runs in its place with an earlier moment. The compared files in model.tar.gz must be the
same, byte for byte. The exit code is 0 when all are. See docs/local-platform.md.
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
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from local_test.cli import UsageError
from local_test.commands import train
from local_test.simulator import choosing, consoles, jobs
from local_test.simulator.records import Record
from local_test.simulator.subjects import Subject

_RESUMED = r"going on from (?P<epoch>\d+)-(?P<batch>\d+)"
"""This project's line. Epochs count from 1; the batches are those of the epoch that were done."""

_DRAWS = 10
"""Jobs in a row that may end before their moments."""

_EQUAL = "equal"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the request, and how often."""
    train.add_request_arguments(parser)
    parser.add_argument("--name", help="beginning of the names of the jobs; default spot-DATE-TIME")
    parser.add_argument("--times", type=int, default=20, metavar="N", help="interrupted jobs: 20")
    parser.add_argument("--for", type=float, dest="budget_s", metavar="S", help="begin no further job after S seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--from", dest="begin", metavar="REGEX", help="moments begin at the first line with it")
    parser.add_argument(
        "--resumed",
        default=_RESUMED,
        metavar="REGEX",
        help="the line of a restart that tells from where; groups epoch and batch are understood (default: this "
        "project's line)",
    )
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
    series = _Series(
        train.request_of(arguments, name),
        subject,
        arguments.folder,
        begin=None if arguments.begin is None else _regex("--from", arguments.begin),
        resumed=_regex("--resumed", arguments.resumed),
        pattern=arguments.compare,
        moments=random.Random(arguments.seed),
        stop=stop,
    )
    began = time.monotonic()
    series.run_whole()
    for number in range(1, arguments.times + 1):
        late = arguments.budget_s is not None and time.monotonic() - began > arguments.budget_s
        if late or not series.run_interrupted(number):
            break
    print(series.summary(), flush=True)
    return 0 if series.is_good() and not stop.is_set() else 1


class _Series:
    """The jobs, one after the other, and what became of them.

    Args:
        request: of all of them; its name is the beginning of theirs.
        subject: that runs.
        folder: of all jobs.
        begin: see `_Watch`.
        resumed: see `_Watch`.
        pattern: names of the files that are compared.
        moments: draws them.
        stop: ends it.
    """

    def __init__(
        self,
        request: jobs.Request,
        subject: Subject,
        folder: Path,
        *,
        begin: re.Pattern[str] | None,
        resumed: re.Pattern[str],
        pattern: str,
        moments: random.Random,
        stop: threading.Event,
    ) -> None:
        self._request = request
        self._subject = subject
        self._folder = folder
        self._begin = begin
        self._resumed = resumed
        self._pattern = pattern
        self._moments = moments
        self._stop = stop
        self._wanted: Mapping[str, str] = {}
        # Of the quickest job that was not interrupted.
        self._length_s = math.inf
        self._verdicts: list[str] = []
        self._missed: list[str] = []
        self._places: Counter[str] = Counter()

    def run_whole(self) -> None:
        """Runs the job that the others are measured by.

        Raises:
            UsageError: it gives nothing to compare, or no time to be interrupted in.
        """
        record, watch = self._job("whole", None)
        self._wanted = digests(record.folder / "output" / "model.tar.gz", self._pattern)
        if math.isnan(watch.length_s):
            where = "the job was over at once" if self._begin is None else f"{self._begin.pattern!r} is in no line"
            raise UsageError(f"no moment lies in the uninterrupted job: {where}; see {record.folder}/logs")
        if record.status != "Completed" or not self._wanted:
            found = record.content.get("FailureReason", f"no file {self._pattern} in its model")
            raise UsageError(f"the uninterrupted job {record.status}: {found}")
        self._length_s = watch.length_s
        told = f"{self._length_s:.1f} s to be interrupted in, compared: {', '.join(self._wanted)}"
        print(f"{record.content['TrainingJobName']}: {told}", flush=True)

    def run_interrupted(self, number: int) -> bool:
        """Runs jobs until one of them is interrupted; False when none is, or somebody wants an end."""
        for draw in range(1, _DRAWS + 1):
            moment_s = self._moments.uniform(0, self._length_s)
            name = f"{number:03}" if draw == 1 else f"{number:03}-{draw}"
            record, watch = self._job(name, moment_s)
            if self._stop.is_set():
                return False
            verdict = self._verdict(record)
            told = f"{record.content['TrainingJobName']}: "
            if record.local["Attempts"] > 1:
                place = _place(watch.resumed_at)
                self._verdicts.append(verdict)
                self._places[place.kind] += 1
                print(f"{told}lost after {moment_s:.2f} s, {place.told}: {verdict}", flush=True)
                return True
            self._missed.append(verdict)
            # Below the moment that it missed, so that the next is an earlier one.
            if not math.isnan(watch.length_s):
                self._length_s = min(self._length_s, watch.length_s)
            print(
                f"{told}over after {watch.length_s:.2f} s, before it was lost at {moment_s:.2f} s: {verdict}",
                flush=True,
            )
        print(
            f"{_DRAWS} jobs in a row were over before their moments, so it cannot be interrupted; make it longer, "
            "for example by more epochs, or let moments begin earlier with another --from",
            file=sys.stderr,
        )
        self._verdicts.append("not interrupted")
        return False

    def is_good(self) -> bool:
        """Whether there was an interruption, and every model was the whole job's."""
        return bool(self._verdicts) and all(verdict == _EQUAL for verdict in self._verdicts + self._missed)

    def summary(self) -> str:
        """In a line."""
        places = ", ".join(f"{count} {kind}" for kind, count in sorted(self._places.items())) or "none"
        lines = [f"{self._verdicts.count(_EQUAL)} of {len(self._verdicts)} equal; interrupted: {places}"]
        if self._missed:
            equal = self._missed.count(_EQUAL)
            lines.append(f"{len(self._missed)} more were over before their moments, {equal} of them equal")
        return "; ".join(lines)

    def _job(self, name: str, moment_s: float | None) -> tuple[Record, _Watch]:
        watch = _Watch(self._begin, self._resumed, moment_s)
        request = dataclasses.replace(self._request, name=f"{self._request.name}-{name}")
        print(f"{request.name} runs", file=sys.stderr, flush=True)
        record = jobs.run(request, self._subject, self._folder, watch, stop=self._stop.is_set, lose=watch.is_due)
        return record, watch

    def _verdict(self, record: Record) -> str:
        if record.status != "Completed":
            return f"{record.status}: {record.content.get('FailureReason', '')}"
        found = digests(record.folder / "output" / "model.tar.gz", self._pattern)
        names = self._wanted.keys() | found.keys()
        different = sorted(name for name in names if self._wanted.get(name) != found.get(name))
        return f"different: {', '.join(different)}" if different else _EQUAL


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


@dataclass(frozen=True)
class _Place:
    """From where a job went on.

    Args:
        kind: of all such places.
        told: of this one.
    """

    kind: str
    told: str


def _place(resumed_at: re.Match[str] | None) -> _Place:
    if resumed_at is None:
        return _Place("before a checkpoint", "began anew")
    groups = resumed_at.groupdict()
    if "epoch" not in groups or "batch" not in groups:
        return _Place("after a checkpoint", resumed_at[0])
    epoch, batch = int(groups["epoch"]), int(groups["batch"])
    if batch:
        return _Place("within an epoch", f"went on in epoch {epoch} after batch {batch}")
    return _Place("between epochs", f"went on before epoch {epoch}")


class _Watch(consoles.Quiet):
    """Chooses the moment of a loss.

    Args:
        begin: time runs from the first line with it; None: from the start of the containers.
        resumed: the line of a restart that tells from where.
        moment_s: of the loss; None is never.

    Attributes:
        length_s: from the beginning to the last moment at which the job could be lost; no number before there was one.
        resumed_at: what ``resumed`` found after the loss.
    """

    def __init__(self, begin: re.Pattern[str] | None, resumed: re.Pattern[str], moment_s: float | None) -> None:
        self._begin = begin
        self._resumed = resumed
        self._moment_s = moment_s
        self._began = math.nan
        self._lost = self._restarted = False
        self.length_s = math.nan
        self.resumed_at: re.Match[str] | None = None

    def line(self, host: str, text: str) -> None:
        """Perhaps the first one, or one of a restart."""
        if self._begin and math.isnan(self._began) and self._begin.search(text):
            self._began = time.monotonic()
        if self._restarted and self.resumed_at is None:
            self.resumed_at = self._resumed.search(text)

    def status(self, record: Record) -> None:
        """Perhaps a start."""
        training = record.content["SecondaryStatus"] == "Training"
        if training and not self._begin and math.isnan(self._began):
            self._began = time.monotonic()
        self._restarted = training and self._lost

    def is_due(self) -> bool:
        """Once, and never before the beginning: nothing is later than no number. It is asked while a host runs."""
        if self._lost:
            return False
        self.length_s = time.monotonic() - self._began
        self._lost = self._moment_s is not None and self.length_s >= self._moment_s
        return self._lost


def _regex(option: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"{option} {text!r} is no regular expression: {error}") from error
