"""Checkpoints: what lets an interrupted job go on where it was.

A file is written under a temporary name, synced and renamed; a reader takes the newest one that is whole, because the
platform may lose a machine at any instant and copy half a file (spot interruptions promise neither signal nor grace).
Loaded with ``weights_only``. What cannot be gone on from is set aside under another name, where it neither counts nor
is deleted. Knows nothing of epochs or losses: a state is whatever a `FitState` says it is.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dogbreed.errors import ConfigurationError
from dogbreed.training.state import FitState

logger = logging.getLogger(__name__)

_FORMAT = 2
_SUFFIX = ".checkpoint.pt"
_ASIDE = ".unusable"
# Hyperparameters that change how long a step takes, and nothing that it computes.
_NO_DIFFERENCE = frozenset({"num-workers", "checkpoint-seconds"})


class Checkpoints:
    """The checkpoints of one job in one folder.

    Args:
        folder: synced by the platform, which also propagates deletions.
        identity: what the state depends on, name -> value; a checkpoint of another identity is refused.
        interval_s: at most this much work is lost at any instant, and a checkpoint's own time.
        keep: so many of those that were written last stay, and of an earlier run what they leave room for.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, str],
        *,
        interval_s: float = 120.0,
        keep: int = 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._identity = dict(identity)
        self._interval_s = interval_s
        self._keep = keep
        self._clock = clock
        self._kept_at = clock()
        self._written: list[Path] = []
        self._passed_over: set[Path] = set()

    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another one; asked at every step."""
        return self._clock() - self._kept_at >= self._interval_s

    def keep(self, state: FitState) -> None:
        """Keeps the state now. A disk that is full costs this checkpoint and no other, and never the job."""
        name = f"{state.epoch:05d}-{state.batch:07d}{_SUFFIX}"
        partial = self._folder / f".{name}.partial"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                torch.save({"format": _FORMAT, "identity": self._identity, "state": state.state_dict()}, stream)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(self._folder / name)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            partial.unlink(missing_ok=True)
            logger.error("no checkpoint of epoch %d could be written to %s: %s", state.epoch, self._folder, error)
        else:
            self._note(self._folder / name)
            for old in self._oldest_first()[: -self._keep]:
                old.unlink(missing_ok=True)
        self._kept_at = self._clock()

    def newest(self) -> Mapping[str, Any] | None:
        """The state of the newest checkpoint that is whole, or None; newer ones that are not are set aside.

        Raises:
            ConfigurationError: it is of another job: other hyperparameters, classes or images. All files stay.
        """
        unusable: list[tuple[Path, str]] = []
        state: Mapping[str, Any] | None = None
        for file in reversed(self._files()):
            try:
                found = torch.load(file, map_location="cpu", weights_only=True)
                identity, content = found["identity"], dict(found["state"])
                written_as = found["format"]
            except Exception as error:  # whatever a half-written archive makes of its reader
                unusable.append((file, f"is not a whole checkpoint and is passed over ({type(error).__name__})"))
                continue
            if written_as != _FORMAT:
                unusable.append((file, f"has another version's format, {written_as}, and is passed over"))
                continue
            self._check(file, identity)
            logger.info("going on from %s", file.name)
            state = content
            break
        for file, reason in unusable:
            self._set_aside(file, reason)
        return state

    def _set_aside(self, file: Path, reason: str) -> None:
        """Renames a file that cannot be gone on from, and says so: it is the user's to delete."""
        taken = 0
        aside = file.with_name(f"{file.name}{_ASIDE}")
        while aside.exists():
            taken += 1
            aside = file.with_name(f"{file.name}{_ASIDE}-{taken}")
        try:
            file.replace(aside)
        except OSError as error:
            self._passed_over.add(file)
            logger.warning("%s %s; it cannot be renamed: %s", file, reason, error)
            return
        logger.warning("%s %s; it stays as %s until you delete it", file, reason, aside.name)

    def _note(self, file: Path) -> None:
        """Takes a file that was just written as the newest."""
        self._passed_over.discard(file)
        self._written = [*(one for one in self._written if one != file), file]

    def _oldest_first(self) -> list[Path]:
        """What retention may delete: this run's files as they were written, behind all usable ones from before."""
        mine = set(self._written)
        return [*(file for file in self._files() if file not in mine), *self._written]

    def _files(self) -> list[Path]:
        """By epoch and batch, without those that were passed over."""
        found = (file for file in self._folder.glob(f"*{_SUFFIX}") if not file.name.startswith("."))
        return sorted(set(found) - self._passed_over)

    def _check(self, file: Path, identity: Mapping[str, str]) -> None:
        differing = [name for name in self._identity if identity.get(name) != self._identity[name]]
        if differing:
            changes = "; ".join(f"{name} was {identity.get(name)}, is {self._identity[name]}" for name in differing[:3])
            raise ConfigurationError(
                f"the checkpoint {file} is of another job ({changes}); give this job an empty checkpoint folder, or "
                f"the settings and images of that one"
            )


def identity_of(hyperparameters: Mapping[str, object], folders: tuple[str, ...], fingerprint: str) -> dict[str, str]:
    """What a state depends on: every hyperparameter but those of speed, the classes, and the images."""
    classes = hashlib.sha256("\0".join(folders).encode()).hexdigest()[:12]
    chosen = {name: str(value) for name, value in hyperparameters.items() if name not in _NO_DIFFERENCE}
    return {**chosen, "classes": f"{len(folders)} ({classes})", "images": fingerprint[:12]}
