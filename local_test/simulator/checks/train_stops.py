"""A job that is stopped, and a job that is lost and started again."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from local_test.simulator.checks import pages
from local_test.simulator.checks.check import BlockedError, NotApplicableError, Outcome, check, failed, judge, passed
from local_test.simulator.checks.context import Context
from local_test.simulator.checks.first_process import first_process as first_process_of
from local_test.simulator.checks.first_process import problem_of_first_process
from local_test.simulator.checks.jobs import Ended, LongJob

_STOP = "stopping a job"
_LOSS = "losing a job"


@dataclass(frozen=True)
class Stopped:
    """A job that was stopped.

    Args:
        ended: what the job left after SIGTERM; exit code None when it had to be killed.
        told: whether it printed its objective while it ran; None without a regex.
        stop_s: between SIGTERM and its end.
        first_process: command line of its first process.
    """

    ended: Ended
    told: bool | None
    stop_s: float
    first_process: str


@dataclass(frozen=True)
class Lost:
    """A job that was killed on its way.

    Args:
        checkpoints: copy of the checkpoint folder, as it was when the job was killed.
        ended: whether it ended by itself before it could be lost.
    """

    checkpoints: Path
    ended: bool


def stopped(context: Context) -> Stopped:
    """Stops a long job with SIGTERM on its way."""
    return context.once("stopped", lambda: _stop(context))


@check("train.flushed", "Log lines are there as soon as they are printed", pages.TRAINING_METRICS, _STOP)
def flushed(context: Context) -> Outcome:
    """Early stopping and people look at them while the job runs."""
    seen = stopped(context)
    if seen.told is None:
        raise NotApplicableError("the profile has no objective_regex")
    if not context.jobs.objectives(seen.ended.log) and not seen.told:
        return failed(f"no objective within {_progress_s(context):.0f} s of a long job{seen.ended.last_words}")
    return judge(None if seen.told else "the objective came to light only when the job ended; flush every line")


@check("train.sigterm", "Ends by itself after SIGTERM, within 120 s", pages.TRAIN_DOCKERFILE, _STOP)
def sigterm(context: Context) -> Outcome:
    """StopTrainingJob, MaxRuntime and early stopping; SIGKILL follows."""
    seen = stopped(context)
    if seen.ended.exit_code is None:
        why = problem_of_first_process(seen.first_process)
        return failed(f"still running {seen.stop_s:.0f} s after SIGTERM{'; ' + why if why else ''}")
    return passed(f"after {seen.stop_s:.1f} s, with exit code {seen.ended.exit_code}")


@check("train.stop-model", "Leaves a model when it is stopped", pages.TRAIN_DOCKERFILE, _STOP)
def stop_model(context: Context) -> Outcome:
    """What is in the model folder then becomes model.tar.gz, which tuning jobs use."""
    seen = stopped(context)
    if seen.ended.exit_code is None:
        raise BlockedError("it had to be killed: see train.sigterm")
    return judge(None if seen.ended.model else f"the model folder is empty; {seen.ended.how}")


@check(
    "train.first-process",
    "The program is the first process: no shell and no init before it",
    pages.TRAIN_DOCKERFILE,
    _STOP,
)
def first_process(context: Context) -> Outcome:
    """Looked at while the job runs."""
    found = stopped(context).first_process
    if not found:
        raise NotApplicableError("this machine does not tell its processes")
    return judge(problem_of_first_process(found), found[:120])


@check("train.checkpoints", "Writes checkpoints where CheckpointConfig says", pages.CHECKPOINTS, _LOSS)
def checkpoints(context: Context) -> Outcome:
    """Any file, while the job is on its way."""
    files = _files(_lost(context).checkpoints)
    return judge(None if files else "the checkpoint folder is empty", ", ".join(sorted(files)[:3]))


@check("train.resume", "Goes on from its checkpoints after a loss", pages.SPOT, _LOSS)
def resume(context: Context) -> Outcome:
    """It prints its objective less often than a job that starts over, and ends well."""
    epochs = context.jobs.training.resume_epochs
    if not context.jobs.training.objective_regex or epochs is None:
        raise NotApplicableError("the profile has no objective_regex, or no resume_epochs")
    ended = _resumed(context)
    if ended.exit_code != 0:
        return failed(f"started again after a loss {ended.how}")
    plain = context.jobs.objectives(context.plain_job().log)
    printed = len(context.jobs.objectives(ended.log)) - context.jobs.closing_lines(plain)
    if printed >= epochs:
        return failed(f"it started over: the objective was printed {printed} times, as in a job without a loss")
    return passed(f"{printed} of {epochs} epochs were left")


@check("train.half-checkpoint", "Survives a checkpoint of which only half was copied", pages.CHECKPOINTS, _LOSS)
def half_checkpoint(context: Context) -> Outcome:
    """The platform copies while the job writes, and may lose the machine at any instant."""
    _whole_checkpoints(context)
    ended = context.once("half", lambda: _restart(context, "half", _halve_newest))
    return judge(None if ended.exit_code == 0 else f"with half a checkpoint {ended.how}")


@check("train.checkpoints-apart", "Keeps checkpoints out of the model folder", pages.TRAIN_STORAGE, _LOSS)
def checkpoints_apart(context: Context) -> Outcome:
    """There they would become part of model.tar.gz."""
    kept = _files(_whole_checkpoints(context))
    ended = _resumed(context)
    in_model = _files(ended.root / "model")
    same = sorted(name for name, digest in in_model.items() if digest in kept.values())
    named_alike = sorted(set(in_model) & set(kept))
    if same or named_alike:
        return failed(f"the model folder holds {', '.join((same or named_alike)[:3])}")
    more = sorted(set(in_model) - set(context.plain_job().model))
    return judge(f"with checkpoints the model folder also holds {', '.join(more[:3])}" if more else None)


def _stop(context: Context) -> Stopped:
    progress_s = _progress_s(context)
    training, patience = context.jobs.training, context.patience
    if not training.long:
        raise NotApplicableError("the profile has no `long` hyperparameters")
    with context.jobs.long(training.long) as job:
        if training.objective_regex:
            told = job.wait_until(lambda: bool(context.jobs.objectives(job.log)), progress_s)
        else:
            told = None
            job.wait_until(lambda: False, patience.blind_s)
        if (code := job.running.exit_code()) is not None:
            end = job.ended(code)
            if told is False or code != 0:
                raise BlockedError(f"the `long` job of the profile cannot be stopped: {end.how}")
            raise BlockedError("the `long` job of the profile ended before it could be stopped; make it longer")
        name = first_process_of(job.running)
        began = time.monotonic()
        job.running.terminate()
        code = job.running.wait(patience.stop_train_s)
        seconds = time.monotonic() - began
        if code is None:
            job.running.kill()
        return Stopped(job.ended(code), told, seconds, name)


def _progress_s(context: Context) -> float:
    """For what a long job should do early on: many times what a whole plain job takes."""
    return min(context.patience.progress_s, max(60.0, 20 * context.plain_job().seconds))


def _lost(context: Context) -> Lost:
    return context.once("lost", lambda: _lose(context))


def _lose(context: Context) -> Lost:
    """Starts a job with an empty checkpoint folder, and kills it once it has kept something after an epoch."""
    progress_s = _progress_s(context)
    training = context.jobs.training
    if not training.resume:
        raise NotApplicableError("the profile has no `resume` hyperparameters")
    empty = context.work / "no-checkpoints"
    empty.mkdir()
    with context.jobs.long(training.resume, checkpoints=empty) as job:
        if training.objective_regex:
            job.wait_until(lambda: bool(context.jobs.objectives(job.log)), progress_s)
        since = time.time()
        job.wait_until(lambda: _kept_since(job, since), progress_s)
        ended = job.running.exit_code() is not None
        job.running.kill()
        kept = context.work / "checkpoints-when-lost"
        shutil.copytree(job.checkpoints, kept)
        return Lost(kept, ended)


def _kept_since(job: LongJob, moment: float) -> bool:
    for file in job.checkpoints.rglob("*"):
        try:
            if file.is_file() and not file.name.startswith(".") and file.stat().st_mtime >= moment:
                return True
        except FileNotFoundError:  # renamed or deleted meanwhile
            continue
    return False


def _whole_checkpoints(context: Context) -> Path:
    lost = _lost(context)
    if not _files(lost.checkpoints):
        raise BlockedError("there are no checkpoints: see train.checkpoints")
    if lost.ended:
        raise BlockedError("the `resume` job of the profile ended before it could be lost; give it more epochs")
    return lost.checkpoints


def _resumed(context: Context) -> Ended:
    _whole_checkpoints(context)
    return context.once("resumed", lambda: _restart(context, "whole", lambda folder: None))


def _restart(context: Context, name: str, change: Callable[[Path], None]) -> Ended:
    folder = context.work / f"checkpoints-{name}"
    shutil.copytree(_lost(context).checkpoints, folder)
    change(folder)
    with context.jobs.long(context.jobs.training.resume, checkpoints=folder) as job:
        code = job.running.wait(context.patience.train_s)
        if code is None:
            job.running.kill()
        return job.ended(code)


def _halve_newest(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")]
    newest = max(files, key=lambda file: (file.stat().st_mtime, file.name))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])


def _files(folder: Path) -> Mapping[str, str]:
    """Path -> digest of every file that is not hidden."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }


CHECKS = (first_process, flushed, sigterm, stop_model, checkpoints, resume, half_checkpoint, checkpoints_apart)
