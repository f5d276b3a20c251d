"""Watches one training job: its status, its CloudWatch log, and how it ended.

Polls, because neither service pushes. Times are those of AWS; sleeping is injected. A poll that is throttled or does
not get through is tried again, so that the watching of a night's job survives a minute without network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from dogbreed.logs import METRIC_NAMES, read_metrics
from scripts.launcher.arguments import in_words
from scripts.launcher.aws import Aws
from scripts.launcher.errors import OutcomeError, ServiceError
from scripts.launcher.plan import Call

GROUPS: Mapping[str, str] = {
    "training": "/aws/sagemaker/TrainingJobs",
    "transform": "/aws/sagemaker/TransformJobs",
    "endpoint": "/aws/sagemaker/Endpoints",
}
"""Kind -> log group; that of an endpoint has its name appended (AWS docs: logging-cloudwatch)."""

ENDED = frozenset({"Completed", "Failed", "Stopped"})
"""Values of TrainingJobStatus after which nothing more happens."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""

_POLL_S = 10.0
# CloudWatch shows the last lines some seconds after the job has ended.
_SETTLE_S = 5.0
_PATIENCE = 30

T = TypeVar("T")


@dataclass
class LogTail:
    """Reads every event of the streams below a prefix once, stream by stream, in order.

    Attributes:
        group: log group.
        prefix: of the streams' names; `JOB/` for a job, empty for an endpoint.
    """

    aws: Aws
    group: str
    prefix: str
    _tokens: dict[str, str] = field(default_factory=dict)

    def read(self) -> Iterator[str]:
        """What is new since the last call. Lines of several hosts carry the host's name.

        A group that does not exist yet has nothing new: it comes with the first line.
        """
        try:
            streams = self._streams()
        except ServiceError as error:
            if not error.not_found:
                raise
            return
        hosts = {_host(stream) for stream in streams}
        for stream in streams:
            label = f"[{_host(stream)}] " if len(hosts) > 1 else ""
            for message in self._events(stream):
                yield label + message

    def calls(self) -> list[Call]:
        """The requests that a reading starts with."""
        prefix = {"logStreamNamePrefix": self.prefix} if self.prefix else {}
        return [Call("logs", "DescribeLogStreams", {"logGroupName": self.group, **prefix})]

    def _streams(self) -> list[str]:
        (call,) = self.calls()
        return sorted(stream["logStreamName"] for page in self.aws.pages(call) for stream in page["logStreams"])

    def _events(self, stream: str) -> Iterator[str]:
        while True:
            before = self._tokens.get(stream)
            token = {"nextToken": before} if before else {}
            parameters = {"logGroupName": self.group, "logStreamName": stream, "startFromHead": True, **token}
            answer = self.aws.call(Call("logs", "GetLogEvents", parameters))
            for event in answer["events"]:
                yield event["message"].rstrip("\n")
            after = answer["nextForwardToken"]
            self._tokens[stream] = after
            # The end of a stream gives the token that was sent; an empty first page may still be followed by more.
            if after == before or (before is None and not answer["events"]):
                return


def describe(name: str) -> Call:
    """The request for everything that is known of a training job."""
    return Call("sagemaker", "DescribeTrainingJob", {"TrainingJobName": name})


def follow(
    aws: Aws, name: str, *, say: Callable[[str], None], sleep: Callable[[float], None], quiet: bool = False
) -> dict[str, Any]:
    """Says what a training job does until it has ended.

    Args:
        aws: executes calls.
        name: of the job.
        say: takes one line.
        sleep: takes seconds.
        quiet: of the log, say only the lines with metrics.

    Returns:
        The last description.

    Raises:
        ServiceError: the job cannot be described, for other reasons than a passing one.
    """
    tail = LogTail(aws, GROUPS["training"], f"{name}/")
    said: set[tuple[str, str]] = set()

    def look() -> dict[str, Any] | None:
        description = aws.call(describe(name))
        for transition in description.get("SecondaryStatusTransitions", []):
            step = (transition["Status"], transition.get("StatusMessage", ""))
            if step not in said:
                said.add(step)
                say(f"{_clock(transition.get('StartTime'))} {': '.join(part for part in step if part)}")
        _tell(tail, say, quiet=quiet)
        if description["TrainingJobStatus"] not in ENDED:
            return None
        sleep(_SETTLE_S)
        _tell(tail, say, quiet=quiet)
        return description

    return patiently(look, "job", say=say, sleep=sleep, every_s=_POLL_S)


def patiently(
    look: Callable[[], T | None],
    what: str,
    *,
    say: Callable[[str], None],
    sleep: Callable[[float], None],
    every_s: float,
) -> T:
    """Looks until there is something to see, whatever passes in between.

    Args:
        look: returns None while there is nothing to see yet.
        what: goes on when a look fails: `job`.
        say: takes one line.
        sleep: takes seconds.
        every_s: seconds between two looks.

    Raises:
        ServiceError: a look failed for other reasons than a passing one, or too often in a row.
    """
    failures = 0
    while True:
        try:
            found = look()
            if found is not None:
                return found
            failures = 0
        except ServiceError as error:
            failures += 1
            if not error.passing or failures > _PATIENCE:
                raise
            say(f"({error}; trying again, the {what} goes on)")
        sleep(every_s)


def goes_on(name: str) -> str:
    """What to say when the watching ends and the job does not."""
    return (
        f"{name} goes on, and goes on costing: `launch.py logs {name} --follow` watches it again, "
        f"`launch.py stop {name}` ends it"
    )


def outcome(description: Mapping[str, Any]) -> list[str]:
    """How a job stands, for people; of a failed one the first line is why.

    Args:
        description: answer to DescribeTrainingJob.
    """
    name, status = description["TrainingJobName"], description["TrainingJobStatus"]
    detail = description.get("SecondaryStatus", "")
    lines = [f"{name}: {status}" + (f" ({detail})" if detail not in ("", status) else "")]
    if status == "Failed":
        lines = [f"{name} failed: {description.get('FailureReason', 'SageMaker gives no reason; see the log')}"]
    if detail == "MaxRuntimeExceeded":
        lines.append("it was stopped at --max-run; the model is that of the best epoch so far")
    seconds, billed = description.get("TrainingTimeInSeconds"), description.get("BillableTimeInSeconds")
    if seconds is not None and billed is not None:
        saved = f", {1 - billed / seconds:.0%} saved by spot" if 0 <= billed < seconds else ""
        lines.append(f"trained for {in_words(seconds)}, billed for {in_words(billed)} per instance{saved}")
    metrics = {one["MetricName"]: one["Value"] for one in description.get("FinalMetricDataList", [])}
    ours = [f"{metric}={metrics[metric]:.6g}" for metric in METRIC_NAMES if metric in metrics]
    if ours:
        lines.append("metrics: " + " ".join(ours))
    return lines


def model_uri(description: Mapping[str, Any]) -> str | None:
    """Where the job's model.tar.gz is, or None before there is one."""
    uri = description.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    return str(uri) if uri else None


def raise_if_failed(description: Mapping[str, Any]) -> None:
    """Raises `OutcomeError`, whose first line is why, for a job that failed."""
    if description["TrainingJobStatus"] == "Failed":
        raise OutcomeError("\n".join(outcome(description)))


def _tell(tail: LogTail, say: Callable[[str], None], *, quiet: bool) -> None:
    for line in tail.read():
        if not quiet or read_metrics(line):
            say(line)


def _host(stream: str) -> str:
    """`algo-1` of `JOB/algo-1-1700000000`; a restarted spot job has several streams of one host."""
    return stream.rpartition("/")[2].rpartition("-")[0]


def _clock(time: object) -> str:
    return time.astimezone(UTC).strftime("%H:%M:%S") if isinstance(time, datetime) else "--:--:--"
