"""Put a folder of images, or one weights file, into S3; prints its s3:// URI.

Goes to s3://BUCKET/PREFIX/data/NAME/. Objects that are there already with the same content are left alone, so a second
run sends only what changed, and one that was interrupted goes on where it stopped. Hidden files and folders stay
behind. Nothing is ever deleted: what the URI holds beyond the folder is reported, because a training job would read it.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import mimetypes
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from scripts.launcher import hosting
from scripts.launcher import settings as settings_module
from scripts.launcher.arguments import job_name, positive
from scripts.launcher.context import Context
from scripts.launcher.errors import SettingError
from scripts.launcher.plan import Call
from scripts.launcher.settings import Settings
from scripts.launcher.tables import size

_MAX_OBJECT_BYTES = 5 * 1024**3
"""What one PutObject takes (AWS docs: upload-objects)."""

_CHUNK_BYTES = 1 << 20

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("source", metavar="FOLDER", type=Path, help="folder with train, valid and test, or one file")
    parser.add_argument(
        "--name", type=job_name, metavar="NAME", help="last part of the URI; default the folder's own name"
    )
    parser.add_argument(
        "--workers", type=positive, default=16, metavar="N", help="uploads at the same time; default %(default)s"
    )
    settings_module.add_arguments(parser, "bucket", "prefix")


def plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """One listing of what is there, then one PutObject per file; `run` leaves out those that are there unchanged."""
    files = dict(_files(arguments.source))
    if not files:
        raise SettingError(f"{arguments.source} holds no files; give a folder with one folder of images per class")
    hosting.check_names(files.values())
    bucket, prefix = settings.bucket, _key_prefix(arguments, settings)
    calls = [Call("s3", "ListObjectsV2", {"Bucket": bucket, "Prefix": prefix})]
    for name, file in files.items():
        content_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        parameters = {
            "Bucket": bucket,
            "Key": prefix + name,
            "Body": file,
            "ContentType": content_type,
            # Kept by S3, and compared where the ETag is no MD5, as in a bucket that encrypts with KMS.
            "ChecksumAlgorithm": "CRC32",
        }
        calls.append(Call("s3", "PutObject", parameters))
    return calls


def run(calls: Sequence[Call], context: Context) -> int:
    """Sends what is new or changed, several at a time, and prints the URI last."""
    listing, *puts = calls
    sizes = {call.parameters["Key"]: call.parameters["Body"].stat().st_size for call in puts}
    there = {
        item["Key"]: item for page in context.aws.pages(listing) for item in page.get("Contents", ()) if item["Size"]
    }
    suspects = [call for call in puts if there.get(call.parameters["Key"], {}).get("Size") == sizes[_key(call)]]
    workers = context.arguments.workers
    same: set[str] = set()

    def compare(call: Call) -> None:
        if _unchanged(call, there[_key(call)]["ETag"], context):
            same.add(_key(call))

    _in_parallel(compare, suspects, workers)
    new = [call for call in puts if _key(call) not in same]
    total = sum(sizes[_key(call)] for call in new)
    context.say(f"{len(new)} of {len(puts)} files to send, {size(total)}; {len(same)} are there unchanged")
    sent: list[str] = []
    with tqdm(total=total, unit="B", unit_scale=True, desc="upload", leave=False, disable=not new) as bar:

        def put(call: Call) -> None:
            with _Counted(call.parameters["Body"], bar.update) as body:
                context.aws.call(replace(call, parameters={**call.parameters, "Body": body}))
            sent.append(_key(call))

        try:
            _in_parallel(put, new, workers)
        finally:
            if len(sent) < len(new):
                bar.close()
                context.say(f"{len(sent)} of {len(new)} files were sent and stay; the same command sends the rest")
    extra = sorted(set(there) - set(sizes))
    prefix = listing.parameters["Prefix"]
    if extra:
        context.say(
            f"note: {len(extra)} objects under the URI are not in {context.arguments.source}, {extra[0]} for one; a "
            f"training job reads them too"
        )
    bucket = listing.parameters["Bucket"]
    source = context.arguments.source
    print(f"s3://{bucket}/{prefix}" if source.is_dir() else f"s3://{bucket}/{_key(puts[0])}")
    return 0


def _key_prefix(arguments: argparse.Namespace, settings: Settings) -> str:
    """Where a folder's files go; a single file goes into a folder named after it without its suffix."""
    source: Path = arguments.source.resolve()
    name = arguments.name or (source.name if source.is_dir() else source.name.partition(".")[0])
    return "/".join(part for part in (settings.prefix, "data", name) if part) + "/"


def _files(source: Path) -> Iterator[tuple[str, Path]]:
    """Key below the URI -> file, sorted; follows links, each folder once."""
    if source.is_file():
        yield source.name, _sendable(source)
        return
    if not source.is_dir():
        raise SettingError(f"{source} does not exist; give a folder of images, or a file")
    seen = set()
    for root, folders, names in os.walk(source, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        for name in sorted(names):
            file = Path(root, name)
            if not name.startswith(".") and file.is_file():
                yield file.relative_to(source).as_posix(), _sendable(file)


def _sendable(file: Path) -> Path:
    if file.stat().st_size > _MAX_OBJECT_BYTES:
        raise SettingError(f"{file} is larger than 5 GiB; send it with `aws s3 cp`, and the rest with this command")
    return file


def _key(call: Call) -> str:
    key: str = call.parameters["Key"]
    return key


def _unchanged(call: Call, etag: str, context: Context) -> bool:
    """Whether the object of the same size has the file's content: by MD5, else by the CRC32 that S3 kept."""
    file: Path = call.parameters["Body"]
    with file.open("rb") as content:
        if etag.strip('"') == hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest():
            return True
    parameters: Mapping[str, str] = {
        "Bucket": call.parameters["Bucket"],
        "Key": _key(call),
        "ChecksumMode": "ENABLED",
    }
    kept = context.aws.call(Call("s3", "HeadObject", parameters)).get("ChecksumCRC32")
    return kept is not None and kept == _crc32(file)


def _crc32(file: Path) -> str:
    """As S3 writes it: four bytes, big-endian, in base64."""
    value = 0
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def _in_parallel(work: Callable[[T], None], items: Sequence[T], workers: int) -> None:
    """Does it for every item. The first error, or Ctrl-C, lets what has begun finish and starts nothing more."""
    executor = ThreadPoolExecutor(workers)
    try:
        futures = [executor.submit(work, item) for item in items]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


class _Counted(io.FileIO):
    """A file that reports each of its bytes once, however often a retry or a checksum reads them."""

    def __init__(self, file: Path, report: Callable[[int], object]) -> None:
        super().__init__(file)
        self._report = report
        self._reported = 0

    def read(self, size: int | None = -1) -> bytes:
        data: bytes = super().read(-1 if size is None else size) or b""
        position = self.tell()
        if position > self._reported:
            self._report(position - self._reported)
            self._reported = position
        return data
