"""Checkpoints: a folder of each host, synced with one place that outlives the hosts.

As the platform does it (AWS docs: model-checkpoints): at a start, everything in the store is copied to every host;
while the job runs, the store follows the host's folder, deletes included; what others put into the store is not
fetched. All hosts write to one store. A file is copied as it is at that moment: half of it, if half of it is written.
The store's own files are whole, as objects of S3 are.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from pathlib import Path

_PART = ".uploading"


class Synced:
    """A host's folder that the store follows, in a thread of its own.

    Args:
        local: the host's folder; made, and filled from the store.
        store: folder that stands for the S3 prefix.
        every_s: how often it is looked at, in seconds.
    """

    def __init__(self, local: Path, store: Path, every_s: float) -> None:
        self._local = local
        self._store = store
        self._every_s = every_s
        self._stop = threading.Event()
        local.mkdir(parents=True, exist_ok=True)
        store.mkdir(parents=True, exist_ok=True)
        shutil.copytree(store, local, dirs_exist_ok=True)
        # Key -> inode, size and time of what this host has seen.
        self._seen = self._now()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="checkpoints")
        self._thread.start()

    def close(self, *, last: bool) -> None:
        """Ends it.

        Args:
            last: copy once more what is there. An instance that is lost does not.
        """
        self._stop.set()
        self._thread.join()
        if last:
            self.sync()

    def sync(self) -> None:
        """Brings to the store what changed here since the last time."""
        now = self._now()
        for key, stamp in now.items():
            if self._seen.get(key) != stamp:
                self._upload(key)
        for key in self._seen.keys() - now.keys():
            (self._store / key).unlink(missing_ok=True)
        self._seen = now

    def _follow(self) -> None:
        while not self._stop.wait(self._every_s):
            self.sync()

    def _upload(self, key: str) -> None:
        target = self._store / key
        target.parent.mkdir(parents=True, exist_ok=True)
        # Each host's own, and never taken for a checkpoint.
        part = self._store.with_name(f"{self._store.name}{_PART}-{id(self)}")
        # It may be gone, or renamed, by now; the next round sees what became of it.
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(self._local / key, part)
            part.replace(target)

    def _now(self) -> dict[str, tuple[int, int, int]]:
        found = {}
        for folder, _, names in os.walk(self._local):
            for name in names:
                file = Path(folder) / name
                with contextlib.suppress(FileNotFoundError):
                    state = file.stat()
                    found[str(file.relative_to(self._local))] = (state.st_ino, state.st_size, state.st_mtime_ns)
        return found
