"""Run a training job as SageMaker runs it.

Job state, logs and results stand in FOLDER/NAME (build/platform/jobs); --results unpacks model and output elsewhere as
well. The exit code is 0 for Completed and Stopped, 1 for Failed. Ctrl-C is StopTrainingJob; a second one gives up at
once. See docs/local-platform.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from local_test import stage
from local_test.cli import UsageError
from local_test.simulator import archives, channels, choosing, consoles
from local_test.simulator.jobs import STOP_GRACE_S, Checkpoints, Request
from local_test.simulator.jobs import run as run_job
from local_test.simulator.layout import InstanceGroup
from local_test.simulator.metrics import Scraper
from local_test.simulator.records import JOBS, Record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares subject, request, and what happens to the job."""
    add_request_arguments(parser)
    parser.add_argument("--name", help="of the job; default local-DATE-TIME")
    parser.add_argument("--stop-after", type=_seconds, metavar="S", help="StopTrainingJob after S seconds of training")
    parser.add_argument(
        "--spot-interrupt-after",
        type=_seconds,
        nargs="+",
        default=[],
        metavar="S",
        help="lose all hosts after S seconds of training and start them anew; several: one for each attempt",
    )
    parser.add_argument(
        "--warm-pool", type=Path, metavar="FOLDER", help="stands for the persistent cache of a warm pool"
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="unpack the archives into model and output of FOLDER as well; a model there becomes model.previous",
    )


def add_request_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what a job and the jobs of a search have in common."""
    choosing.add_arguments(parser)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the channel train, in File mode")
    parser.add_argument(
        "--channel",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME=FOLDER", "OPTION=VALUE"),
        help="mode=File|FastFile|Pipe distribution=FullyReplicated|ShardedByS3Key wrapper=None|RecordIO "
        "compression=None|Gzip content-type=TYPE attributes=source-ref,class (NAME=MANIFEST) reported=FastFile "
        "shuffle=SEED groups=NAME,NAME",
    )
    parser.add_argument(
        "--hp", action="append", default=[], metavar="NAME=VALUE", help='hyperparameters; "a=1 b=2" are two'
    )
    parser.add_argument("--quote", choices=("bare", "json"), default="bare", help="how values of --hp are written")
    parser.add_argument("--hosts", type=int, default=1, metavar="N")
    parser.add_argument("--instance-type", default="ml.m5.xlarge", metavar="TYPE")
    parser.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="NAME=TYPE:COUNT",
        help="instance group of a heterogeneous cluster, instead of --hosts and --instance-type",
    )
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable for the subject")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME=REGEX",
        help="the first group is the value; default: the metrics of this project",
    )
    parser.add_argument(
        "--checkpoints",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="sync /opt/ml/checkpoints with FOLDER, or with one of the job's own",
    )
    parser.add_argument("--checkpoint-path", default="/opt/ml/checkpoints", metavar="PATH", help="LocalPath")
    parser.add_argument("--checkpoint-every", type=_seconds, default=1.0, metavar="S", help="between two syncs: 1 s")
    parser.add_argument("--debug-hook", type=Path, metavar="JSON", help="content of debughookconfig.json")
    parser.add_argument("--profiler", type=Path, metavar="JSON", help="content of profilerconfig.json")
    parser.add_argument("--isolated", action="store_true", help="EnableNetworkIsolation (an image only)")
    parser.add_argument("--max-runtime", type=_seconds, default=86400.0, metavar="S")
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=STOP_GRACE_S,
        metavar="S",
        help=f"between SIGTERM and SIGKILL: {STOP_GRACE_S:g} s on the platform",
    )
    parser.add_argument("--folder", type=Path, default=JOBS, help=f"of all jobs: {JOBS}")


def run(arguments: argparse.Namespace) -> int:
    """Runs the job and tells how it ended."""
    subject = choosing.subject(arguments.image, arguments.process, gpus=arguments.gpus)
    request = request_of(
        arguments,
        arguments.name or new_name("local"),
        stop_after_s=arguments.stop_after,
        interruptions_s=arguments.spot_interrupt_after,
        warm_pool=arguments.warm_pool,
    )
    with contextlib.ExitStack() as until_the_end:
        if arguments.results is not None:
            until_the_end.enter_context(_room(arguments.results, request))
        with consoles.console() as console, stopping() as stop:
            record = run_job(request, subject, arguments.folder, console, stop=stop.is_set)
        print(summary(record, console.scraper))
        if arguments.results is not None:
            for archive, place in (("model.tar.gz", "model"), ("output.tar.gz", "output/data")):
                archives.unpack(record.folder / "output" / archive, arguments.results / place)
    return 1 if record.status == "Failed" else 0


class stopping:
    """Turns the first Ctrl-C or SIGTERM into an event; the second does what it always does."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._before: dict[int, object] = {}

    def __enter__(self) -> threading.Event:
        """Takes the signals over."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self._event

    def __exit__(self, *unused: object) -> None:
        """Gives them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._event.is_set():
            raise KeyboardInterrupt
        self._event.set()


def request_of(arguments: argparse.Namespace, name: str, **more: object) -> Request:
    """What the common arguments ask for.

    Raises:
        UsageError: one of them cannot be used.
        RequestError: the service would refuse it.
    """
    asked = [["train=" + str(arguments.data)]] if arguments.data is not None else []
    documents = {"debughookconfig": arguments.debug_hook, "profilerconfig": arguments.profiler}
    groups = [_group(word) for word in arguments.group]
    if groups and arguments.hosts != 1:
        raise UsageError("--group says how many hosts there are; leave --hosts out")
    checkpoints = None
    if arguments.checkpoints is not None:
        store = Path(arguments.checkpoints).absolute() if arguments.checkpoints else None
        checkpoints = Checkpoints(arguments.checkpoint_path, store, arguments.checkpoint_every)
    return Request(
        name,
        hyperparameters=pairs(arguments.hp, "--hp", split=True),
        channels=[channels.parse(words) for words in [*asked, *arguments.channel]],
        hosts=sum(group.count for group in groups) or arguments.hosts,
        instance_type=arguments.instance_type,
        groups=groups,
        quoted=arguments.quote == "json",
        environment=pairs(arguments.env, "--env"),
        region=arguments.region,
        metrics=pairs(arguments.metric, "--metric") or _own_metrics(),
        checkpoints=checkpoints,
        documents={name: _document(file) for name, file in documents.items() if file is not None},
        network_isolation=arguments.isolated,
        max_runtime_s=arguments.max_runtime,
        stop_grace_s=arguments.grace,
        **more,  # type: ignore[arg-type]
    )


def summary(record: Record, scraper: Scraper | None) -> str:
    """How a job ended, for people."""
    content, local = record.content, record.local
    lines = []
    if scraper is not None and scraper.series:
        lines += [consoles.table(consoles.HEADER, list(consoles.rows(scraper))), ""]
    lines.append(f"{content['TrainingJobName']}: {record.status}, billed {content['BillableTimeInSeconds']} s")
    if local.get("Attempts", 1) > 1:
        lines.append(f"attempts: {local['Attempts']}")
    if "FailureReason" in content:
        lines.append(f"failure reason: {content['FailureReason']}")
    if "ExitCodes" in local:
        lines.append("exit codes: " + ", ".join(f"{host} {code}" for host, code in local["ExitCodes"].items()))
    lines += [f"warning: {clash}" for clash in local.get("Clashes", [])]
    lines += [
        f"warning: the subject wrote to {target}, which is read-only" for target in local.get("WrittenChannels", [])
    ]
    lines += [str(file) for file in sorted((record.folder / "output").glob("*.tar.gz"))]
    return "\n".join(lines)


def new_name(prefix: str) -> str:
    """A name that no job of the last second has."""
    return time.strftime(f"{prefix}-%Y%m%d-%H%M%S")


def pairs(words: Sequence[str], option: str, *, split: bool = False) -> Mapping[str, str]:
    """NAME=VALUE words as a mapping; with ``split`` one word may hold several, quoted as in a shell.

    Raises:
        UsageError: a word is none; names it.
    """
    found: dict[str, str] = {}
    try:
        parts = shlex.split(" ".join(words)) if split else words
    except ValueError as error:
        raise UsageError(f"{option} {' '.join(words)!r} cannot be read: {error}") from error
    for word in parts:
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise UsageError(f"{option} {word!r}: write NAME=VALUE")
        found[name] = value
    return found


def _group(word: str) -> InstanceGroup:
    name, _, described = word.partition("=")
    instance_type, _, count = described.partition(":")
    if not instance_type or not count.isdecimal():
        raise UsageError(f"--group {word!r}: write NAME=TYPE:COUNT, such as loaders=ml.c5.xlarge:2")
    return InstanceGroup(name, instance_type, int(count))


@contextlib.contextmanager
def _room(results: Path, request: Request) -> Iterator[None]:
    """Holds the folder of results and makes room in it before the job, so that nothing is taken for the job's own.

    What the last job of this project left is moved aside, see `stage.empty`; any job's archives stay in its folder.

    Raises:
        UsageError: another job holds it, or it holds what is not ours to delete.
    """
    with contextlib.ExitStack() as until_the_end:
        try:
            until_the_end.enter_context(stage.held(results))
            previous = stage.empty(results, keep=[channel.source for channel in request.channels])
        except stage.StageError as error:
            raise UsageError(str(error)) from error
        if said := stage.said_of(previous):
            print(said, file=sys.stderr)
        yield


def _own_metrics() -> Mapping[str, str]:
    """The metrics of this project; a subject of another origin prints no such lines."""
    container = str(choosing.OWN_PROGRAMS)
    if container not in sys.path:
        sys.path.append(container)
    from dogbreed.logs import METRIC_REGEXES

    return METRIC_REGEXES


def _document(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file} is not JSON: {error}") from error


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value
