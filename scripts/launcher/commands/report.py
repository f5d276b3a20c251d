"""Fetch the insight report of a training job, and print where it is.

Reads the job's output.tar.gz from S3 and unpacks its folder insight into build/reports/NAME: report.html, which needs
nothing beside it, record.json and the verdicts of the rules. Nothing else of the archive is unpacked, and nothing is
written outside that folder.
"""

from __future__ import annotations

import argparse
import shutil
import tarfile
import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from scripts.launcher import following
from scripts.launcher.arguments import job_name
from scripts.launcher.context import Context
from scripts.launcher.errors import OutcomeError, ServiceError
from scripts.launcher.plan import Call
from scripts.launcher.settings import Settings

_REPORTS = Path("build", "reports")
_FOLDER = "insight"
_PAGE = "report.html"
# A report is some MB. An archive that unpacks to more than this is not one.
_MAX_BYTES = 2 * 1024**3
_CHUNK_BYTES = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("name", metavar="NAME", type=job_name, help="name of the training job")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help=f"instead of {_REPORTS}/NAME; must be new or a report's"
    )
    parser.add_argument("--open", action="store_true", help="open it in the browser")


def plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """The description of the job, which says where its output is; one GetObject of that follows."""
    return [following.describe(arguments.name)]


def run(calls: Sequence[Call], context: Context) -> int:
    """Fetches, unpacks and prints the path of the page."""
    arguments = context.arguments
    description = context.aws.call(calls[0])
    get = _archive(description)
    folder: Path = arguments.output or _REPORTS / arguments.name
    if folder.exists() and not (folder / _PAGE).is_file() and any(folder.iterdir()):
        raise OutcomeError(f"{folder} holds something that is no report; name another by --output")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".report-") as temporary:
        archive = Path(temporary, "output.tar.gz")
        try:
            _fetch(get, archive, context)
        except ServiceError as error:
            raise _without_archive(error, description) from error
        unpacked = Path(temporary, _FOLDER)
        unpack(archive, unpacked)
        if folder.exists():
            shutil.rmtree(folder)
        unpacked.rename(folder)
    page = folder / _PAGE
    if not page.is_file():
        raise OutcomeError(
            f"{folder} was unpacked, but holds no {_PAGE}; the log says why: `launch.py logs {arguments.name}`"
        )
    print(page)
    if arguments.open and not webbrowser.open(page.resolve().as_uri()):
        context.say("no browser could be opened; open the file by hand")
    return 0


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks the regular files below `insight/` of a tar.gz into ``folder``, which is created.

    Links, devices and paths that lead elsewhere are not unpacked: the archive was written by a job, which may have run
    anything.

    Raises:
        OutcomeError: it is no archive, holds no such folder, or unpacks to more than 2 GiB.
    """
    folder.mkdir()
    written = 0
    names = set()
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                names.add(path.parts[0] if path.parts else ".")
                if not member.isfile() or path.parts[:1] != (_FOLDER,) or ".." in path.parts or len(path.parts) < 2:
                    continue
                written += member.size
                if written > _MAX_BYTES:
                    raise OutcomeError(
                        f"the folder {_FOLDER} of output.tar.gz unpacks to more than 2 GiB, which is no report"
                    )
                target = folder.joinpath(*path.parts[1:])
                target.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                if content is None:  # never so of a regular file
                    continue
                with content, target.open("wb") as file:
                    shutil.copyfileobj(content, file)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise OutcomeError(f"output.tar.gz cannot be unpacked: {error}") from error
    if not any(folder.iterdir()):
        found = ", ".join(sorted(names)) or "nothing"
        raise OutcomeError(f"output.tar.gz holds no folder {_FOLDER}, only {found}: was the job made with this image?")


def _archive(description: dict[str, Any]) -> Call:
    """The request for output.tar.gz, beside model.tar.gz (AWS docs: model-train-storage)."""
    root = description["OutputDataConfig"]["S3OutputPath"].rstrip("/")
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    parts = (prefix, description["TrainingJobName"], "output", "output.tar.gz")
    return Call("s3", "GetObject", {"Bucket": bucket, "Key": "/".join(part for part in parts if part)})


def _fetch(get: Call, archive: Path, context: Context) -> None:
    answer = context.aws.call(get)
    body: IO[bytes] = answer["Body"]

    def copy() -> None:
        with (
            archive.open("wb") as file,
            tqdm(total=answer["ContentLength"], unit="B", unit_scale=True, desc="report", leave=False) as bar,
        ):
            while chunk := body.read(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))

    # The connection may break while the body is read, too.
    context.aws.explained(get, copy)


def _without_archive(error: ServiceError, description: dict[str, Any]) -> Exception:
    """Why there is no archive, in terms of the job."""
    if not error.not_found:
        return error
    name, status = description["TrainingJobName"], description["TrainingJobStatus"]
    if status not in following.ENDED:
        return OutcomeError(
            f"{name} is {status}: the report is uploaded when the job ends, `launch.py logs {name} --follow`"
        )
    if status == "Failed":
        return OutcomeError("\n".join([*following.outcome(description), "it left no output.tar.gz, and so no report"]))
    return OutcomeError(f"{name} left no output.tar.gz ({error})")
