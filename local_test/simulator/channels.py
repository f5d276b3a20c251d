"""Input channels: what a request says of them, and which objects each host gets.

A folder stands for an S3 prefix, its files for the objects, their paths below it for the keys.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from local_test.simulator.subjects import SubjectError

_NAME = re.compile(r"[A-Za-z0-9.\-_]{1,64}")
MAX_CHANNELS = 20
"""API reference: InputDataConfig."""


class RequestError(SubjectError):
    """The service would refuse the request; the message names the value found and what is allowed."""


class InputMode(StrEnum):
    """How a channel's objects come (API reference: Channel, InputMode)."""

    FILE = "File"
    FAST_FILE = "FastFile"
    PIPE = "Pipe"


@dataclass(frozen=True)
class Channel:
    """One channel of a job.

    Args:
        name: letters, digits, ``.-_``, 64 at most.
        source: folder of the objects, a file that is the only one, or an augmented manifest with ``attributes``.
        mode: how they come.
        sharded: every host gets a share of the objects (ShardedByS3Key) instead of all.
        recordio: objects of a pipe come each in a RecordIO record.
        gzipped: objects of a pipe are compressed, and come decompressed (CompressionType).
        content_type: told in inputdataconfig.json; None is not told.
        attributes: of an augmented manifest, in the order in which they are streamed.
        reported: mode that inputdataconfig.json tells. AWS's pages disagree on FastFile: the current one says File.
        shuffle_seed: new order of a pipe's objects in every epoch; None keeps that of the keys.
        groups: instance groups that get it; empty is all.
    """

    name: str
    source: Path
    mode: InputMode = InputMode.FILE
    sharded: bool = False
    recordio: bool = False
    gzipped: bool = False
    content_type: str | None = None
    attributes: tuple[str, ...] = ()
    reported: str | None = None
    shuffle_seed: int | None = None
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what CreateTrainingJob refuses."""
        if not _NAME.fullmatch(self.name):
            raise RequestError(f"channel {self.name!r}: a name has 1 to 64 letters, digits, dots, hyphens, underscores")
        if self.attributes:
            if not self.source.is_file():
                raise RequestError(f"channel {self.name}: {self.source} is not a file; attributes are of a manifest")
            if self.mode is not InputMode.PIPE or not self.recordio:
                raise RequestError(
                    f"channel {self.name}: an augmented manifest is streamed; add mode=Pipe wrapper=RecordIO"
                )
        elif not self.source.exists():
            raise RequestError(
                f"channel {self.name}: {self.source} is not there; name the folder that holds the objects"
            )
        if self.recordio and self.mode is not InputMode.PIPE:
            raise RequestError(f"channel {self.name}: wrapper=RecordIO is for mode=Pipe, not {self.mode}")
        if self.gzipped and self.mode is not InputMode.PIPE:
            raise RequestError(f"channel {self.name}: compression=Gzip is for mode=Pipe, not {self.mode}")
        if self.gzipped and self.attributes:
            raise RequestError(f"channel {self.name}: compression=Gzip of what a manifest names cannot be had here")

    def described(self) -> Mapping[str, str]:
        """Its entry of inputdataconfig.json, which names no source."""
        told = {
            "TrainingInputMode": self.reported or ("Pipe" if self.mode is InputMode.PIPE else "File"),
            "S3DistributionType": "ShardedByS3Key" if self.sharded else "FullyReplicated",
            "RecordWrapperType": "RecordIO" if self.recordio else "None",
        }
        return told | ({"ContentType": self.content_type} if self.content_type else {})

    @property
    def base(self) -> Path:
        """Folder below which the objects lie."""
        return self.source if self.source.is_dir() else self.source.parent

    def objects(self, host: int = 0, hosts: int = 1) -> Sequence[str]:
        """Keys that a host gets, sorted: all, or every n-th of them. It may be none."""
        if self.source.is_file():
            found = [self.source.name]
        else:
            found = sorted(str(file.relative_to(self.source)) for file in _files(self.source))
        return found[host::hosts] if self.sharded else found

    def folder(self, host: int, hosts: int, scratch: Path) -> Path:
        """What is mounted as the channel: its source, or a host's share of it, made in ``scratch``."""
        if self.source.is_dir() and (not self.sharded or hosts == 1):
            return self.source.resolve()
        share = scratch / self.name
        share.mkdir(parents=True)
        for key in self.objects(host, hosts):
            target = share / key
            target.parent.mkdir(parents=True, exist_ok=True)
            # A symbolic link would lead out of a container.
            try:
                os.link((self.base / key).resolve(), target)
            except OSError:
                shutil.copyfile(self.base / key, target)
        return share


def _files(source: Path) -> Iterator[Path]:
    """What can be an object, which a dead link or a pipe cannot; follows links, and takes each folder once."""
    seen = set()
    for folder, folders, names in os.walk(source, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (file for name in names if (file := Path(folder, name)).is_file())


def parse(words: Sequence[str]) -> Channel:
    """A channel as the command line gives it: ``NAME=FOLDER``, then ``option=value`` words.

    Raises:
        RequestError: a word is not of this kind; names it.
    """
    name, separator, source = words[0].partition("=")
    if not separator or not source:
        raise RequestError(f"--channel {words[0]!r}: write NAME=FOLDER, such as train=photos/train")
    options = {"mode": "File", "distribution": "FullyReplicated", "wrapper": "None", "compression": "None"}
    allowed = {
        "mode": [str(mode) for mode in InputMode],
        "distribution": ["FullyReplicated", "ShardedByS3Key"],
        "wrapper": ["None", "RecordIO"],
        "compression": ["None", "Gzip"],
        "reported": [str(mode) for mode in InputMode],
    }
    for word in words[1:]:
        option, separator, value = word.partition("=")
        if not separator or option not in {*allowed, "content-type", "attributes", "shuffle", "groups"}:
            raise RequestError(
                f"channel {name}: {word!r} is no option; there are mode, distribution, wrapper, compression, "
                "content-type, attributes, reported, groups and shuffle, each with =value"
            )
        if value not in allowed.get(option, [value]):
            raise RequestError(f"channel {name}: {option}={value!r}; allowed: {', '.join(allowed[option])}")
        options[option] = value
    shuffle = options.get("shuffle")
    if shuffle is not None and not shuffle.isdecimal():
        raise RequestError(f"channel {name}: shuffle={shuffle!r} is not a seed; give a whole number")
    return Channel(
        name,
        Path(source).absolute(),
        InputMode(options["mode"]),
        sharded=options["distribution"] == "ShardedByS3Key",
        recordio=options["wrapper"] == "RecordIO",
        gzipped=options["compression"] == "Gzip",
        content_type=options.get("content-type"),
        attributes=tuple(filter(None, options.get("attributes", "").split(","))),
        reported=options.get("reported"),
        shuffle_seed=None if shuffle is None else int(shuffle),
        groups=tuple(filter(None, options.get("groups", "").split(","))),
    )
