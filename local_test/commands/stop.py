"""Stop a running training job, as StopTrainingJob does.

SIGTERM to every host, SIGKILL 120 s later; what it saved by then is packed. Waits for the end.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import psutil

from local_test.simulator.channels import RequestError
from local_test.simulator.records import ENDED, JOBS, Record

_POLL_S = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the job."""
    parser.add_argument("name", help="of the job")
    parser.add_argument("--folder", type=Path, default=JOBS, help=f"of all jobs: {JOBS}")


def run(arguments: argparse.Namespace) -> int:
    """Asks, and waits."""
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
