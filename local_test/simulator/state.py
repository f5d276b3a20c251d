"""Who runs an endpoint or a job of this machine: one file, `state.json`, in its folder.

Another process reads it to end the run: SIGTERM to `pid`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

FILE = "state.json"
PLATFORM = Path("build", "platform")
"""Folder of everything that the local platform keeps."""


def write(folder: Path, **fields: object) -> None:
    """Writes the state, which appears whole; this process is its runner."""
    growing = folder / f".{FILE}.{os.getpid()}"
    growing.write_text(json.dumps({"pid": os.getpid(), **fields}, indent=2) + "\n", encoding="utf-8")
    growing.replace(folder / FILE)


def runner(folder: Path) -> int | None:
    """Process id of who runs it now; None when nobody does."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    pid = found.get("pid")
    if found.get("ended") or not isinstance(pid, int):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return pid
    return pid
