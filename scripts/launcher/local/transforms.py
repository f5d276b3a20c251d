"""A batch transform on this machine: a container that lives as long as the images take.

The SDK looks at the files of one folder and not below it, and writes a refusal like an answer; both are mended here.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.launcher.context import Context
from scripts.launcher.errors import OutcomeError
from scripts.launcher.local import engine, folders
from scripts.launcher.local.process import TROUBLE, Execution, Task
from scripts.launcher.plan import Call

_GRACE_S = 30


def transform(model: Call, create: Call, images: Sequence[Path], context: Context) -> dict[Path, str]:
    """Predicts images one after the other.

    Args:
        model: CreateModel.
        create: CreateTransformJob, whose S3 URIs are those of the folders of images and answers.
        images: relative to the folder of images.
        context: for what is said along the way.

    Returns:
        The images that were not answered, each with the reason; every other has its IMAGE.out in the folder of answers.

    Raises:
        SettingError: it cannot run here.
        OutcomeError: nothing was predicted; why stands first.
    """
    name = str(create.parameters["TransformJobName"])
    image = str(model.parameters["PrimaryContainer"]["Image"])
    engine.check(image)
    source = folders.path_of(create.parameters["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"])
    target = folders.path_of(create.parameters["TransformOutput"]["S3OutputPath"])
    folder = folders.ROOT / name
    staged, answers = folder / "input", folder / "output"
    staged.mkdir(parents=True)
    # Under numbers, because names of different folders may be the same.
    numbered = {f"{number:08d}{path.suffix.lower()}": path for number, path in enumerate(images)}
    for number, path in numbered.items():
        folders.link(source / path, staged / number)
    said: list[str] = []
    calls = [folders.unpacked(model, folder), _between(create, staged, answers)]
    interruptions: list[str] = []
    try:
        with Execution(Task(calls, folder, f"dogbreed-transform-{name}".lower(), image, _GRACE_S)) as execution:
            context.say(f"{len(images)} images in one container on this machine; Ctrl-C stops it")
            execution.follow(said.append, lambda: interruptions.append(name))
        if interruptions:
            raise KeyboardInterrupt
        if execution.code:
            why = [line for line in said if TROUBLE.search(line)] or [execution.complaint]
            raise OutcomeError(f"{why[0]}\ntransform {name} failed")
        return _collect(answers, numbered, target)
    finally:
        engine.remove_folder(folder, image)


def _between(create: Call, source: Path, target: Path) -> Call:
    parameters: dict[str, Any] = {**create.parameters}
    data = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": folders.uri_of(source)}}
    parameters["TransformInput"] = {**parameters["TransformInput"], "DataSource": data}
    parameters["TransformOutput"] = {**parameters["TransformOutput"], "S3OutputPath": folders.uri_of(target)}
    return Call(create.service, create.operation, parameters)


def _collect(answers: Path, numbered: Mapping[str, Path], target: Path) -> dict[Path, str]:
    """Copies the answers to their names; returns the refusals."""
    refused = {}
    for number, image in numbered.items():
        answer = answers / f"{number}.out"
        if not answer.is_file():
            refused[image] = "no answer"
        elif reason := _refusal(answer.read_bytes()):
            refused[image] = reason
        else:
            place = target / f"{image}.out"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(answer, place)
    return refused


def _refusal(answer: bytes) -> str | None:
    """Why an image was not answered: in a batch transform the server writes an entry with the error in its place."""
    try:
        found = json.loads(answer)
    except ValueError:
        rows = list(csv.DictReader(io.StringIO(answer.decode(errors="replace"))))
        return (rows[0].get("error") or None) if rows else None
    try:
        return str(found.get("predictions", [found])[0]["error"]["message"])
    except (AttributeError, IndexError, KeyError, TypeError):
        return None
