"""What a check needs to know of a subject: what it trains on, and what it is asked.

A profile is a TOML file beside somebody's image. Without one, `checks.own` draws one for this project.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class ProfileError(Exception):
    """A profile that cannot be used; the message names the key, the value found and what is expected."""


@dataclass(frozen=True)
class Training:
    """How the subject trains.

    Args:
        channels: name -> folder here.
        hyperparameters: of a job of seconds; every value a string.
        long: changes to them that make a job last for minutes, so that it can be stopped on its way.
        bad: changes to them that the subject must refuse; empty where nothing is known.
        environment: variables of the job.
        objective_regex: reads the objective from a log line, group 1; empty where none is known.
        epochs: how often the objective is printed in a job with ``hyperparameters``; None where that is unknown.
        resume: changes to the hyperparameters of the job that is lost and started again: some epochs, of a second or
            two each, in a job that ends by itself.
        resume_epochs: how often that job prints the objective when nothing happens to it.
    """

    channels: Mapping[str, Path] = field(default_factory=dict)
    hyperparameters: Mapping[str, str] = field(default_factory=dict)
    long: Mapping[str, str] = field(default_factory=dict)
    bad: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    objective_regex: str = ""
    epochs: int | None = None
    resume: Mapping[str, str] = field(default_factory=dict)
    resume_epochs: int | None = None


@dataclass(frozen=True)
class Serving:
    """How the subject is asked.

    Args:
        request: a body that is answered with 200.
        content_type: of it.
        model: folder of a trained model; None takes what the training checks made.
        environment: variables of the endpoint.
        bad_request: a body of the same type that cannot be read.
        payload_mb: the largest body that it should take, in MB of 2**20 bytes.
    """

    request: bytes = b""
    content_type: str = "application/octet-stream"
    model: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    bad_request: bytes = b"\x00\xff\xfe not what you expect \x00"
    payload_mb: int = 25


@dataclass(frozen=True)
class Profile:
    """Both sides.

    Args:
        training: None where only `serve` is checked.
        serving: None where only `train` is.
    """

    training: Training | None
    serving: Serving | None


_TABLES = {
    "train": {
        "channels", "hyperparameters", "long", "bad", "environment", "objective_regex", "epochs", "resume",
        "resume_epochs",
    },
    "serve": {"request", "content_type", "model", "environment", "bad_request", "payload_mb"},
}  # fmt: skip


def read_profile(file: Path) -> Profile:
    """Reads a profile; paths in it are relative to its folder.

    Raises:
        ProfileError: the file is missing or says something that is not understood.
    """
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"the profile {file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"the profile {file} is not TOML: {error}") from error
    for name, table in found.items():
        if name not in _TABLES or not isinstance(table, dict):
            raise ProfileError(f"{file}: {name!r} is unknown; a profile has the tables [train] and [serve]")
        for key in table:
            if key not in _TABLES[name]:
                raise ProfileError(
                    f"{file}: {key!r} of [{name}] is unknown; there are {', '.join(sorted(_TABLES[name]))}"
                )
    return Profile(
        training=_training(file, found["train"]) if "train" in found else None,
        serving=_serving(file, found["serve"]) if "serve" in found else None,
    )


def _training(file: Path, table: Mapping[str, object]) -> Training:
    channels = {name: _folder(file, path) for name, path in _strings(file, table, "channels").items()}
    if not channels:
        raise ProfileError(f'{file}: [train] has no channels; write for example channels = {{ train = "data" }}')
    regex = _text(file, table, "objective_regex", "")
    try:
        groups = re.compile(regex).groups
    except re.error as error:
        raise ProfileError(f"{file}: objective_regex={regex!r} is not a regular expression: {error}") from error
    if regex and not groups:
        raise ProfileError(f"{file}: objective_regex={regex!r} has no group; put the value in brackets: loss=([0-9.]+)")
    return Training(
        channels=channels,
        hyperparameters=_strings(file, table, "hyperparameters"),
        long=_strings(file, table, "long"),
        bad=_strings(file, table, "bad"),
        environment=_strings(file, table, "environment"),
        objective_regex=regex,
        epochs=_count(file, table, "epochs"),
        resume=_strings(file, table, "resume"),
        resume_epochs=_count(file, table, "resume_epochs"),
    )


def _serving(file: Path, table: Mapping[str, object]) -> Serving:
    if "request" not in table:
        raise ProfileError(f'{file}: [serve] has no request; write for example request = "sample.csv"')
    given = Serving()
    bad = _text(file, table, "bad_request", "")
    model = _text(file, table, "model", "")
    return Serving(
        request=_bytes(file, _text(file, table, "request", "")),
        content_type=_text(file, table, "content_type", given.content_type),
        model=_folder(file, model) if model else None,
        environment=_strings(file, table, "environment"),
        bad_request=_bytes(file, bad) if bad else given.bad_request,
        payload_mb=_count(file, table, "payload_mb") or given.payload_mb,
    )


def _bytes(file: Path, name: str) -> bytes:
    try:
        return (file.parent / name).read_bytes()
    except OSError as error:
        raise ProfileError(f"{file}: {name!r} cannot be read: {error.strerror}") from error


def _folder(file: Path, name: str) -> Path:
    folder = (file.parent / name).resolve()
    if not folder.is_dir():
        raise ProfileError(f"{file}: {name!r} is not a folder in {file.parent}")
    return folder


def _strings(file: Path, table: Mapping[str, object], key: str) -> dict[str, str]:
    value = table.get(key, {})
    if not isinstance(value, dict) or any(not isinstance(one, str) for one in value.values()):
        raise ProfileError(f'{file}: {key} is not a table of strings; write {key} = {{ epochs = "3" }}')
    return dict(value)


def _text(file: Path, table: Mapping[str, object], key: str, default: str) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise ProfileError(f"{file}: {key}={value!r} is not a string")
    return value


def _count(file: Path, table: Mapping[str, object], key: str) -> int | None:
    value = table.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ProfileError(f"{file}: {key}={value!r} is not a whole number from 1")
    return value
