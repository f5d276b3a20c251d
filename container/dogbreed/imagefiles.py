"""Which files of a folder are images, by their names: the same for jobs, for curation and for what asks endpoints.

Reads names only, because FastFile streams what is opened. Knows neither pixels nor classes.
"""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""File names that are taken for images, in lower case: those of the formats that `preprocessing.decode` reads."""


def is_image_file(path: Path) -> bool:
    """By name alone, so that a listing reads no data (FastFile streams what is opened)."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
