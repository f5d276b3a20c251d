"""Measure how good a model is on a folder of labelled images, and whether another one is better.

DATA holds one folder of images per class, named like the class; of train, valid and test it takes test. What is asked
is a bundle of this machine, which is served for as long as that takes, an endpoint, its API, or a running server:

  launch.py evaluate dogs/test --model build/ml/model           or a model.tar.gz
  launch.py evaluate dogs/test --endpoint dogs                  --local: one that `deploy --local` started
  launch.py evaluate dogs/test --api https://ID.execute-api.REGION.amazonaws.com/classify       --batch 8 images each
  launch.py evaluate dogs/test --url http://127.0.0.1:8080      make local-serve, say: the model in its image

build/evaluation/NAME then holds evaluation.html, which needs nothing beside it, evaluation.json, and answers.csv with
one row per image. Images that cannot be answered are counted and listed, and are no failure.

--against MODEL asks another bundle the same, or takes the results of an earlier evaluation (its folder, or its name),
and says whether the difference is significant (McNemar's test). --results FOLDER takes earlier results in the place of
a model; with --against, two of them are compared and nothing is asked.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from dogbreed.evaluation import answers
from dogbreed.evaluation.answers import ResultError, Row, Run
from scripts.launcher import arguments as types
from scripts.launcher import batches
from scripts.launcher.commands import predict
from scripts.launcher.context import Context
from scripts.launcher.errors import OutcomeError, SettingError
from scripts.launcher.evaluation import labelled, models
from scripts.launcher.plan import Call
from scripts.launcher.settings import Settings

_RESULTS = Path("build", "evaluation")
_PAGE = "evaluation.html"
_REPOSITORY = Path(__file__).resolve().parents[3]
# More classes than any model has: the answer lists all of them.
_ATTRIBUTES = "top_k=999999999,return=log_probabilities"
# Stand for addresses that are known once a server runs.
_OWN, _OTHER = "${server}", "${other-server}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "data", metavar="DATA", nargs="?", type=Path, help="folder of class folders; left out with --results"
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--model", type=Path, metavar="MODEL", help="folder of a bundle, or a model.tar.gz")
    asked.add_argument("--endpoint", dest="target", metavar="NAME", help="endpoint to ask")
    asked.add_argument("--url", metavar="URL", help="server to ask, http://127.0.0.1:8080 say")
    asked.add_argument("--api", metavar="URL", help="route of `launch.py api deploy` to ask, signed, in batches")
    asked.add_argument("--results", type=Path, metavar="FOLDER", help="take the answers of an earlier evaluation")
    parser.add_argument("--local", action="store_true", help="--endpoint is a local one, and nothing of AWS")
    parser.add_argument(
        "--batch", type=types.positive, default=8, metavar="N", help="--api: images in a request (default %(default)s)"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="--api: holds the token, where it wants one")
    parser.add_argument("--against", metavar="MODEL", help="compare with this bundle, or with these earlier results")
    parser.add_argument("--name", type=types.job_name, metavar="NAME", help="of the results; default by what is asked")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help=f"in the place of {_RESULTS}/NAME")
    parser.add_argument(
        "--parallel", type=types.positive, default=4, metavar="N", help="requests at once (default %(default)s)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def needs_region(arguments: argparse.Namespace) -> bool:
    """Whether the command talks to AWS at all."""
    if arguments.api is not None:
        return arguments.token_file is None
    return arguments.target is not None and not arguments.local


def plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """One request per image and model; looks into folders."""
    if arguments.results is not None:
        if arguments.data is not None:
            raise SettingError(f"--results takes answers that are there, so DATA={arguments.data} is not asked about")
        _read(arguments.results)
    if arguments.against is not None and (there := _results_of(arguments.against)):
        _read(there)
    if arguments.token_file is not None and not arguments.token_file.is_file():
        raise SettingError(f"--token-file {arguments.token_file} is no file")
    asked: list[tuple[str | None, str | None]] = []
    if arguments.api is None and arguments.results is None:
        asked.append(_own_address(arguments))
    if arguments.against is not None and not _results_of(arguments.against):
        models.find(Path(arguments.against))
        asked.append((_OTHER, None))
    if not asked and arguments.api is None:
        return []
    _, images = _images(arguments)
    through = (
        [] if arguments.api is None else batches.requests([one.file for one in images], arguments.api, arguments.batch)
    )
    return through + [
        predict.request(image.file, attributes=_ATTRIBUTES, url=url, endpoint=endpoint)
        for url, endpoint in asked
        for image in images
    ]


def run(calls: Sequence[Call], context: Context) -> int:
    """Asks, writes what was answered, and has the page made of it."""
    arguments = context.arguments
    name, target = ("", "") if arguments.results is not None else _named(arguments)
    folder: Path = arguments.results or arguments.output or _RESULTS / name
    written = [] if arguments.results is not None else [folder]
    other = None if arguments.against is None else _results_of(arguments.against)
    against = None if arguments.against is None or other is not None else models.find(Path(arguments.against))
    if against is not None:
        other = _folder_of_other(against, arguments, folder)
        written.append(other)
    # Before anybody is asked: the answers would be lost.
    for one in written:
        types.prove(one)
    if arguments.results is None:
        own = [call for call in calls if not call.parameters.get("Url", "").startswith(_OTHER)]
        with _address(models.find(arguments.model) if arguments.model else None, context) as url:
            _ask(_sent_to(own, url), context, folder, name=name, target=target)
    if against is not None and other is not None:
        others = [call for call in calls if call.parameters.get("Url", "").startswith(_OTHER)]
        with _address(against, context) as url:
            _ask(_sent_to(others, url), context, other, name=against.name, target=f"the bundle {against.path}")
    return _show(folder, other, context)


def _folder_of_other(model: models.Model, arguments: argparse.Namespace, first: Path) -> Path:
    """Where the answers of the bundle that --against names go, when those of the first go to ``first``."""
    folder = (
        _RESULTS / model.name if arguments.output is None else first.with_name(f"{first.name}-against-{model.name}")
    )
    if folder == first:
        raise SettingError(f"--against {model.path} is the very model that it is to be compared with")
    return folder


def _own_address(arguments: argparse.Namespace) -> tuple[str | None, str | None]:
    """URL or name of what is asked; a server that does not run yet has a placeholder."""
    if arguments.model is not None:
        models.find(arguments.model)
        return _OWN, None
    # The name of a local endpoint gives way to its address.
    arguments.endpoint = arguments.target
    predict.look_here(arguments)
    return arguments.url, arguments.target


def _images(arguments: argparse.Namespace) -> tuple[Path, list[labelled.Image]]:
    data = arguments.data
    if data is None and arguments.results is not None:
        data = Path(_read(arguments.results).data)
    if data is None:
        raise SettingError("DATA is not given; name a folder that holds a folder of images for each class")
    return labelled.find(data)


def _named(arguments: argparse.Namespace) -> tuple[str, str]:
    """Name of the results, and in words what is asked."""
    if arguments.model is not None:
        model = models.find(arguments.model)
        name, target = model.name, f"the bundle {model.path}"
    elif arguments.api is not None:
        place = urlsplit(arguments.api).netloc or arguments.api
        name, target = f"api-{_plain(place)}", f"the API {arguments.api}, {arguments.batch} images in a request"
    elif arguments.endpoint is not None:
        name, target = arguments.endpoint, f"the endpoint {arguments.endpoint}"
    else:
        place = urlsplit(arguments.url).netloc or arguments.url
        name, target = _plain(place), f"the server {arguments.url}"
    return arguments.name or name, target


def _plain(place: str) -> str:
    """An address as a name."""
    return re.sub("[^a-zA-Z0-9]+", "-", place).strip("-")


def _results_of(text: str) -> Path | None:
    """The folder of earlier results that is meant: by path, or by name."""
    for folder in (Path(text), _RESULTS / text):
        if (folder / answers.RUN_FILE).is_file():
            return folder
    return None


def _read(folder: Path) -> Run:
    try:
        return answers.read(folder)[0]
    except ResultError as error:
        raise SettingError(str(error)) from error


@contextmanager
def _address(model: models.Model | None, context: Context) -> Iterator[str | None]:
    """Where a model answers, for as long as it does; None where the calls know it themselves."""
    if model is None:
        yield None
        return
    context.say(f"serving {model.path}")
    with models.served(model, context.sleep) as url:
        yield url


def _sent_to(calls: Sequence[Call], url: str | None) -> list[Call]:
    if url is None:
        return list(calls)
    return [replace(call, parameters={**call.parameters, "Url": f"{url}/invocations"}) for call in calls]


def _ask(calls: Sequence[Call], context: Context, folder: Path, *, name: str, target: str) -> None:
    """Asks for every image and writes the answers."""
    data, images = _images(context.arguments)
    parallel = context.arguments.parallel
    labels: tuple[str, ...] = ()
    rows: list[Row] = []
    began_s = time.perf_counter()
    through_api = context.arguments.api is not None and calls[0].parameters["Url"].startswith(context.arguments.api)
    ask_all = batches.ask_all if through_api else predict.ask_all
    given = ask_all(calls, context, parallel)
    with tqdm(given, total=len(images), unit="image", desc=name, leave=False, disable=None) as bar:
        for image, answer in zip(images, bar, strict=True):
            path = image.file.relative_to(data).as_posix()
            error = "" if answer.error is None else f"{answer.error.code}: {answer.error}"
            if not error:
                try:
                    labels = labels or labelled.labels_of(answer.predictions[0])
                    rows.append(labelled.row(path, image.folder, answer.predictions[0], labels, answer.seconds))
                    continue
                except (ValueError, LookupError, TypeError) as problem:
                    error = str(problem)
            rows.append(Row(path, image.folder, error=error))
    seconds = time.perf_counter() - began_s
    _demand_answers(rows, labels, data)
    # What failed before the model's classes were known has its folder's name so far.
    rows = [replace(row, label=labelled.known_as(row.label, labels) or row.label) if row.error else row for row in rows]
    folders = dict.fromkeys(image.folder for image in images)
    unknown = tuple(one for one in folders if labelled.known_as(one, labels) is None)
    started = context.settings.now.isoformat()
    asked = Run(name, target, str(data.resolve()), started, seconds, parallel, labels, unknown)
    try:
        answers.write(asked, rows, folder)
    except OSError as error:
        raise OutcomeError(
            f"the answers to {len(rows)} images cannot be written into {folder}: {error.strerror}; make room there, or "
            f"name another folder with --output"
        ) from error


def _demand_answers(rows: Sequence[Row], labels: Sequence[str], data: Path) -> None:
    """Raises `OutcomeError` where there is nothing to count."""
    if not labels:
        raise OutcomeError(f"none of {len(rows)} images was answered; the first: {rows[0].path}: {rows[0].error}")
    if not any(not row.error and row.label in labels for row in rows):
        found = ", ".join(sorted({row.label for row in rows})[:5])
        raise OutcomeError(
            f"no class folder of {data} ({found}, ...) is a class that the model knows ({', '.join(labels[:5])}, ...); "
            f"name the folders like the classes"
        )


def _show(folder: Path, other: Path | None, context: Context) -> int:
    """Has figures and page made by the module of the package that knows pages, in a process of its own."""
    command = [sys.executable, "-m", "dogbreed.evaluation", str(folder), *([str(other)] if other else [])]
    path = os.pathsep.join([str(_REPOSITORY / "container"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)  # noqa: S603  our own
    print(done.stdout, end="")
    if done.returncode:
        raise OutcomeError((done.stderr.strip().splitlines() or ["the page could not be made"])[-1])
    if context.arguments.open and not webbrowser.open((folder / _PAGE).resolve().as_uri()):
        context.say("no browser could be opened; open the file by hand")
    return 0
