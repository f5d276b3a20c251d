"""Which files of a folder are images, by their names: the same for jobs, for curation and for what asks endpoints.

Reads names only, because FastFile streams what is opened. Knows neither pixels nor classes.
"""

from __future__ import annotations

import stat
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
