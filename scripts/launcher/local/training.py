"""A training job on this machine: starts it, follows it, and puts what it made where people look."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

from dogbreed.logs import METRIC_NAMES, read_metrics
from scripts.launcher.context import Context
from scripts.launcher.errors import OutcomeError, SettingError
from scripts.launcher.local import engine, folders
from scripts.launcher.local.process import Execution, Task
from scripts.launcher.plan import Call

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""

# The platform's (your-algorithms-training-algo-dockerfile).
_GRACE_S = 120
_CHANNELS = "channels"


def train(create: Call, context: Context) -> int:
    """Runs a CreateTrainingJob; the path of the model is the last line on stdout.

    Raises:
        SettingError: it cannot run here.
        OutcomeError: the job failed; why stands first.
    """
    name = str(create.parameters["TrainingJobName"])
    image = str(create.parameters["AlgorithmSpecification"]["TrainingImage"])
    count: int = create.parameters["ResourceConfig"]["InstanceCount"]
    folder = folders.job_folder(name)
    if folder.exists():
        raise SettingError(f"{folder} exists already: give another --name, or remove that folder")
    engine.check(image)
    containers = "one container" if count == 1 else f"{count} containers"
    context.say(f"{name} runs on this machine in {containers}, results go to {folder}; Ctrl-C stops it")
    folder.mkdir(parents=True)
    said: list[str] = []
    interruptions: list[str] = []

    def tell(line: str) -> None:
        said[:] = [line]
        if not context.arguments.quiet or read_metrics(line):
            context.say(line)

    def interrupted() -> None:
        interruptions.append(name)
        context.say("stopping: the job writes the model of its best epoch; Ctrl-C again kills it")

    with Execution(Task([_staged(create, folder)], folder, _project(name), image, _GRACE_S)) as execution:
        limit = threading.Timer(context.arguments.max_run or threading.TIMEOUT_MAX, execution.stop)
        limit.daemon = True
        limit.start()
        try:
            execution.follow(tell, interrupted)
        finally:
            limit.cancel()
    shutil.rmtree(folder / _CHANNELS, ignore_errors=True)
    _unpack(folder)
    if not (folder / "model" / "bundle.json").is_file() or (execution.code and not interruptions):
        return _explain(
            name, folder, said[0] if said else execution.complaint, interrupted=bool(interruptions), context=context
        )
    _report(name, folder, context)
    return INTERRUPTED if interruptions else 0


def stop(name: str) -> bool:
    """Sends SIGTERM to a job, which writes the bundle of its best epoch; returns whether it was running."""
    return engine.stop(_project(name), _GRACE_S)


def _explain(name: str, folder: Path, last: str, *, interrupted: bool, context: Context) -> int:
    """Says why there is no model, or none to trust."""
    if interrupted:
        context.say(f"{name} was stopped before it had a model")
        return INTERRUPTED
    failure = folder / "output" / "failure"
    reason = failure.read_text(encoding="utf-8").strip() if failure.is_file() else last
    raise OutcomeError(f"{name} failed: {reason or 'the SDK gives no reason'}\nwhat it left is in {folder}")


def _report(name: str, folder: Path, context: Context) -> None:
    model = folder / "model"
    metrics = json.loads((model / "bundle.json").read_text(encoding="utf-8")).get("metrics", {})
    ours = [f"{metric}={metrics[metric]:.6g}" for metric in METRIC_NAMES if metric in metrics]
    if ours:
        context.say("metrics: " + " ".join(ours))
    page = folder / "output" / "data" / "insight" / "report.html"
    if page.is_file():
        context.say(f"report: {page}")
    context.say(f"`launch.py deploy NAME --local --job {name}` serves the model")
    print(model)


def _staged(create: Call, folder: Path) -> Call:
    """The call with files in folders of their own: the SDK mounts folders, and of a file the one that it lies in."""
    channels = []
    for channel in create.parameters["InputDataConfig"]:
        source = channel["DataSource"]["S3DataSource"]
        path = folders.path_of(source["S3Uri"])
        if path.is_file():
            place = folder / _CHANNELS / channel["ChannelName"]
            place.mkdir(parents=True)
            folders.link(path, place / path.name)
            source = {**source, "S3Uri": folders.uri_of(place)}
        channels.append({**channel, "DataSource": {"S3DataSource": source}})
    return Call(create.service, create.operation, {**create.parameters, "InputDataConfig": channels})


def _unpack(folder: Path) -> None:
    """model.tar.gz stays, as what the account would have; the output is only looked at."""
    for archive, target in (("model.tar.gz", "model"), ("output.tar.gz", "output")):
        if (folder / archive).is_file():
            folders.extract(folder / archive, folder / target)
    (folder / "output.tar.gz").unlink(missing_ok=True)


def _project(name: str) -> str:
    return f"dogbreed-train-{name}".lower()
