"""Which files of a folder are images, by their names: the same for jobs, for curation and for what asks endpoints.

Reads names and sizes and opens nothing, because FastFile streams what is opened. Knows neither pixels nor classes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""File names that are taken for images, in lower case: those of the formats that `preprocessing.decode` reads."""


def is_image_file(path: Path) -> bool:
    """By name alone, so that a listing reads no data (FastFile streams what is opened)."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def size_bytes(path: Path) -> int:
    """Of a file; -1 of what cannot be read as one, a link to nothing or a pipe: whoever opens it says what it is."""
    try:
        status = path.stat()
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


class Walk:
    """Lists the files below folders and takes each real folder once.

    Links are followed, because local channels are often links. One that leads to a folder that is listed anyway, or to
    one above, is passed over: its images would come twice, and perhaps under another class or in another split.

    Args:
        folders: that are going to be listed.
        others: that are not, and to which no link may lead: those of other splits.
    """

    def __init__(self, folders: Iterable[Path], others: Iterable[Path] = ()) -> None:
        self._own = {Path(os.path.realpath(folder)) for folder in folders}
        self._barred = self._own | {Path(os.path.realpath(folder)) for folder in others}
        self._above = {parent for folder in self._barred for parent in folder.parents}
        self._listed: set[Path] = set()
        self.passed_over: list[Path] = []

    def files(self, folder: Path) -> Iterator[Path]:
        """The files below one of the folders, at any depth and in no order; `passed_over` grows by what is not."""
        begun = [(folder, Path(os.path.realpath(folder)))]
        links: list[Path] = []
        # What is there without a link comes first, so that it has its own name.
        while begun or links:
            if not begun:
                link = links.pop(0)
                real = Path(os.path.realpath(link))
                if real in self._above or not self._barred.isdisjoint((real, *real.parents)):
                    self.passed_over.append(link)
                    continue
                begun.append((link, real))
            top, real_top = begun.pop()
            for parent, folders, names in os.walk(top):
                place = Path(parent)
                real = real_top / place.relative_to(top)
                if real in self._listed or (real in self._own and place != folder):
                    self.passed_over.append(place)
                    folders.clear()
                    continue
                self._listed.add(real)
                folders.sort()
                links += [path for name in folders if (path := place / name).is_symlink()]
                yield from (place / name for name in names)

    def images(self, folder: Path) -> list[Path]:
        """Those of the files that are images by their names, sorted."""
        return sorted(filter(is_image_file, self.files(folder)))


def images_below(folder: Path) -> list[Path]:
    """The images in and below a folder, sorted; see `Walk`."""
    return Walk([folder]).images(folder)


def objection_to_names(paths: Iterable[Path | str]) -> str | None:
    """What is wrong with the first name that is not UTF-8, and what to do; None when all are.

    Linux takes any bytes for a name. Reports, tables, bundles and S3 do not.
    """
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            return (
                f"the name {str(path)!r} is not UTF-8, which models, reports and S3 need; rename it, or all of a "
                f"folder by `convmv -r -f latin1 -t utf8 --notest FOLDER`"
            )
    return None
