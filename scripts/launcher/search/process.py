"""One trial of a local search: `container/train` on a folder laid out like /opt/ml, and what it has printed and left.

The log goes to a file, which is read as it grows; the regexes are those that SageMaker is given. How a trial is started
is a `Starter`'s affair: here as a process of its own, in `forks` and `containers` in two other ways. Everything is
called from one thread.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dogbreed.logs import read_metrics
from scripts.launcher.errors import OutcomeError

REPOSITORY = Path(__file__).resolve().parents[3]
LOG = "log"
"""Of a trial, in its folder."""

GRACE_S = 120.0
"""From SIGTERM to SIGKILL, as the platform waits."""

# A container that could not be started (docker run, exit status): the log then is what Docker says.
_CLIENT_CODES = (125, 126, 127)
_EPOCH = re.compile(r"\bepoch=(\d+);")
# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Job:
    """What every trial has in common.

    Attributes:
        data: folder of images.
        weights: state-dict file, or None.
        cache: folder that the trials share for what is computed once.
        python: interpreter with the training libraries.
    """

    data: Path
    weights: Path | None
    cache: Path
    python: str = sys.executable


@dataclass(frozen=True, slots=True)
class Order:
    """A trial that is to be started.

    Attributes:
        job: what every trial has in common.
        folder: stands for /opt/ml; emptied.
        hyperparameters: of this trial, as text.
        cores: that it may use.
        device: for CUDA_VISIBLE_DEVICES; None leaves it as it is.
    """

    job: Job
    folder: Path
    hyperparameters: Mapping[str, str]
    cores: Sequence[int]
    device: str | None


class Running(Protocol):
    """A trial that was started, wherever it runs."""

    def poll(self) -> int | None:
        """Exit code; None while it runs, negative after a signal that it did not handle."""

    def stop(self) -> None:
        """SIGTERM: the job keeps the bundle of its best epoch and ends."""

    def wait(self) -> None:
        """Waits for its end after a stop, as long as the platform would; then SIGKILL."""


class Starter(Protocol):
    """One way of running trials."""

    def start(self, order: Order) -> Running:
        """Lays the folder out and starts the trial, whose log is there from then on.

        Raises:
            OutcomeError: the folder cannot be laid out, or nothing can be started; says why.
        """

    def close(self) -> None:
        """Frees what it holds, once nothing runs any more."""


@dataclass
class Started:
    """What a trial has printed and left.

    Attributes:
        folder: stands for /opt/ml.
        running: what runs it.
    """

    folder: Path
    running: Running
    code: int | None = None
    _read: int = 0
    _started: float = field(default_factory=time.monotonic)
    _seconds: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it has ended; its `code` is then known."""
        if self.code is None:
            self.code = self.running.poll()
            if self.code is not None:
                self._seconds = time.monotonic() - self._started
        return self.code is not None

    @property
    def seconds(self) -> float:
        """Since its start, or what it took."""
        return time.monotonic() - self._started if self._seconds is None else self._seconds

    def epochs(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Epoch and metrics of every epoch that was printed since the last call."""
        with (self.folder / LOG).open("rb") as log:
            log.seek(self._read)
            new = log.read()
        # A line that is being written is read when it is whole.
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            metrics, epoch = read_metrics(line), _EPOCH.search(line)
            if metrics and epoch:
                yield int(epoch.group(1)), metrics

    def stop(self) -> None:
        """See `Running`."""
        if not self.ended:
            self.running.stop()

    def metrics(self) -> dict[str, float]:
        """Those of its bundle, which is that of its best epoch; empty without one."""
        return {name: float(value) for name, value in self._bundle().get("metrics", {}).items()}

    def images(self, metric: str) -> int | None:
        """How many images a metric of its bundle was measured on; None where nobody knows."""
        count = self._bundle().get("facts", {}).get(f"{metric.split('_', maxsplit=1)[0]}_images")
        return int(count) if count else None

    def _bundle(self) -> dict[str, Any]:
        try:
            bundle: dict[str, Any] = json.loads((self.folder / "model" / "bundle.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return {}
        return bundle

    def reason(self) -> str:
        """Why it failed, as the platform would say it: the first line of the failure file."""
        try:
            text = (self.folder / "output" / "failure").read_text(encoding="utf-8").strip()
        except OSError:
            text = ""
        if not text and self.code in _CLIENT_CODES:
            text = "".join((self.folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:])
        return text.splitlines()[0] if text else f"exit code {self.code}; see {self.folder / LOG}"


class Processes:
    """Starts a trial as a process of its own: works everywhere, and imports everything anew."""

    def start(self, order: Order) -> Running:
        """See `Starter`."""
        lay_out(order)
        with (order.folder / LOG).open("wb") as log:
            process = subprocess.Popen(  # noqa: S603  our own
                [order.job.python, str(REPOSITORY / "container" / "train")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environ_of(order),
                # Ctrl-C is for the search, which stops its trials itself.
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  the search has one thread
            )
        # Its threads come later, and inherit this.
        if order.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, order.cores)
        return _Process(process)

    def close(self) -> None:
        """See `Starter`."""


@dataclass(frozen=True, slots=True)
class _Process:
    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)

    def wait(self) -> None:
        try:
            self.process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def environ_of(order: Order) -> dict[str, str]:
    """The environment of a trial that runs on this machine as it is."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environ |= {
        "SAGEMAKER_BASE_DIR": str(order.folder.resolve()),
        "DOGBREED_CACHE_DIR": str(order.job.cache.resolve()),
        "OMP_NUM_THREADS": str(len(order.cores)),
        # As the image sets it: torch's threads leave the cores to the loader's processes while they wait.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
        "TRAINING_JOB_NAME": order.folder.name,
    }
    if order.device is not None:
        environ["CUDA_VISIBLE_DEVICES"] = order.device
    return environ


def import_path() -> str:
    """PYTHONPATH for a program of this repository."""
    folders = [str(REPOSITORY / "container"), str(REPOSITORY)]
    return os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])


def lay_out(order: Order, *options: str) -> None:
    """Lays the folder of a trial out with `local_test/stage.py`.

    Args:
        order: of the trial.
        options: further ones of that program.

    Raises:
        OutcomeError: it cannot be done; says why.
    """
    job = order.job
    job.cache.mkdir(parents=True, exist_ok=True)
    pairs = shlex.join(f"{name}={value}" for name, value in order.hyperparameters.items())
    command = [job.python, str(REPOSITORY / "local_test" / "stage.py"), str(order.folder), "--data", str(job.data)]
    # Values that were drawn and cannot go together are a failed trial, and no reason to end the search.
    command += ["--unchecked", "--hp", pairs, *(("--weights", str(job.weights)) if job.weights else ()), *options]
    environ = {**os.environ, "PYTHONPATH": import_path()}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)  # noqa: S603  our own
    if done.returncode:
        raise OutcomeError((done.stderr.strip().splitlines() or ["stage.py failed without a word"])[-1])


def die_with_parent() -> None:
    """Asks the kernel for SIGTERM when the search is killed, so that no trial is left behind; Linux alone has it."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def forget_model(folder: Path) -> None:
    """Removes the bundle of a trial that is not the best."""
    shutil.rmtree(folder / "model", ignore_errors=True)
