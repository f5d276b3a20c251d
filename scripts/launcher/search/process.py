"""One trial of a local search: `container/train` as a process, on a folder laid out like /opt/ml.

The folder is laid out by `local_test/stage.py`, and the features are shared with every other trial. The log goes to a
file, which is read as it grows; the regexes are those that SageMaker is given. Everything here is called from one
thread.
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
from dataclasses import dataclass
from pathlib import Path

from dogbreed.logs import read_metrics
from scripts.launcher.errors import OutcomeError

REPOSITORY = Path(__file__).resolve().parents[3]
_EPOCH = re.compile(r"\bepoch=(\d+);")
# As the platform waits after SIGTERM.
_GRACE_S = 120.0
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


class TrialProcess:
    """A trial that runs, or has run.

    Args:
        job: what every trial has in common.
        folder: stands for /opt/ml; emptied.
        hyperparameters: of this trial, as text.
        cores: that it may use.
        device: for CUDA_VISIBLE_DEVICES; None leaves it as it is.

    Raises:
        OutcomeError: the folder cannot be laid out; says why.
    """

    def __init__(
        self, job: Job, folder: Path, hyperparameters: Mapping[str, str], cores: Sequence[int], device: str | None
    ) -> None:
        self.folder = folder
        _stage(job, folder, hyperparameters)
        job.cache.mkdir(parents=True, exist_ok=True)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environ |= {
            "SAGEMAKER_BASE_DIR": str(folder.resolve()),
            "DOGBREED_CACHE_DIR": str(job.cache.resolve()),
            "OMP_NUM_THREADS": str(len(cores)),
            # As the image sets it: torch's threads leave the cores to the loader's processes while they wait.
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
            "TRAINING_JOB_NAME": folder.name,
        }
        if device is not None:
            environ["CUDA_VISIBLE_DEVICES"] = device
        self._log = folder / "log"
        self._read = 0
        self._started = time.monotonic()
        self._ended: float | None = None
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  our own
                [job.python, str(REPOSITORY / "container" / "train")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environ,
                # Ctrl-C is for the search, which stops its trials itself.
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  the search has one thread
            )
        # Its threads come later, and inherit this.
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self._process.pid, cores)

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        if self._process.poll() is None:
            return False
        if self._ended is None:
            self._ended = time.monotonic()
        return True

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs, negative after a signal that it did not handle."""
        return self._process.returncode

    @property
    def pid(self) -> int:
        """Of the process, which leads its process group."""
        return self._process.pid

    @property
    def seconds(self) -> float:
        """Since its start, or what it took."""
        return (time.monotonic() if self._ended is None else self._ended) - self._started

    def epochs(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Epoch and metrics of every epoch that was printed since the last call."""
        with self._log.open("rb") as log:
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
        """SIGTERM: the job keeps the bundle of its best epoch and ends."""
        if not self.ended:
            os.killpg(self._process.pid, signal.SIGTERM)

    def wait(self) -> None:
        """Waits for its end after a stop, as long as the platform would; then SIGKILL."""
        try:
            self._process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def metrics(self) -> dict[str, float]:
        """Those of its bundle, which is that of its best epoch; empty without one."""
        try:
            bundle = json.loads((self.folder / "model" / "bundle.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return {}
        return {name: float(value) for name, value in bundle["metrics"].items()}

    def reason(self) -> str:
        """Why it failed, as the platform would say it: the first line of the failure file."""
        try:
            text = (self.folder / "output" / "failure").read_text(encoding="utf-8").strip()
        except OSError:
            text = ""
        return text.splitlines()[0] if text else f"exit code {self.code}; see {self._log}"


def _die_with_parent() -> None:
    """Asks the kernel for SIGTERM when the search is killed, so that no trial is left behind; Linux alone has it."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def forget_model(folder: Path) -> None:
    """Removes the bundle of a trial that is not the best."""
    shutil.rmtree(folder / "model", ignore_errors=True)


def _stage(job: Job, folder: Path, hyperparameters: Mapping[str, str]) -> None:
    pairs = shlex.join(f"{name}={value}" for name, value in hyperparameters.items())
    command = [job.python, str(REPOSITORY / "local_test" / "stage.py"), str(folder), "--data", str(job.data)]
    command += ["--hp", pairs, *(("--weights", str(job.weights)) if job.weights else ())]
    path = os.pathsep.join([str(REPOSITORY / "container"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)  # noqa: S603  our own
    if done.returncode:
        raise OutcomeError((done.stderr.strip().splitlines() or ["stage.py failed without a word"])[-1])
