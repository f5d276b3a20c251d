"""What a job leaves: the folders of all hosts in one archive.

Source: AWS docs, your-algorithms-training-algo-output, model-train-storage: the files of all hosts are merged, and
their names must not clash. What happens when they do is not said; here the first host's file is taken, and the clash is
told.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# Weights hardly shrink; this is for testing.
_LEVEL = 1


def pack(folders: Mapping[str, Path], archive: Path) -> Sequence[str]:
    """Makes a tar.gz of several hosts' folders.

    Args:
        folders: host -> folder; one that is missing is empty.
        archive: made, also when it holds nothing.

    Returns:
        A sentence for every name that more than one host wrote.
    """
    owners: dict[str, list[str]] = {}
    for host, folder in folders.items():
        for file in sorted(folder.rglob("*")):
            if file.is_symlink() or not file.is_dir():
                owners.setdefault(str(file.relative_to(folder)), []).append(host)
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz", compresslevel=_LEVEL) as packed:
        for name in sorted(owners):
            packed.add(folders[owners[name][0]] / name, arcname=name)
    return [
        f"{archive.name}: {name} was written by {' and '.join(hosts)}; that of {hosts[0]} is taken here, "
        "and the platform does not say which"
        for name, hosts in sorted(owners.items())
        if len(hosts) > 1
    ]


def unpack(archive: Path, folder: Path) -> None:
    """Puts what `pack` made into a folder; without an archive, as of a job that failed, there is nothing to put.

    Args:
        archive: of a job.
        folder: made here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if archive.is_file():
        with tarfile.open(archive) as packed:
            if hasattr(tarfile, "tar_filter"):
                packed.extractall(folder, filter="tar")
            else:  # Python 3.11 before 3.11.4, which is Debian 12's, has no filters; the archive is our own
                packed.extractall(folder)  # noqa: S202
