"""Where things are in local mode: folders in the place of S3, and `build/local` for what comes out.

A job has the folder `build/local/JOB` with `model`, `model.tar.gz` and `output` (what the platform packs as
output.tar.gz), an endpoint `build/local/endpoints/NAME` with its description and log. Knows neither Docker nor the SDK.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.launcher import archives
from scripts.launcher.errors import SettingError
from scripts.launcher.local.engine import DEFAULT_IMAGE
from scripts.launcher.plan import Call
from scripts.launcher.settings import Settings

ROOT = Path("build", "local")
"""Of jobs and endpoints."""

SCRATCH = ".scratch"
"""Below a job's or endpoint's folder: the SDK's own files while it runs."""

DESCRIPTION = "endpoint.json"
"""Below an endpoint's folder: what `deploy` was given."""

INSTANCE_TYPES = ("local", "local_gpu")
"""What the SDK calls this machine: its processors, or its NVIDIA GPUs as well."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A local endpoint that was deployed; whether it runs, only its port tells.

    Attributes:
        name: as given to `deploy`.
        port: on 127.0.0.1.
        image: that serves.
        model: folder of the bundle, or its model.tar.gz.
    """

    name: str
    port: int
    image: str
    model: str

    @property
    def url(self) -> str:
        """Address of its server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def folder(self) -> Path:
        """Where its description and log are."""
        return endpoint_folder(self.name)


def image(settings: Settings) -> str:
    """The image that was given, by whatever name Docker knows it; else the one that `make build` makes."""
    return settings.given.get("image", DEFAULT_IMAGE)


def instance_type(given: str | None) -> str:
    """`local`, or what was given if the SDK's local mode has it."""
    if given is not None and given not in INSTANCE_TYPES:
        raise SettingError(f"--instance-type {given}: with --local give {' or '.join(INSTANCE_TYPES)}")
    return given or INSTANCE_TYPES[0]


def refuse(options: Mapping[str, object]) -> None:
    """Refuses options that mean nothing on one machine; those that are empty were not given."""
    given = [option for option, value in options.items() if value]
    if given:
        raise SettingError(f"{given[0]} is for the account and means nothing with --local; leave it out")


def given_uri(argument: str, text: str) -> str:
    """The URI of a file or folder that must exist."""
    if text.startswith("s3://"):
        raise SettingError(f"{argument} {text}: with --local give a folder of this machine")
    if not Path(text).exists():
        raise SettingError(f"{argument} {text}: there is no such file or folder")
    return uri_of(Path(text))


def uri_of(path: Path) -> str:
    """`file://` and the absolute path as it stands: the SDK undoes no escapes."""
    text = str(path.resolve())
    if bad := [character for character in ":?#" if character in text]:
        raise SettingError(f"{text}: the SDK and Docker Compose cannot mount a path with {bad[0]!r} in it")
    return f"file://{text}"


def path_of(uri: str) -> Path:
    """The path of a URI that `uri_of` made."""
    return Path(uri.removeprefix("file://"))


def job_folder(name: str) -> Path:
    """Of a training job's results."""
    return ROOT / name


def endpoint_folder(name: str) -> Path:
    """Of an endpoint's description and log."""
    return ROOT / "endpoints" / name


def find_endpoint(name: str) -> Endpoint | None:
    """The local endpoint of that name, or None; reads its description and asks nobody."""
    path = endpoint_folder(name) / DESCRIPTION
    try:
        return Endpoint(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        raise SettingError(f"{path} describes no endpoint ({error}); remove its folder") from error


def endpoint_names() -> list[str]:
    """Names of the local endpoints."""
    return sorted(path.parent.name for path in endpoint_folder("").glob(f"*/{DESCRIPTION}"))


def no_endpoint(name: str) -> str:
    """What to say when there is no local endpoint of that name."""
    return f"there is no local endpoint {name} here; local endpoints: {', '.join(endpoint_names()) or 'none'}"


def model(job: str | None, model_data: str | None) -> Path:
    """The folder, or the model.tar.gz, that a model is taken from.

    Raises:
        SettingError: there is none, or it holds no bundle.
    """
    path = job_folder(job) / "model" if job else Path(str(model_data))
    if not path.exists():
        way = f"`launch.py train --local --name {job}` makes it" if job else "give a folder, or a model.tar.gz"
        raise SettingError(f"there is no {path}; {way}")
    if path.is_dir() and not (path / "bundle.json").is_file():
        raise SettingError(f"{path} holds no bundle.json; give the folder that a job names as its model")
    return path


def model_call(name: str, settings: Settings, path: Path, environment: Mapping[str, str]) -> Call:
    """CreateModel; the SDK wants an environment, even an empty one."""
    container = {"Image": image(settings), "ModelDataUrl": uri_of(path), "Environment": dict(environment)}
    return Call("sagemaker", "CreateModel", {"ModelName": name, "PrimaryContainer": container})


def unpacked(create: Call, folder: Path) -> Call:
    """CreateModel on a folder: a model.tar.gz is unpacked below ``folder``, for the SDK would do it beside the file."""
    container = create.parameters["PrimaryContainer"]
    archive = path_of(container["ModelDataUrl"])
    if archive.is_dir():
        return create
    extract(archive, folder / "model")
    container = {**container, "ModelDataUrl": uri_of(folder / "model")}
    return Call(create.service, create.operation, {**create.parameters, "PrimaryContainer": container})


def extract(archive: Path, target: Path) -> None:
    """Unpacks an archive; nothing of it may lead out of the folder."""
    try:
        archives.extract(archive, target)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise SettingError(f"{archive} cannot be unpacked: {error}") from error


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file lies on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
