"""Class names and their positions.

A class is a folder. Folders are sorted by name, and a folder's position is its index; the prefix that data sets put
there for sorting (`001.Affenpinscher`, `n02085620-Chihuahua`) is dropped from the label that people read.
Knows nothing of files or tensors.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_SORTING_PREFIX = re.compile(r"^(?:\d+[.\-_ ]|n\d{8}[-_])(?=.)")


@dataclass(frozen=True, slots=True)
class Labels:
    """The classes of a model, in the order of its outputs.

    Attributes:
        folders: folder names, sorted; ``folders[index]`` belongs to output ``index``.
        names: the labels that answers carry, same order.
    """

    folders: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def from_folders(cls, folders: Iterable[str]) -> Labels:
        """Sorts the folder names and derives the labels; two that would look alike keep their full names."""
        ordered = tuple(sorted(folders))
        short = [_SORTING_PREFIX.sub("", folder) for folder in ordered]
        uses = Counter(short)
        names = tuple(name if uses[name] == 1 else folder for name, folder in zip(short, ordered, strict=True))
        # A prefix under a prefix: 1.2.cat is called 2.cat, which 2.cat itself is called where 3.cat is about.
        return cls(ordered, names if len(set(names)) == len(names) else ordered)

    def __len__(self) -> int:
        return len(self.folders)
