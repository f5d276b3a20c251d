"""Unpacks archives that somebody else may have made."""

from __future__ import annotations

import tarfile
from pathlib import Path


def extract(archive: Path, folder: Path) -> None:
    """Unpacks files and folders; nothing may lead out of the folder, which is made when missing.

    Raises:
        tarfile.TarError, EOFError, OSError: it is no archive, is cut off, or leads elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
            return
        # Python 3.11 before 3.11.4, which is Debian 12's, has no filters.
        for member in tar:
            place = (folder / member.name).resolve()
            if not (member.isfile() or member.isdir()) or not place.is_relative_to(folder.resolve()):
                raise tarfile.ExtractError(f"{member.name!r} is no plain file, or leads out of the folder")
            tar.extract(member, folder, set_attrs=False)
