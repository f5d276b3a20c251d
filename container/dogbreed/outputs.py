"""Folders for results: known to be writable before the work whose results they take.

Knows folders alone, and needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from dogbreed.errors import OutputError


def prove(folder: Path) -> None:
    """Shows that a folder can be made and a file be written in it, and leaves the disk as it was.

    Raises:
        OutputError: it cannot; says why, and speaks of the option --output.
    """
    made: list[Path] = []
    try:
        made = [one for one in (folder, *folder.parents) if not one.exists()]  # the innermost first
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
        raise OutputError(f"{folder} cannot be written to: {why}; name another folder with --output") from error
    finally:
        for one in made:
            with contextlib.suppress(OSError):  # not even made
                one.rmdir()
