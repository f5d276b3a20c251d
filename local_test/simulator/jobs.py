"""A training job from CreateTrainingJob to its end, on hosts of this machine.

The order of events is the platform's: Starting, Downloading, Training, Uploading, and one of Completed, Failed and
Stopped. A spot interruption takes all hosts at once, and they start anew with nothing but the checkpoints.

Sources: AWS docs, your-algorithms-training-algo-dockerfile (stop), model-managed-spot-training (Interrupted),
your-algorithms-training-algo-output (failure), train-warm-pools; API reference, StoppingCondition,
SecondaryStatusTransition.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path, PurePosixPath
from typing import Protocol

from local_test.simulator import archives, layout
from local_test.simulator.channels import MAX_CHANNELS, Channel, InputMode, RequestError
from local_test.simulator.layout import InstanceGroup
from local_test.simulator.metrics import Scraper
from local_test.simulator.pipes import Feeder
from local_test.simulator.records import Record
from local_test.simulator.stores import Synced
from local_test.simulator.subjects import Command, Limits, Mount, Network, Running, Start, Subject

STOP_GRACE_S = 120.0
"""Between SIGTERM and SIGKILL."""

_FAILURE_CHARACTERS = 1024
_OPT_ML = PurePosixPath("/opt/ml")
_WARM_POOL = "sagemaker/warmpoolcache"
_MAX_GROUPS = 5
_TICK_S = 0.05
# The platform does not say what becomes of the other hosts when one fails.
_OTHERS_S = 10.0


@dataclass(frozen=True)
class Checkpoints:
    """CheckpointConfig.

    Args:
        local_path: where the subject finds them, below /opt/ml.
        store: folder that stands for S3Uri; None is one of the job's own.
        every_s: how often the folder is synced. The platform does not say how often it does.
    """

    local_path: str = "/opt/ml/checkpoints"
    store: Path | None = None
    every_s: float = 1.0

    def __post_init__(self) -> None:
        """Refuses a path that cannot be laid out here."""
        path = PurePosixPath(self.local_path)
        if not path.is_relative_to(_OPT_ML) or path == _OPT_ML or ".." in path.parts:
            raise RequestError(f"checkpoints at {self.local_path!r}: only folders below /opt/ml can be had here")

    @property
    def target(self) -> str:
        """The local path relative to the root."""
        return str(PurePosixPath(self.local_path).relative_to(_OPT_ML))


@dataclass(frozen=True)
class Request:
    """CreateTrainingJob, as far as it matters here.

    Args:
        name: new in the folder of jobs.
        hyperparameters: bare strings.
        channels: input.
        hosts: how many; with groups, of all together.
        instance_type: told to the subject; with groups, theirs is.
        groups: of a heterogeneous cluster; empty is one group of all hosts.
        limits: of each host.
        quoted: hyperparameters JSON-encoded; see `layout.written`.
        environment: variables for the subject.
        region: told to the subject.
        metrics: name -> regex.
        checkpoints: synced, or None.
        documents: further files of input/config.
        network_isolation: see `Start`.
        max_runtime_s: then it is stopped.
        stop_after_s: StopTrainingJob so long after the start of training.
        interruptions_s: spot interruptions so long after the start of training, of the first, second ... attempt.
        stop_grace_s: between SIGTERM and SIGKILL; the platform's unless a test is in a hurry.
        warm_pool: folder that stands for the persistent cache of a warm pool, with a folder in it for each of several
            hosts; None is no warm pool.
    """

    name: str
    hyperparameters: Mapping[str, str] = field(default_factory=dict)
    channels: Sequence[Channel] = ()
    hosts: int = 1
    instance_type: str = "ml.m5.xlarge"
    groups: Sequence[InstanceGroup] = ()
    limits: Limits = field(default_factory=Limits)
    quoted: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    region: str = "us-east-1"
    metrics: Mapping[str, str] = field(default_factory=dict)
    checkpoints: Checkpoints | None = None
    documents: Mapping[str, object] = field(default_factory=dict)
    network_isolation: bool = False
    max_runtime_s: float = 86400.0
    stop_after_s: float | None = None
    interruptions_s: Sequence[float] = ()
    stop_grace_s: float = STOP_GRACE_S
    warm_pool: Path | None = None

    def __post_init__(self) -> None:
        """Refuses what the service refuses."""
        names = [channel.name for channel in self.channels]
        if len(names) > MAX_CHANNELS or len(set(names)) < len(names):
            raise RequestError(f"channels {', '.join(names)}: {MAX_CHANNELS} at most, each name once")
        if self.hosts < 1:
            raise RequestError(f"{self.hosts} hosts; a job has one at least")
        if self.warm_pool is not None and self.interruptions_s:
            raise RequestError("a warm pool and spot instances exclude each other on SageMaker; leave one of them out")
        if self.groups:
            self._check_groups()
        unknown = {group for channel in self.channels for group in channel.groups} - {one.name for one in self.groups}
        if unknown:
            raise RequestError(f"a channel is for the instance group {min(unknown)}, which the job does not have")

    def _check_groups(self) -> None:
        names = [group.name for group in self.groups]
        if len(names) > _MAX_GROUPS or len(set(names)) < len(names):
            raise RequestError(f"instance groups {', '.join(names)}: {_MAX_GROUPS} at most, each name once")
        if sum(group.count for group in self.groups) != self.hosts:
            raise RequestError(f"{self.hosts} hosts are not those of the instance groups together")
        if self.warm_pool is not None:
            raise RequestError("a warm pool and instance groups exclude each other on SageMaker; leave one of them out")

    @property
    def clusters(self) -> Sequence[InstanceGroup]:
        """The groups, or the one that a cluster of one type is."""
        return self.groups or [InstanceGroup(layout.GROUP, self.instance_type, self.hosts)]

    def share(self, channel: Channel, host: str, hosts: Sequence[str]) -> tuple[int, int] | None:
        """Which of how many shares of a channel a host gets; None when its group gets none."""
        own = layout.members(self.clusters, hosts)
        takers = [one for name in channel.groups or own for one in own[name]]
        return (takers.index(host), len(takers)) if host in takers else None


class Listener(Protocol):
    """Who is told of a job while it runs."""

    def line(self, host: str, text: str) -> None:
        """A host said something."""

    def status(self, record: Record) -> None:
        """The job entered another secondary status."""

    def metrics(self, record: Record, scraper: Scraper) -> None:
        """A line told a metric."""


class _Ending(Enum):
    BY_ITSELF = auto()
    STOPPED = auto()
    MAX_RUNTIME = auto()
    INTERRUPTED = auto()


@dataclass
class _Host:
    """One host of one attempt."""

    name: str
    root: Path
    running: Running
    feeders: Sequence[Feeder]
    synced: Synced | None


def run(
    request: Request,
    subject: Subject,
    folder: Path,
    listener: Listener,
    *,
    stop: Callable[[], bool] = lambda: False,
    lose: Callable[[], bool] = lambda: False,
) -> Record:
    """Runs a job to its end.

    Args:
        request: what to run.
        subject: what runs.
        folder: of all jobs.
        listener: is told.
        stop: asked again and again; True is StopTrainingJob.
        lose: asked likewise; True is a spot interruption now.

    Raises:
        RequestError: the service would refuse it.
        SubjectError: nothing could be started.
    """
    hyperparameters = layout.written(request.hyperparameters, quoted=request.quoted)
    scraper = Scraper(request.metrics)
    record = Record.create(folder.resolve(), request.name, request.region, _described(request, subject))
    job = _Job(
        request=request,
        subject=subject,
        record=record,
        hyperparameters=hyperparameters,
        scraper=scraper,
        listener=listener,
        stop=stop,
        lose=lose,
    )
    try:
        job.run()
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            record.content["FailureReason"] = f"{type(error).__name__}: {error}"[:_FAILURE_CHARACTERS]
        job.end("Failed")
        raise
    return record


class _Job:
    def __init__(
        self,
        *,
        request: Request,
        subject: Subject,
        record: Record,
        hyperparameters: Mapping[str, str],
        scraper: Scraper,
        listener: Listener,
        stop: Callable[[], bool],
        lose: Callable[[], bool],
    ) -> None:
        self._request = request
        self._subject = subject
        self._record = record
        self._hyperparameters = hyperparameters
        self._scraper = scraper
        self._listener = listener
        self._stop = stop
        self._lose = lose
        self._trained_s = 0.0

    def run(self) -> None:
        request, record = self._request, self._record
        interruptions = list(request.interruptions_s)
        network = self._subject.network(request.hosts) if request.hosts > 1 else contextlib.nullcontext(None)
        with network as made:
            names = made.hosts if made else ("algo-1",)
            readers = {name: _Lines(record.folder / "logs" / f"{name}.log") for name in names}
            while True:
                attempt = record.local["Attempts"] = record.local.get("Attempts", 0) + 1
                ending, codes = self._attempt(made, readers, interruptions.pop(0) if interruptions else None)
                if ending is not _Ending.INTERRUPTED:
                    break
                self._move("Interrupted", f"attempt {attempt} lost all its instances")
        record.local["ExitCodes"] = codes
        failed = ending is _Ending.BY_ITSELF and any(codes.values())
        self._move("Uploading", "")
        roots = {name: self._root(name) for name in names}
        self._upload(roots, model=not failed)
        if failed:
            record.content["FailureReason"] = _failure_reason(roots, codes)
            self.end("Failed", record.content["FailureReason"])
        elif ending is _Ending.BY_ITSELF:
            self.end("Completed")
        else:
            if ending is _Ending.MAX_RUNTIME:
                self._move("MaxRuntimeExceeded", f"the job ran longer than {request.max_runtime_s:g} s")
            self.end("Stopped")

    def end(self, status: str, message: str = "") -> None:
        record = self._record
        record.content["TrainingJobStatus"] = status
        record.content["FinalMetricDataList"] = list(self._scraper.final())
        record.content["TrainingEndTime"] = time.time()
        trained_s = round(record.seconds("Downloading", "Training", "Stopping", "Uploading"))
        record.content["TrainingTimeInSeconds"] = record.content["BillableTimeInSeconds"] = trained_s
        self._move(status, message)

    def _move(self, status: str, message: str) -> None:
        self._record.move(status, message)
        self._listener.status(self._record)

    def _root(self, host: str) -> Path:
        return self._record.folder / "hosts" / host / "ml"

    def _attempt(
        self, network: Network | None, readers: Mapping[str, _Lines], interrupt_after_s: float | None
    ) -> tuple[_Ending, dict[str, int | None]]:
        hosts: list[_Host] = []
        last_sync = True
        try:
            self._move("Starting", "")
            # An instance that was lost took all it had with it.
            shutil.rmtree(self._record.folder / "hosts", ignore_errors=True)
            self._move("Downloading", "")
            starts = [self._prepare(name, network, readers) for name in readers]
            self._move("Training", "")
            self._record.content.setdefault("TrainingStartTime", time.time())
            for start in starts:
                hosts.append(self._start(start))
            ending = self._watch(hosts, readers, interrupt_after_s)
            last_sync = ending is not _Ending.INTERRUPTED
        finally:
            self._close(hosts, last_sync=last_sync)
            self._relay(readers, last=True)
        written = sorted({target for host in hosts for target in host.running.written()})
        if written:
            self._record.local["WrittenChannels"] = written
        return ending, {host.name: host.running.exit_code() for host in hosts}

    def _prepare(self, name: str, network: Network | None, readers: Mapping[str, _Lines]) -> Start:
        request, hosts = self._request, list(readers)
        root = self._root(name)
        shares = [(channel, share) for channel in request.channels if (share := request.share(channel, name, hosts))]
        documents = dict(request.documents)
        if request.checkpoints:
            documents["checkpointconfig"] = {"LocalPath": request.checkpoints.local_path}
        layout.lay_out(
            root,
            host=name,
            hosts=hosts,
            interface=network.interface if network else "eth0",
            groups=request.clusters,
            hyperparameters=self._hyperparameters,
            channels=[channel for channel, _ in shares],
            documents=documents,
        )
        mounts = [
            Mount(channel.folder(*share, root.parent / "shares"), f"input/data/{channel.name}")
            for channel, share in shares
            if channel.mode is not InputMode.PIPE
        ]
        environment = {
            "TRAINING_JOB_NAME": request.name,
            "TRAINING_JOB_ARN": str(self._record.content["TrainingJobArn"]),
            "AWS_REGION": request.region,
        }
        if request.warm_pool is not None:
            kept = request.warm_pool.absolute() / (name if len(hosts) > 1 else "")
            kept.mkdir(parents=True, exist_ok=True)
            mounts.append(Mount(kept, _WARM_POOL, read_only=False))
            environment["SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY"] = str(_OPT_ML / _WARM_POOL)
        return Start(
            Command.TRAIN,
            root,
            readers[name].file,
            environment={**environment, **request.environment},
            mounts=mounts,
            host=name,
            network=network,
            limits=request.limits,
            network_isolation=request.network_isolation,
        )

    def _start(self, start: Start) -> _Host:
        request = self._request
        names = start.network.hosts if start.network else (start.host,)
        synced = None
        if request.checkpoints:
            store = request.checkpoints.store or self._record.folder / "checkpoints"
            synced = Synced(start.root / request.checkpoints.target, store, request.checkpoints.every_s)
        feeders: list[Feeder] = []
        try:
            for channel in request.channels:
                share = request.share(channel, start.host, names)
                if channel.mode is InputMode.PIPE and share is not None:
                    feeders.append(Feeder(channel, start.root / "input" / "data", *share))
            return _Host(start.host, start.root, self._subject.start(start), feeders, synced)
        except BaseException:
            for feeder in feeders:
                feeder.close()
            if synced:
                synced.close(last=False)
            raise

    def _close(self, hosts: Sequence[_Host], *, last_sync: bool) -> None:
        for host in hosts:
            if host.synced:
                host.synced.close(last=last_sync)
            host.running.close()
            for feeder in host.feeders:
                feeder.close()

    def _watch(self, hosts: Sequence[_Host], readers: Mapping[str, _Lines], interrupt_after_s: float | None) -> _Ending:
        """Until no host runs."""
        request = self._request
        began = time.monotonic()
        ending = _Ending.BY_ITSELF
        terminated_at = failed_at = None
        while True:
            self._relay(readers)
            codes = [host.running.exit_code() for host in hosts]
            if None not in codes:
                return ending
            now = time.monotonic()
            elapsed_s = now - began
            due = interrupt_after_s is not None and elapsed_s >= interrupt_after_s
            if terminated_at is None and (due or self._lose()):
                _kill(hosts)
                # MaxRuntimeInSeconds counts over interruptions.
                self._trained_s += elapsed_s
                return _Ending.INTERRUPTED
            if any(codes) and failed_at is None:
                failed_at = now
            if terminated_at is None:
                if self._is_to_stop(elapsed_s):
                    ending = _Ending.STOPPED
                elif self._trained_s + elapsed_s >= request.max_runtime_s:
                    ending = _Ending.MAX_RUNTIME
                elif failed_at is None or now < failed_at + _OTHERS_S:
                    time.sleep(_TICK_S)
                    continue
                if ending is not _Ending.BY_ITSELF:
                    self._move("Stopping", "")
                for host in hosts:
                    host.running.terminate()
                terminated_at = now
            elif now >= terminated_at + request.stop_grace_s:
                _kill(hosts)
            time.sleep(_TICK_S)

    def _is_to_stop(self, elapsed_s: float) -> bool:
        after_s = self._request.stop_after_s
        return (after_s is not None and elapsed_s >= after_s) or self._record.is_asked_to_stop() or self._stop()

    def _relay(self, readers: Mapping[str, _Lines], *, last: bool = False) -> None:
        for name, reader in readers.items():
            for line in reader.read(last=last):
                self._listener.line(name, line)
                if self._scraper.read(line):
                    self._listener.metrics(self._record, self._scraper)

    def _upload(self, roots: Mapping[str, Path], *, model: bool) -> None:
        output = self._record.folder / "output"
        clashes: list[str] = []
        if model:
            archive = output / "model.tar.gz"
            clashes += archives.pack({name: root / "model" for name, root in roots.items()}, archive)
            self._record.content["ModelArtifacts"] = {"S3ModelArtifacts": str(archive)}
        clashes += archives.pack(
            {name: root / "output" / "data" for name, root in roots.items()}, output / "output.tar.gz"
        )
        self._record.local["Clashes"] = clashes


class _Lines:
    """The lines of a growing file, each once."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._position = 0
        self._rest = b""

    def read(self, *, last: bool) -> Sequence[str]:
        """Complete lines that are new; with ``last`` also one without an end."""
        if not self.file.exists():
            return []
        with self.file.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        self._position += len(new)
        # A progress bar's carriage return ends a line, too.
        *lines, self._rest = (self._rest + new).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if last and self._rest:
            lines.append(self._rest)
            self._rest = b""
        return [line.decode(errors="replace") for line in lines]


def _kill(hosts: Sequence[_Host]) -> None:
    """SIGKILL to all hosts at the same time."""
    threads = [threading.Thread(target=host.running.kill) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _failure_reason(roots: Mapping[str, Path], codes: Mapping[str, int | None]) -> str:
    """What the first host that failed says in its failure file; without one, what the platform says."""
    failed = [name for name, code in codes.items() if code]
    for name in failed:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            text = (roots[name] / "output" / "failure").read_text(encoding="utf-8", errors="replace")
            if text:
                return text[:_FAILURE_CHARACTERS]
    return f"AlgorithmError: , exit code: {codes[failed[0]]}"


def _described(request: Request, subject: Subject) -> Mapping[str, object]:
    checkpoints = request.checkpoints
    told: dict[str, object] = {
        "HyperParameters": dict(request.hyperparameters),
        "AlgorithmSpecification": {
            "TrainingImage": subject.title,
            "MetricDefinitions": [{"Name": name, "Regex": regex} for name, regex in request.metrics.items()],
        },
        "InputDataConfig": [
            {
                "ChannelName": channel.name,
                "InputMode": str(channel.mode),
                "DataSource": {
                    "S3DataSource": {
                        "S3Uri": str(channel.source),
                        "S3DataDistributionType": channel.described()["S3DistributionType"],
                        **({"InstanceGroupNames": list(channel.groups)} if channel.groups else {}),
                    }
                },
                "RecordWrapperType": channel.described()["RecordWrapperType"],
            }
            for channel in request.channels
        ],
        "ResourceConfig": _resources(request),
        "StoppingCondition": {"MaxRuntimeInSeconds": request.max_runtime_s},
        "Environment": dict(request.environment),
        "EnableNetworkIsolation": request.network_isolation,
        "EnableManagedSpotTraining": bool(request.interruptions_s),
    }
    if checkpoints:
        told["CheckpointConfig"] = {
            "LocalPath": checkpoints.local_path,
            "S3Uri": str(checkpoints.store or "checkpoints/ of this job"),
        }
    return told


def _resources(request: Request) -> Mapping[str, object]:
    if not request.groups:
        return {"InstanceType": request.instance_type, "InstanceCount": request.hosts}
    return {
        "InstanceGroups": [
            {"InstanceGroupName": one.name, "InstanceType": one.instance_type, "InstanceCount": one.count}
            for one in request.groups
        ]
    }
