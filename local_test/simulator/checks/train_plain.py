"""A plain job: it starts by one word, leaves a model, says how well it does, and touches nothing else."""

from __future__ import annotations

import re

from local_test.simulator.checks import pages
from local_test.simulator.checks.check import NotApplicableError, Outcome, check, failed, judge, passed
from local_test.simulator.checks.context import Context
from local_test.simulator.checks.jobs import Job

_GROUP = "a plain job"


@check("train.starts", "Starts by the word `train` and ends with exit code 0", pages.TRAIN_DOCKERFILE, _GROUP)
def starts(context: Context) -> Outcome:
    """Exit code of the plain job."""
    ended = context.jobs.run(Job())
    return judge(None if ended.exit_code == 0 else ended.how, f"in {ended.seconds:.1f} s")


@check("train.model", "Leaves files in the model folder", pages.TRAIN_OUTPUT, _GROUP)
def model(context: Context) -> Outcome:
    """Any file."""
    files = context.plain_job().model
    return passed(", ".join(files[:5])) if files else failed("the model folder is empty after exit code 0")


@check("train.model-links", "Leaves no symbolic links in the model folder", pages.SERVE, _GROUP)
def model_links(context: Context) -> Outcome:
    """An endpoint's model.tar.gz may hold none."""
    folder = context.plain_job().root / "model"
    links = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_symlink())
    return judge(f"links: {', '.join(links)}" if links else None)


@check("train.no-failure", "Leaves no failure file after success", pages.TRAIN_OUTPUT, _GROUP)
def no_failure(context: Context) -> Outcome:
    """The file would become the reason of a failure that there is not."""
    found = context.plain_job().failure
    return judge(None if found is None else f"output/failure holds {found[:200]!r}")


@check("train.channels-untouched", "Writes nothing into its channels", pages.TRAIN_INPUT, _GROUP)
def channels_untouched(context: Context) -> Outcome:
    """FastFile mounts cannot be written to, and cannot be told from others."""
    written = [target for target in context.plain_job().written if target.startswith("input/data/")]
    return judge(f"changed: {', '.join(written)}" if written else None)


@check("train.config-untouched", "Writes nothing into input/config", pages.TRAIN_INPUT, _GROUP)
def config_untouched(context: Context) -> Outcome:
    """It is the platform's."""
    return judge("input/config is not as it was" if "input/config" in context.plain_job().written else None)


@check(
    "train.reserved", "Leaves files below /opt/ml only where the platform looks for them", pages.TRAIN_STORAGE, _GROUP
)
def reserved(context: Context) -> Outcome:
    """What lies elsewhere is lost, or hidden by a mount."""
    root = context.plain_job().root
    known = ("model", "output", "input", "checkpoints", "sagemaker")
    others = sorted(file.name for file in root.iterdir() if file.name not in known)
    data = sorted(file.name for file in (root / "input" / "data").iterdir() if not _is_channel(context, file.name))
    strange = [f"/opt/ml/{name}" for name in others] + [f"/opt/ml/input/data/{name}" for name in data]
    return judge(f"left {', '.join(strange[:5])}" if strange else None)


@check(
    "train.objective",
    "Prints the objective once per epoch, each time on a line of its own",
    pages.EARLY_STOPPING,
    _GROUP,
)
def objective(context: Context) -> Outcome:
    """One number a line, as many lines as epochs; one more may say the best again, because the latest counts."""
    ended = context.plain_job()
    training = context.jobs.training
    if not training.objective_regex:
        raise NotApplicableError("the profile has no objective_regex")
    values = context.jobs.objectives(ended.log)
    if not values:
        return failed(f"no line of the log matches {training.objective_regex!r}")
    twice = [line for line in ended.log.splitlines() if len(re.findall(training.objective_regex, line)) > 1]
    if twice:
        return failed(f"twice in one line: {twice[0][:200]!r}")
    if None in values:
        return failed("what the regex finds is not a number")
    if training.epochs is not None and len(values) - context.jobs.closing_lines(values) != training.epochs:
        return failed(f"{len(values)} lines in {training.epochs} epochs")
    return passed(f"{len(values)} lines; the last says {values[-1]}")


@check("train.isolated", "Needs no network", pages.ISOLATION, _GROUP)
def isolated(context: Context) -> Outcome:
    """EnableNetworkIsolation; only a container can be held in one."""
    if not context.contained:
        raise NotApplicableError("bare programs cannot be kept from the network")
    context.plain_job()
    ended = context.jobs.run(Job(isolated=True))
    return judge(None if ended.exit_code == 0 else f"without a network {ended.how}")


def _is_channel(context: Context, name: str) -> bool:
    return name in context.jobs.training.channels


CHECKS = (
    starts,
    model,
    model_links,
    no_failure,
    channels_untouched,
    config_untouched,
    reserved,
    objective,
    isolated,
)
