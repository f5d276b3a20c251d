"""Send every file of a folder through a model, as a SageMaker batch transform job.

    python -m local_test transform night --process --model build/ml/model --input photos --output build/answers
        --content-type image/jpeg

Each file NAME gives NAME.out; one that fails gives none, the others go on, and the job has failed at its end (exit code
1). build/platform/transform-jobs/NAME holds job.json, logs and events.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

from local_test.cli import UsageError
from local_test.commands import serve
from local_test.simulator import choosing, state
from local_test.simulator.batch import job, parameters
from local_test.simulator.batch.job import Object, Plan, Result, Transform
from local_test.simulator.batch.parameters import Asked, Assemble, ParametersError, Split, Strategy
from local_test.simulator.hosting import launching, rules, unpacking
from local_test.simulator.hosting.events import Events
from local_test.simulator.hosting.fleet import Fleet, NotInServiceError
from local_test.simulator.hosting.launching import Launch
from local_test.simulator.hosting.rules import Health

JOBS = state.PLATFORM / "transform-jobs"
_STRATEGIES = {"MultiRecord": Strategy.MULTI, "SingleRecord": Strategy.SINGLE}
_SHOWN_ROWS = 40
_ERROR_CHARACTERS = 70


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="of the job")
    choosing.add_arguments(parser)
    parser.add_argument("--model", type=Path, required=True, metavar="TAR", help="model.tar.gz, or its folder")
    parser.add_argument("--input", type=Path, required=True, metavar="DIR", help="every file below it is an object")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="of the answers")
    parser.add_argument("--content-type", required=True, metavar="TYPE", help="of every object")
    parser.add_argument("--accept", metavar="TYPE", help="of every answer")
    serve.add_instance_arguments(parser)
    group = parser.add_argument_group("the job's parameters")
    group.add_argument("--batch-strategy", choices=_STRATEGIES, help="else the container's, else MultiRecord")
    group.add_argument("--max-concurrent", type=int, metavar="N", help="requests at one instance; else ..., else 1")
    group.add_argument("--max-payload", type=int, metavar="MB", help="0 is no limit; else ..., else 6")
    group.add_argument("--split-type", choices=list(Split), default=Split.NONE, help="default %(default)s")
    group.add_argument("--assemble-with", choices=list(Assemble), default=Assemble.NONE, help="default %(default)s")
    group.add_argument("--timeout", type=float, default=parameters.DEFAULT_TIMEOUT_S, metavar="S", help="%(default)s")
    group.add_argument("--retries", type=int, default=parameters.MOST_RETRIES, metavar="N", help="default %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Runs the job; 0 when it completed."""
    plan = _plan(arguments)
    folder = JOBS / plan.name
    running = state.runner(folder)
    if running is not None:
        raise UsageError(f"the job {plan.name} runs already, as process {running}; give another name")
    launch = Launch(
        choosing.subject(arguments.image, arguments.process, gpus=arguments.gpus),
        folder,
        folder / "model",
        environment=serve.read_environment(arguments.env) | plan.asked.environment,
        limits=serve.read_limits(arguments.instance_type),
        network_isolation=arguments.network_isolation,
    )
    launching.empty(folder)
    try:
        unpacking.put_model(arguments.model, folder / "model")
    except unpacking.ArchiveError as error:
        raise UsageError(str(error)) from error
    events = Events(folder / "events.jsonl")
    health = Health(start_s=plan.instance_s)
    fleet = Fleet(launch, count=arguments.instances, rules=health, events=events)
    state.write(folder, kind="transform", name=plan.name, status="InProgress", subject=launch.subject.title)
    with serve.stopping() as stop:
        status = "Failed"
        try:
            result = _transform(plan, fleet, arguments.instances, events, stop)
            status = "Stopped" if result is None else result.status
        except NotInServiceError as error:
            events.tell("job_failed", f"job {plan.name} failed: {error}", good=False)
            return 1
        except ParametersError as error:
            raise UsageError(str(error)) from error
        finally:
            fleet.close()
            state.write(folder, kind="transform", name=plan.name, status=status, ended=True)
    if result is not None:
        job.write(result, plan, folder / job.JOB)
        print(_summary(result, plan, folder))
    return 0 if status == "Completed" else 1


def _transform(plan: Plan, fleet: Fleet, instances: int, events: Events, stop: threading.Event) -> Result | None:
    fleet.open()
    if not fleet.wait_until_in_service(stop):
        return None
    return Transform(plan, fleet, instances=instances, events=events).run(stop)


def _plan(arguments: argparse.Namespace) -> Plan:
    name = serve.check_name(arguments.name)
    serve.at_least("--instances", arguments.instances, 1)
    if not arguments.input.is_dir():
        raise UsageError(f"--input {arguments.input} is not a folder")
    if arguments.output.resolve().is_relative_to(arguments.input.resolve()):
        raise UsageError(f"--output {arguments.output} lies in --input, where answers would be objects; name another")
    if not 0 < arguments.timeout <= parameters.LONGEST_TIMEOUT_S:
        raise UsageError(f"--timeout {arguments.timeout:g} is not of 1 to {parameters.LONGEST_TIMEOUT_S} seconds")
    if not 0 <= arguments.retries <= parameters.MOST_RETRIES:
        raise UsageError(f"--retries {arguments.retries} is not of 0 to {parameters.MOST_RETRIES}")
    for option, value in (("--max-concurrent", arguments.max_concurrent), ("--max-payload", arguments.max_payload)):
        serve.at_least(option, value or 0, 0)
    asked = Asked(_STRATEGIES.get(arguments.batch_strategy), arguments.max_concurrent, arguments.max_payload)
    try:
        parameters.settle(asked, Asked(payload_mb=0))  # what the job alone asks for too much
    except ParametersError as error:
        raise UsageError(str(error)) from error
    return Plan(
        name,
        arguments.input,
        arguments.output,
        arguments.content_type,
        accept=arguments.accept,
        asked=asked,
        split=Split(arguments.split_type),
        assemble=Assemble(arguments.assemble_with),
        answer_s=arguments.timeout,
        retries=arguments.retries,
        instance_s=arguments.start_timeout or rules.START_S,
    )


def _summary(result: Result, plan: Plan, folder: Path) -> str:
    """A row for each object, those that failed first where there are too many, and the outcome."""
    shown = result.objects
    if len(shown) > _SHOWN_ROWS:
        shown = sorted(shown, key=lambda one: one.error is None)[:_SHOWN_ROWS]
    rows = [("object", "bytes", "requests", "retries", "seconds", "outcome"), *map(_row, shown)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for first, *figures, outcome in rows:
        columns = [text.rjust(width) for text, width in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *columns, outcome]))
    if len(shown) < len(result.objects):
        lines.append(f"... and {len(result.objects) - len(shown)} more in {folder / job.JOB}")
    done = sum(one.error is None for one in result.objects)
    lines.append(
        f"{result.status}: {done} of {len(result.objects)} objects in {result.seconds:.1f} s, answers in {plan.output}"
        + (f"; {result.reason}" if result.reason else "")
    )
    return "\n".join(lines)


def _row(one: Object) -> tuple[str, ...]:
    outcome = one.output or "-"
    if one.error is not None:
        outcome = one.error if len(one.error) <= _ERROR_CHARACTERS else f"{one.error[: _ERROR_CHARACTERS - 1]}…"
    return one.key, f"{one.bytes:,}", str(one.requests), str(one.retries), f"{one.seconds:.2f}", outcome
