"""Starts training jobs for the checks, and tells what came of them. The same job is run once."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from local_test.simulator.checks.layout import Host, Trait, lay_out
from local_test.simulator.checks.patience import Patience
from local_test.simulator.checks.profile import Training
from local_test.simulator.subjects import Command, Mount, Network, Running, Start, Subject

_POLL_S = 0.02


@dataclass(frozen=True)
class Job:
    """What is asked for; equal jobs share one run.

    Args:
        traits: ways in which its files are unlike those of a plain job.
        changes: to the profile's hyperparameters.
        empty: there is nothing in its channels.
        isolated: in a network of its own, without a way out.
        again: another run of what else would be the same job.
    """

    traits: frozenset[Trait] = frozenset()
    changes: tuple[tuple[str, str], ...] = ()
    empty: bool = False
    isolated: bool = False
    again: bool = False


@dataclass(frozen=True)
class Ended:
    """What one host of a job left.

    Args:
        exit_code: None when it did not end in time, and was killed.
        root: its /opt/ml.
        log: all that it printed.
        written: targets of read-only mounts where it wrote all the same.
        seconds: that it took.
    """

    exit_code: int | None
    root: Path
    log: str
    written: Sequence[str] = ()
    seconds: float = 0.0

    @property
    def model(self) -> list[str]:
        """Paths of the files in the model folder."""
        return files_in(self.root / "model")

    @property
    def output(self) -> list[str]:
        """Paths of the files in output/data."""
        return files_in(self.root / "output" / "data")

    @property
    def failure(self) -> bytes | None:
        """What the failure file holds."""
        file = self.root / "output" / "failure"
        return file.read_bytes() if file.is_file() else None

    @property
    def how(self) -> str:
        """How it ended, with the end of its log, for evidence."""
        end = "it did not end in time" if self.exit_code is None else f"it ended with exit code {self.exit_code}"
        reason = " ".join((self.failure or b"").decode("utf-8", "replace").split())[:200]
        return f"{end}; its failure file says {reason!r}" if reason else f"{end}{self.last_words}"

    @property
    def last_words(self) -> str:
        """The last line of the log, for evidence; empty without one."""
        lines = [line.strip() for line in self.log.splitlines() if line.strip()]
        return f"; its last line was {lines[-1][:200]!r}" if lines else "; it printed nothing"


def files_in(folder: Path) -> list[str]:
    """Paths of the files below a folder, relative to it, sorted."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir() or file.is_symlink())


@dataclass(frozen=True)
class LongJob:
    """A job on its way, which somebody is about to stop or lose.

    Args:
        running: the subject.
        root: its /opt/ml.
        log_file: what it prints.
        checkpoints: its checkpoint folder.
    """

    running: Running
    root: Path
    log_file: Path
    checkpoints: Path

    @property
    def log(self) -> str:
        """All that it printed so far."""
        return read_log(self.log_file)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Waits for the condition; False when the job ended, or the time was over, before."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if condition():
                return True
            if self.running.exit_code() is not None:
                return condition()
            time.sleep(_POLL_S)
        return False

    def ended(self, exit_code: int | None) -> Ended:
        """What it left."""
        return Ended(exit_code, self.root, self.log, self.running.written())


@dataclass
class Jobs:
    """The training jobs of one run of checks.

    Args:
        subject: what trains.
        training: how.
        patience: for how long.
        work: folder for everything.
        contained: the subject sees /opt/ml, not this machine's paths.
    """

    subject: Subject
    training: Training
    patience: Patience
    work: Path
    contained: bool
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _ended: dict[Job, Ended] = field(default_factory=dict)

    def run(self, job: Job) -> Ended:
        """What the job left, run now or before."""
        if job not in self._ended:
            self._ended[job] = self._run(job)
        return self._ended[job]

    @contextlib.contextmanager
    def long(self, changes: Mapping[str, str], checkpoints: Path | None = None) -> Iterator[LongJob]:
        """Starts a job and leaves it running; ended when the block is left.

        Args:
            changes: to the profile's hyperparameters.
            checkpoints: folder whose content the job finds in its checkpoint folder; None without a CheckpointConfig.
        """
        folder = self._folder()
        root, log = folder / "ml", folder / "log"
        local = root / "checkpoints"
        seen = "/opt/ml/checkpoints" if self.contained else str(local)
        mounts = lay_out(
            root,
            folder / "beside",
            channels=self.training.channels,
            hyperparameters={**self.training.hyperparameters, **changes},
            checkpoints=seen if checkpoints else "",
        )
        if checkpoints:
            shutil.copytree(checkpoints, local)
        running = self.subject.start(
            Start(Command.TRAIN, root, log, environment=self.training.environment, mounts=mounts)
        )
        try:
            yield LongJob(running, root, log, local)
        finally:
            running.close()

    def run_hosts(self, count: int, *, empty: int | None = None) -> list[Ended]:
        """Runs a job on several hosts.

        Args:
            count: of hosts.
            empty: the number of a host whose channels hold nothing, of a sharded job.

        Returns:
            What each left; ``seconds`` counts from the start of the first.
        """
        folder = self._folder()
        nothing = folder / "nothing"
        nothing.mkdir()
        channels = self.training.channels
        began = time.monotonic()
        with self.subject.network(count) as network, contextlib.ExitStack() as stack:
            hosts: list[tuple[Running, Path, Path]] = []
            for number, name in enumerate(network.hosts):
                root, log = folder / name / "ml", folder / name / "log"
                mounts = lay_out(
                    root,
                    folder / name / "beside",
                    channels=dict.fromkeys(channels, nothing) if number == empty else channels,
                    hyperparameters=self.training.hyperparameters,
                    host=Host(name, network.hosts, network.interface),
                    sharded=empty is not None,
                )
                running = self.subject.start(self._start_of_host(root, log, mounts, name, network))
                stack.callback(running.close)
                hosts.append((running, root, log))
            return self._wait_for_hosts(hosts, began)

    def objectives(self, log: str) -> list[float | None]:
        """The objective of each line that holds it; None where it is not a number."""
        found = (re.search(self.training.objective_regex, line) for line in log.splitlines())
        return [_number(match.group(1)) for match in found if match]

    def closing_lines(self, values: Sequence[float | None]) -> int:
        """1 where the last of a plain job's objectives is an earlier one said again, as the tuner likes it, else 0."""
        epochs = self.training.epochs
        return int(epochs is not None and len(values) == epochs + 1 and values[-1] in values[:-1])

    def _start_of_host(self, root: Path, log: Path, mounts: Sequence[Mount], name: str, network: Network) -> Start:
        return Start(
            Command.TRAIN,
            root,
            log,
            environment=self.training.environment,
            mounts=mounts,
            host=name,
            network=network,
        )

    def _wait_for_hosts(self, hosts: Sequence[tuple[Running, Path, Path]], began: float) -> list[Ended]:
        """Waits for all; once one has ended, the others have `together_s` left."""
        ends: dict[int, tuple[int | None, float]] = {}
        deadline = began + self.patience.train_s
        while len(ends) < len(hosts) and time.monotonic() < deadline:
            for number, (running, _, _) in enumerate(hosts):
                if number not in ends and (code := running.exit_code()) is not None:
                    ends[number] = (code, time.monotonic() - began)
                    deadline = min(deadline, time.monotonic() + self.patience.together_s)
            time.sleep(_POLL_S)
        late = (None, time.monotonic() - began)
        return [
            Ended(ends.get(number, late)[0], root, read_log(log), running.written(), ends.get(number, late)[1])
            for number, (running, root, log) in enumerate(hosts)
        ]

    def _run(self, job: Job) -> Ended:
        folder = self._folder()
        root, log = folder / "ml", folder / "log"
        channels = self.training.channels
        if job.empty:
            nothing = folder / "nothing"
            nothing.mkdir()
            channels = dict.fromkeys(channels, nothing)
        mounts = lay_out(
            root,
            folder / "beside",
            channels=channels,
            hyperparameters={**self.training.hyperparameters, **dict(job.changes)},
            traits=job.traits,
        )
        began = time.monotonic()
        running = self.subject.start(
            Start(
                Command.TRAIN,
                root,
                log,
                environment=self.training.environment,
                mounts=mounts,
                network_isolation=job.isolated,
            )
        )
        try:
            code = running.wait(self.patience.train_s)
            seconds = time.monotonic() - began
            if code is None:
                running.kill()
            return Ended(code, root, read_log(log), running.written(), seconds)
        finally:
            running.close()

    def _folder(self) -> Path:
        folder = self.work / f"job-{next(self._numbers)}"
        folder.mkdir(parents=True)
        return folder


def read_log(file: Path) -> str:
    """All that is there, whatever bytes."""
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
