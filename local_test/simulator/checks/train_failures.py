"""A job that cannot succeed says so by its exit code, and why in the failure file."""

from __future__ import annotations

from local_test.simulator.checks import pages
from local_test.simulator.checks.check import BlockedError, NotApplicableError, Outcome, check, failed, judge, passed
from local_test.simulator.checks.context import Context
from local_test.simulator.checks.jobs import Ended, Job

_GROUP = "a job that fails"
_REASON_CHARACTERS = 1024


@check("train.no-data", "Fails with a non-zero exit code when its channels are empty", pages.TRAIN_EXIT, _GROUP)
def no_data(context: Context) -> Outcome:
    """Exit code 0 would be a completed job."""
    context.plain_job()
    ended = context.jobs.run(Job(empty=True))
    return judge("exit code 0 without any data" if ended.exit_code == 0 else _endless(ended))


@check("train.no-data-reason", "Writes the failure file when its channels are empty", pages.TRAIN_OUTPUT, _GROUP)
def no_data_reason(context: Context) -> Outcome:
    """An empty FailureReason helps nobody."""
    context.plain_job()
    ended = context.jobs.run(Job(empty=True))
    if ended.exit_code == 0:
        raise BlockedError("it did not fail: see train.no-data")
    return passed(_shown(ended.failure)) if (ended.failure or b"").strip() else failed("there is no output/failure")


@check(
    "train.bad-hyperparameter",
    "Fails with a non-zero exit code on a hyperparameter that makes no sense",
    pages.TRAIN_EXIT,
    _GROUP,
)
def bad_hyperparameter(context: Context) -> Outcome:
    """As the profile says."""
    ended = _bad(context)
    return judge("exit code 0" if ended.exit_code == 0 else _endless(ended))


@check("train.failure-file", "Writes the failure file, as plain text", pages.TRAIN_OUTPUT, _GROUP)
def failure_file(context: Context) -> Outcome:
    """UTF-8 without control characters."""
    found = _failure(context)
    if not found.strip():
        return failed("there is no output/failure, or nothing in it")
    try:
        text = found.decode("utf-8")
    except UnicodeDecodeError:
        return failed(f"output/failure is not text: {found[:60]!r}")
    strange = next((letter for letter in text if not letter.isprintable() and letter not in "\n\r\t"), None)
    return judge(f"output/failure holds the character {strange!r}" if strange else None, _shown(found))


@check(
    "train.failure-cause", "The failure file names the cause in its first 1,024 characters", pages.TRAIN_OUTPUT, _GROUP
)
def failure_cause(context: Context) -> Outcome:
    """No more of it becomes FailureReason. Either the hyperparameter or its value has to stand there."""
    found = _failure(context)
    if not found.strip():
        raise BlockedError("there is no failure file: see train.failure-file")
    reason = found.decode("utf-8", "replace")[:_REASON_CHARACTERS]
    wanted = [text for pair in context.jobs.training.bad.items() for text in pair]
    if any(text.lower() in reason.lower() for text in wanted):
        return passed(_shown(reason.encode()))
    return failed(f"neither of {wanted} is in {reason[:200]!r}")


def _bad(context: Context) -> Ended:
    bad = context.jobs.training.bad
    if not bad:
        raise NotApplicableError("the profile has no `bad` hyperparameters")
    context.plain_job()
    return context.jobs.run(Job(changes=tuple(bad.items())))


def _failure(context: Context) -> bytes:
    ended = _bad(context)
    if ended.exit_code == 0:
        raise BlockedError("it did not fail: see train.bad-hyperparameter")
    return ended.failure or b""


def _endless(ended: Ended) -> str | None:
    return "it did not end, and was killed" if ended.exit_code is None else None


def _shown(content: bytes | None) -> str:
    return " ".join((content or b"").decode("utf-8", "replace").split())[:200]


CHECKS = (no_data, no_data_reason, bad_hyperparameter, failure_file, failure_cause)
