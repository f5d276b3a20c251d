"""Run a small tuning job: training jobs with hyperparameters as the tuner gives them.

For testing an image's side of the tuner's contract, not for searching well: values are random or on a grid. Every job
gets `_tuning_objective_metric` and strings; the last value of the objective counts. The exit code is 0 when a job gave
one.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from local_test.cli import UsageError
from local_test.commands import train
from local_test.simulator import choosing, consoles, jobs, ranges
from local_test.simulator.channels import RequestError
from local_test.simulator.records import Record
from local_test.simulator.subjects import Subject

OBJECTIVE_KEY = "_tuning_objective_metric"
# AWS docs: automatic-model-tuning-how-it-works; the names of training jobs are the tuning job's with a number and more.
_MAX_NAME = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the request, the ranges and the search."""
    train.add_request_arguments(parser)
    parser.add_argument("--name", help="of the search, 32 characters at most; default tune-DATE-TIME")
    parser.add_argument("--objective", required=True, metavar="METRIC")
    parser.add_argument("--minimize", action="store_true", help="less is better")
    for option, text in (("--float", "LOW..HIGH[:log]"), ("--int", "LOW..HIGH[:log]"), ("--choice", "a,b,c")):
        parser.add_argument(option, action="append", default=[], metavar=f"NAME={text}")
    parser.add_argument("--strategy", choices=("random", "grid"), default="random")
    parser.add_argument("--max-jobs", type=int, default=4, metavar="N")
    parser.add_argument("--parallel", type=int, default=1, metavar="N")
    parser.add_argument("--early-stop", action="store_true", help="stop jobs that are worse than the median")
    parser.add_argument("--seed", type=int, default=0)


@dataclass(frozen=True)
class _Trial:
    """One job of a search."""

    values: Mapping[str, str]
    record: Record
    objective: float | None
    early: bool


def run(arguments: argparse.Namespace) -> int:
    """Runs the jobs and prints them, the best first."""
    name = arguments.name or train.new_name("tune")
    if len(name) > _MAX_NAME:
        raise UsageError(f"--name {name!r} has {len(name)} characters; a tuning job's has {_MAX_NAME} at most")
    if min(arguments.max_jobs, arguments.parallel) < 1:
        raise UsageError(f"--max-jobs {arguments.max_jobs} --parallel {arguments.parallel}: give 1 at least")
    found = ranges.parse(*(train.pairs(words, option) for option, words in _words(arguments)))
    template = train.request_of(arguments, f"{name}-000")
    if arguments.objective not in template.metrics:
        raise RequestError(f"--objective {arguments.objective!r} is no metric; there are {', '.join(template.metrics)}")
    if clash := sorted(found.keys() & template.hyperparameters.keys()):
        raise RequestError(f"{', '.join(clash)} is given by --hp and has a range; give one of them")
    subject = choosing.subject(arguments.image, arguments.process, gpus=arguments.gpus)
    draws = ranges.grid(found) if arguments.strategy == "grid" else ranges.drawn(found, arguments.seed)
    search = _Search(arguments, template, name, subject)
    with train.stopping() as stop, ThreadPoolExecutor(arguments.parallel) as pool:
        values = itertools.islice(draws, arguments.max_jobs)
        begun = [pool.submit(search.trial, number, one, stop) for number, one in enumerate(values, 1)]
        trials = [trial for one in begun if (trial := one.result()) is not None]
    print(_table(trials, arguments.objective, minimize=arguments.minimize))
    return 0 if any(trial.objective is not None for trial in trials) else 1


class _Search:
    """What the trials have in common."""

    def __init__(self, arguments: argparse.Namespace, template: jobs.Request, name: str, subject: Subject) -> None:
        self._arguments = arguments
        self._template = template
        self._name = name
        self._subject = subject
        self._lock = threading.Lock()
        # The objective's values of completed jobs.
        self._completed: list[list[float]] = []

    def trial(self, number: int, values: Mapping[str, str], stop: threading.Event) -> _Trial | None:
        """Runs one job; None when the search is stopped before."""
        if stop.is_set():
            return None
        arguments, template = self._arguments, self._template
        objective = arguments.objective
        request = jobs.Request(
            **{
                **vars(template),
                "name": f"{self._name}-{number:03}",
                "hyperparameters": {**template.hyperparameters, **values, OBJECTIVE_KEY: objective},
            }
        )
        heard = consoles.Quiet()
        early = threading.Event()

        def values_so_far() -> list[float]:
            series = heard.scraper.series.get(objective) if heard.scraper else None
            return list(series.values) if series else []

        def is_to_stop() -> bool:
            if arguments.early_stop and not early.is_set():
                with self._lock:
                    others = list(self._completed)
                if ranges.is_hopeless(values_so_far(), others, maximize=not arguments.minimize):
                    early.set()
            return stop.is_set() or early.is_set()

        print(f"{request.name} {_told(values)}", file=sys.stderr, flush=True)
        record = jobs.run(request, self._subject, arguments.folder, heard, stop=is_to_stop)
        last = [one["Value"] for one in record.content["FinalMetricDataList"] if one["MetricName"] == objective]
        if record.status == "Completed":
            with self._lock:
                self._completed.append(values_so_far())
        print(f"{request.name} {record.status}", file=sys.stderr, flush=True)
        return _Trial(values, record, float(last[0]) if last else None, early.is_set())


def _table(trials: list[_Trial], objective: str, *, minimize: bool) -> str:
    """The best first, those without a value last."""
    worst = float("inf") if minimize else float("-inf")
    ordered = sorted(
        trials,
        key=lambda trial: worst if trial.objective is None else trial.objective,
        reverse=not minimize,
    )
    body = [
        (
            str(trial.record.content["TrainingJobName"]),
            f"{trial.record.status}{' early' if trial.early else ''}",
            "" if trial.objective is None else f"{trial.objective:g}",
            str(trial.record.content["BillableTimeInSeconds"]),
            _told(trial.values),
        )
        for trial in ordered
    ]
    return consoles.table(("job", "status", objective, "billed s", "hyperparameters"), [tuple(row) for row in body])


def _told(values: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _words(arguments: argparse.Namespace) -> list[tuple[str, list[str]]]:
    return [("--float", arguments.float), ("--int", arguments.int), ("--choice", arguments.choice)]
