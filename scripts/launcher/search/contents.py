"""What a search learns from, told by names and sizes, so that a change of it between two runs is noticed.

Opens no image. Knows nothing of trials.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dogbreed.imagefiles import size_bytes


@dataclass(frozen=True, slots=True)
class Contents:
    """What stands below a folder, and the weights beside it.

    Attributes:
        files: how many.
        size: of all together, in bytes.
        digest: SHA-256 over their relative names and sizes.
        weights: size of the weights in bytes; None without weights.
    """

    files: int
    size: int
    digest: str
    weights: int | None

    def change_since(self, before: Contents) -> str:
        """What has changed, as the end of a sentence; empty where nothing has."""
        found = []
        if self.digest != before.digest:
            same = (self.files, self.size) == (before.files, before.size)
            now = "as many now, by other names or sizes" if same else f"{self.files} of {self.size:,} now"
            found.append(f"images that have changed since ({before.files} files of {before.size:,} bytes then, {now})")
        if self.weights != before.weights:
            found.append(f"weights that have changed since ({before.weights} bytes then, {self.weights} now)")
        return " and ".join(found)


def contents(data: Path, weights: Path | None, *, without: Collection[str] = ()) -> Contents:
    """Looks at the files of a search.

    Args:
        data: folder of images; links are followed, hidden files left out.
        weights: file, or None.
        without: names of folders in ``data`` that are left out too.
    """
    digest, count, size = hashlib.sha256(), 0, 0
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(data, followlinks=True):
        place = Path(parent)
        is_new = _mark(place, seen)
        # Sorted, so that of two links to one folder always the same is followed.
        folders[:] = sorted(
            name for name in folders if is_new and not name.startswith(".") and not (place == data and name in without)
        )
        for name in sorted(files) if is_new else ():
            if not name.startswith("."):
                file_size = size_bytes(place / name)
                count += 1
                size += max(0, file_size)
                digest.update(f"{(place / name).relative_to(data)}\0{file_size}\n".encode(errors="surrogateescape"))
    return Contents(count, size, digest.hexdigest(), None if weights is None else size_bytes(weights))


def _mark(folder: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether the folder was not seen before, as it would be in a circle of links."""
    state = folder.stat()
    known = (state.st_dev, state.st_ino) in seen
    seen.add((state.st_dev, state.st_ino))
    return not known
