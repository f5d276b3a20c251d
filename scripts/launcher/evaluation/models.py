"""A bundle on this machine, served for as long as it is asked: the image's own server, as a process.

Knows the files of a bundle and the checkout's entry point; imports neither torch nor the server.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from scripts.launcher import archives
from scripts.launcher.errors import OutcomeError, SettingError
from scripts.launcher.local import engine

_REPOSITORY = Path(__file__).resolve().parents[3]
_BUNDLE_FILE = "bundle.json"
# A bundle is some MB to some GB; its JSON is some kB.
_MAX_DOCUMENT_BYTES = 64 * 1024**2
_READY_S = 300.0
_POLL_S = 0.1
# gunicorn lets requests finish for as long; nothing runs any more when we ask.
_GRACE_S = 40.0
_TROUBLE = re.compile(r"\b(?:ERROR|CRITICAL) \S+: (?:the model cannot be served: )?(.*)")


@dataclass(frozen=True, slots=True)
class Model:
    """A bundle that can be read.

    Attributes:
        path: its folder, or a model.tar.gz.
        name: backbone and the beginning of bundle.json's SHA-256, which names the weights' own: the same for the same
            model, wherever it lies.
    """

    path: Path
    name: str


def find(path: Path) -> Model:
    """The bundle in a folder, in the folder `model` of one, or in a model.tar.gz.

    Raises:
        SettingError: there is none.
    """
    for folder in (path, path / "model"):
        if (folder / _BUNDLE_FILE).is_file():
            return Model(folder, _name(folder, (folder / _BUNDLE_FILE).read_bytes()))
    if path.is_file():
        return Model(path, _name(path, _packed(path)))
    held = sorted(entry.name for entry in path.iterdir())[:5] if path.is_dir() else []
    found = f"it holds {', '.join(held) or 'nothing'}" if path.is_dir() else "there is nothing of that name"
    raise SettingError(f"{path} is no model: {found}; give a folder with {_BUNDLE_FILE} in it, or a model.tar.gz")


@contextmanager
def served(model: Model, sleep: Callable[[float], None]) -> Iterator[str]:
    """Serves a model on a free port of 127.0.0.1 and yields the address, once it can answer; stops it afterwards.

    Raises:
        OutcomeError: it cannot be served; says why, in the server's words.
    """
    with tempfile.TemporaryDirectory(prefix="dogbreed-evaluate-") as scratch:
        root = Path(scratch)
        if model.path.is_dir():
            (root / "model").symlink_to(model.path.resolve())
        else:
            _unpack(model.path, root / "model")
        port, log = engine.free_port(), root / "server.log"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environ |= {
            "SAGEMAKER_BASE_DIR": str(root),
            "SAGEMAKER_BIND_TO_PORT": str(port),
            "DOGBREED_HOST": "127.0.0.1",
            "PYTHONPATH": str(_REPOSITORY / "container"),
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("wb") as stream:
            process = subprocess.Popen(  # noqa: S603  our own
                [sys.executable, str(_REPOSITORY / "container" / "serve")],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environ,
                # Ctrl-C is for the command, which stops the server itself.
                start_new_session=True,
            )
        try:
            _await(process, port, log, model, sleep)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process)


def _await(
    process: subprocess.Popen[bytes], port: int, log: Path, model: Model, sleep: Callable[[float], None]
) -> None:
    deadline = time.monotonic() + _READY_S
    while not _answers(port):
        said = log.read_text(encoding="utf-8", errors="replace")
        trouble = _TROUBLE.search(said)
        if trouble or process.poll() is not None or time.monotonic() > deadline:
            last = (said.strip().splitlines() or ["its log is empty"])[-1]
            raise OutcomeError(f"{model.path} cannot be served: {trouble.group(1) if trouble else last}")
        sleep(_POLL_S)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _name(path: Path, document: bytes) -> str:
    try:
        backbone = json.loads(document)["backbone"].replace("_", "-")
        return f"{backbone}-{hashlib.sha256(document).hexdigest()[:8]}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(f"{path} holds a {_BUNDLE_FILE} that is none of this project's: {error!r}") from error


def _packed(archive: Path) -> bytes:
    """bundle.json of a model.tar.gz."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and PurePosixPath(member.name) == PurePosixPath(_BUNDLE_FILE):
                    content = tar.extractfile(member)
                    if content is not None and member.size <= _MAX_DOCUMENT_BYTES:
                        return content.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is no tar archive, or is cut off"
        raise SettingError(
            f"{archive} cannot be read as model.tar.gz: {why}; give a folder with {_BUNDLE_FILE} in it, or the archive "
            f"of a job"
        ) from error
    raise SettingError(f"{archive} holds no {_BUNDLE_FILE}; give the model.tar.gz of a training job with this image")


def _unpack(archive: Path, folder: Path) -> None:
    """Unpacks files alone: the filter refuses links and paths that lead elsewhere."""
    try:
        archives.extract(archive, folder)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise OutcomeError(f"{archive} cannot be unpacked: {error}") from error
