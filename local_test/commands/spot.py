"""Interrupt a job at random moments and demand the model of an uninterrupted one.

One job runs through. Then N jobs with the same request lose all their hosts once, at a random moment between the start
of training and the time that the first one took, and start again from their checkpoints. The compared files in
model.tar.gz must be the same, byte for byte. The exit code is 0 when all are. See docs/local-platform.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import hashlib
import random
import sys
import tarfile
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
    parser.add_argument(
        "--compare", default="*.safetensors", metavar="PATTERN", help="files of the model: *.safetensors"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs them one after the other; one line each."""
    if arguments.times < 1:
        raise UsageError(f"--times {arguments.times}: give 1 at least")
    if arguments.checkpoints is None:
        raise UsageError("without --checkpoints nothing outlives an interruption; add it")
    subject = choosing.subject(arguments.image, arguments.process, gpus=arguments.gpus)
    name = arguments.name or train.new_name("spot")
    request = train.request_of(arguments, f"{name}-whole")
    moments = random.Random(arguments.seed)
    began = time.monotonic()
    whole = _job(request, subject, arguments.folder)
    wanted = digests(whole.folder / "output" / "model.tar.gz", arguments.compare)
    if whole.status != "Completed" or not wanted:
        found = whole.content.get("FailureReason", f"no file {arguments.compare} in its model")
        raise UsageError(f"the uninterrupted job {whole.status}: {found}")
    length_s = whole.seconds("Training")
    print(f"{request.name}: {length_s:.1f} s of training, compared: {', '.join(wanted)}", flush=True)
    equal = done = 0
    for number in range(1, arguments.times + 1):
        if arguments.budget_s is not None and time.monotonic() - began > arguments.budget_s:
            break
        moment_s = moments.uniform(0, length_s)
        interrupted = dataclasses.replace(request, name=f"{name}-{number:03}", interruptions_s=[moment_s])
        record = _job(interrupted, subject, arguments.folder)
        done += 1
        verdict = _verdict(record, wanted, arguments.compare)
        equal += verdict == "equal"
        attempts = "interrupted once" if record.local.get("Attempts", 1) > 1 else "ended before it"
        print(f"{interrupted.name}: lost at {moment_s:.1f} s, {attempts}: {verdict}", flush=True)
    print(f"{equal} of {done} equal")
    return 0 if equal == done else 1


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


def _job(request: jobs.Request, subject: Subject, folder: Path) -> Record:
    print(f"{request.name} runs", file=sys.stderr, flush=True)
    return jobs.run(request, subject, folder, consoles.Quiet())


def _verdict(record: Record, wanted: Mapping[str, str], pattern: str) -> str:
    if record.status != "Completed":
        return f"{record.status}: {record.content.get('FailureReason', '')}"
    found = digests(record.folder / "output" / "model.tar.gz", pattern)
    different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return f"different: {', '.join(different)}" if different else "equal"
