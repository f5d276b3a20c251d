"""What the local platform runs: an image or a pair of bare programs, behind one face.

`processes.ProcessSubject` and `containers.ImageSubject` implement it. Whoever lays out folders, sends requests or
checks the contract talks to these two protocols and never asks which of the two it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class SubjectError(Exception):
    """The subject cannot be started at all; the message says what is missing and what to do."""


class Command(StrEnum):
    """The word that the platform appends to `docker run IMAGE`."""

    TRAIN = "train"
    SERVE = "serve"


@dataclass(frozen=True)
class Limits:
    """What an instance type gives a container; None is unlimited.

    Args:
        memory_bytes: beyond it the kernel ends a process.
        cpus: in cores, fractions allowed.
    """

    memory_bytes: int | None = None
    cpus: float | None = None


@dataclass(frozen=True)
class Mount:
    """A folder or file of this machine at a place in the subject's tree.

    Args:
        source: here; absolute.
        target: relative to the root, such as ``input/data/train``.
        read_only: the subject cannot write there. For a bare process run by root this is watched, not enforced:
            `Running.written` tells what was written.
    """

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class Start:
    """One start of the subject.

    Args:
        command: train or serve.
        root: stands for /opt/ml, laid out by the caller and writable; a container sees it at /opt/ml.
        log: receives stdout and stderr together, as they come.
        environment: variables beside those of the subject itself. `SAGEMAKER_BASE_DIR` is the subject's own affair.
        mounts: what lies below the root without being in it.
        host: name by which the others of `network` find this one.
        network: of several hosts; None alone.
        port: on which the subject listens inside; for serve. `Running.address` says where it is reached.
        limits: of the instance.
        network_isolation: nothing outside the cluster can be reached (a container only).
    """

    command: Command
    root: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[Mount] = ()
    host: str = "algo-1"
    network: Network | None = None
    port: int | None = None
    limits: Limits = field(default_factory=Limits)
    network_isolation: bool = False


@dataclass(frozen=True)
class Network:
    """Hosts that find each other by name.

    Args:
        hosts: their names, sorted: ``algo-1``, ``algo-2`` in containers; names of the loopback for processes.
        interface: what resourceconfig.json names.
        name: of the engine's network; empty for processes.
    """

    hosts: tuple[str, ...]
    interface: str
    name: str = ""


class Running(Protocol):
    """A started subject. Every method may be called after its end."""

    @property
    def name(self) -> str:
        """Of the container, or the process's id."""

    @property
    def address(self) -> str:
        """Base URL without a slash at its end, ``http://127.0.0.1:49153``; empty for train."""

    def exit_code(self) -> int | None:
        """None while it runs; 128 + number for one ended by a signal (137 SIGKILL, 143 SIGTERM)."""

    def wait(self, timeout_s: float) -> int | None:
        """Waits for its end; the exit code, or None when it still runs."""

    def terminate(self) -> None:
        """SIGTERM to its first process alone, as `docker stop` sends it."""

    def kill(self) -> None:
        """SIGKILL to all of it, at once."""

    def memory_bytes(self) -> int | None:
        """Resident memory of all its processes; None after its end."""

    def processes(self) -> Sequence[int]:
        """Ids, as this machine counts, of all its processes; the first is the one started."""

    def written(self) -> Sequence[str]:
        """Targets of read-only mounts below which something was changed since the start, sorted."""

    def close(self) -> None:
        """Ends what runs and removes what the start made; files of the root stay and belong to the caller."""


class Subject(Protocol):
    """What can be started."""

    @property
    def title(self) -> str:
        """For people: ``image dogbreed:latest`` or ``process container/``."""

    @property
    def labels(self) -> Mapping[str, str]:
        """The image's labels; of a process, those that its folder's ``labels.json`` holds, or none."""

    def start(self, start: Start) -> Running:
        """Starts it and returns at once.

        Raises:
            SubjectError: there is no such image or program, or the engine does not answer.
        """

    def network(self, count: int) -> AbstractContextManager[Network]:
        """Names for ``count`` hosts, and what they need to find each other; removed at the end."""

    def pause_s(self) -> float:
        """Time that a start of a do-nothing program takes here, in seconds; for patience, not for measuring."""
