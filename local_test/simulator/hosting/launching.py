"""How an instance of an endpoint, or of a transform job, is started: its folders, its model, its limits.

Knows subjects and folders; neither requests nor health.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from local_test.simulator.hosting.fleet import Launched
from local_test.simulator.subjects import Command, Limits, Mount, Start, Subject, SubjectError


@dataclass(frozen=True)
class Launch:
    """What all instances have in common.

    Args:
        subject: is started.
        folder: of the endpoint or job; gets a root and a log for every instance.
        model: folder that the instances share, read only; None for several models.
        environment: variables of the platform and of the user.
        limits: of an instance.
        port: that the subject must listen on, and is told; None for its own.
        network_isolation: nothing outside can be reached.
        read_only_disk: whatever is written below /opt/ml is to be told, as serverless may refuse it.
    """

    subject: Subject
    folder: Path
    model: Path | None
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    port: int | None = None
    network_isolation: bool = False
    read_only_disk: bool = False

    def __call__(self, name: str) -> Launched:
        """Starts the instance of that name."""
        root = (self.folder / "instances" / name).resolve()
        root.mkdir(parents=True)
        log = self.folder.resolve() / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        if self.model is None:
            (root / "models").mkdir()
            mounts: Sequence[Mount] = ()
        else:
            mounts = (Mount(self.model.resolve(), "model"),)
        start = Start(
            Command.SERVE,
            root,
            log,
            environment=self.environment,
            mounts=mounts,
            host=name,
            port=self.port,
            limits=self.limits,
            network_isolation=self.network_isolation,
        )
        running = self.subject.start(start)
        return Launched(running, root, log, lambda: _complaints(running.written, root, self.read_only_disk))


def empty(folder: Path) -> None:
    """Makes the folder of an endpoint or job, without what an earlier one of its name left.

    Raises:
        SubjectError: it cannot be emptied.
    """
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise SubjectError(f"{folder} of an earlier run cannot be emptied ({error.strerror}); remove it") from error


def _complaints(written: Callable[[], Sequence[str]], root: Path, read_only_disk: bool) -> list[str]:
    found = [f"wrote into /opt/ml/{target}, which is read only on the platform" for target in written()]
    if read_only_disk:
        laid_out = {root / "model", root / "models"}
        own = [path for path in sorted(root.iterdir()) if path not in laid_out]
        found += [f"wrote /opt/ml/{path.name}, which serverless may refuse; write to /tmp" for path in own]
    return found
