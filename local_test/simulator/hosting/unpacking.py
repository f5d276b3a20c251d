"""model.tar.gz to a folder, as hosting does it: files and folders, and never a link.

AWS docs: your-algorithms-inference-code. The platform refuses archives with links, so that one here is a mistake to
hear of before anything is deployed.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path


class ArchiveError(Exception):
    """The model cannot be put in place; the message says what is wrong with it and what to do."""


def put_model(source: Path, folder: Path) -> None:
    """Fills ``folder`` with a model.

    Args:
        source: model.tar.gz, or a folder with its content.
        folder: new; made here.

    Raises:
        ArchiveError: there is no such thing, it is no archive, or it holds a link.
    """
    if source.is_dir():
        for file in sorted(source.rglob("*")):
            if file.is_symlink():
                raise ArchiveError(_link(source, str(file.relative_to(source))))
        shutil.copytree(source, folder)
    elif source.is_file():
        folder.mkdir(parents=True)
        _unpack(source, folder)
    else:
        raise ArchiveError(f"there is no model at {source}; give a model.tar.gz, or a folder with its content")


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive, "r:gz") as opened:
            for member in opened:
                if member.issym() or member.islnk():
                    raise ArchiveError(_link(archive, member.name))
                _extract(opened, member, folder)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ArchiveError(
            f"{archive} is no model.tar.gz that can be unpacked ({error}); make one with: "
            f"tar -czf model.tar.gz -C model ."
        ) from error


def _extract(opened: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Refuses what lies outside, and devices."""
    if hasattr(tarfile, "data_filter"):
        opened.extract(member, folder, filter="data")
        return
    # Python 3.11 before 3.11.4, which is Debian 12's, has no filters.
    place = (folder / member.name).resolve()
    if not (member.isfile() or member.isdir()) or not place.is_relative_to(folder.resolve()):
        raise tarfile.ExtractError(f"{member.name!r} is no plain file, or leads out of the folder")
    opened.extract(member, folder, set_attrs=False)


def _link(source: Path, name: str) -> str:
    return f"{source} holds a link, {name}, which SageMaker refuses; pack the file itself (tar --dereference)"
