"""Stop a running training job, endpoint or transform job.

For a training job it is StopTrainingJob: SIGTERM to every host, SIGKILL 120 s later; what it saved by then is packed.
Waits for the end.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import psutil

from local_test.simulator import state
from local_test.simulator.channels import RequestError
from local_test.simulator.records import ENDED, JOBS, Record

_POLL_S = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the job."""
    parser.add_argument("name", help="of the job or endpoint")
    parser.add_argument(
        "--folder", type=Path, default=JOBS, help=f"of all training jobs: {JOBS}; endpoints and others stand beside it"
    )


def run(arguments: argparse.Namespace) -> int:
    """Asks, and waits."""
    place = _other(arguments.folder, arguments.name)
    if place is not None:
        return _end(place)
    record = Record.read(arguments.folder, arguments.name)
    if record.status in ENDED:
        raise RequestError(f"job {arguments.name} has ended: {record.status}; only one that runs can be stopped")
    record.ask_to_stop()
    print(f"stopping {arguments.name}", file=sys.stderr)
    while record.status not in ENDED:
        if not psutil.pid_exists(int(record.local["Runner"])):
            raise RequestError(f"job {arguments.name} has no runner any more; remove {record.folder}")
        time.sleep(_POLL_S)
        record = Record.read(arguments.folder, arguments.name)
    print(f"{arguments.name}: {record.status}")
    return 0


def _other(jobs: Path, name: str) -> Path | None:
    """The folder of something else of that name that runs."""
    kinds = sorted(jobs.parent.iterdir()) if jobs.parent.is_dir() else []
    return next((kind / name for kind in kinds if state.runner(kind / name) is not None), None)


def _end(place: Path) -> int:
    runner = state.runner(place)
    if runner is not None:
        print(f"stopping {place.name} of {place.parent.name}", file=sys.stderr)
        os.kill(runner, signal.SIGTERM)
    while state.runner(place) == runner and runner is not None:
        time.sleep(_POLL_S)
    print(f"{place.name}: Stopped")
    return 0
