"""Trials as containers: `docker run IMAGE train`, with what the platform mounts and the cache that all trials share.

A container may use the cores and the GPU of its trial alone, has no network, and writes as whoever runs the search. It
is stopped as the platform stops a job, by `docker stop`. Called from one thread.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.launcher.local import engine
from scripts.launcher.search.process import GRACE_S, LOG, Order, Running, die_with_parent, lay_out

_INPUT = "/opt/ml/input"
# Where the image keeps what it can compute again.
_CACHE = "/tmp/dogbreed"  # noqa: S108  in the container
# The engine gives a container 64 MB, too little for the processes that load images.
_SHARED_MEMORY = "2g"


class Containers:
    """Starts trials as containers; see `process.Starter`.

    Args:
        image: by whatever name Docker knows it.

    Raises:
        SettingError: there is no engine, or it has no such image.
    """

    def __init__(self, image: str) -> None:
        engine.check_image(image)
        self._image = image

    def start(self, order: Order) -> Running:
        """See `process.Starter`."""
        lay_out(order, "--mounted")
        name = f"dogbreed-{order.folder.name}-{uuid.uuid4().hex[:12]}"
        with (order.folder / LOG).open("wb") as log:
            client = subprocess.Popen(  # noqa: S603  our own
                ["docker", "run", "--rm", "--name", name, *_options(order), self._image, "train"],  # noqa: S607
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the search, which stops its trials itself.
                start_new_session=True,
                # The client hands the SIGTERM that it then gets on to its container.
                preexec_fn=die_with_parent,  # noqa: PLW1509  the search has one thread
            )
        return _Container(name, client)

    def close(self) -> None:
        """See `process.Starter`."""


@dataclass
class _Container:
    """See `process.Running`; the client's exit code is the container's."""

    name: str
    client: subprocess.Popen[bytes]
    _stopping: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def poll(self) -> int | None:
        code = self.client.poll()
        if code is not None:
            for one in self._stopping:
                one.wait()
        return code

    def stop(self) -> None:
        # It waits for the container's end, which the search does not.
        self._stopping.append(
            subprocess.Popen(  # noqa: S603  our own
                ["docker", "stop", "--time", f"{GRACE_S:.0f}", self.name],  # noqa: S607
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def wait(self) -> None:
        # Docker kills what outlasts its grace.
        self.client.wait()
        self.poll()


def _options(order: Order) -> list[str]:
    """What `docker run` is told of a trial."""
    folder, job = order.folder.resolve(), order.job
    mounts = [
        _mount(folder / "input" / "config", f"{_INPUT}/config", readonly=True),
        *(_mount(source, f"{_INPUT}/data/train{place}", readonly=True) for place, source in _images(job.data)),
        _mount(folder / "model", "/opt/ml/model"),
        _mount(folder / "output", "/opt/ml/output"),
        _mount(job.cache.resolve(), _CACHE),
    ]
    if job.weights:
        mounts.append(_mount(job.weights.resolve(), f"{_INPUT}/data/pretrained/{job.weights.name}", readonly=True))
    limits = ["--network=none", f"--shm-size={_SHARED_MEMORY}", f"--user={os.getuid()}:{os.getgid()}"]
    if order.cores:
        limits += [f"--cpuset-cpus={','.join(map(str, order.cores))}", f"--env=OMP_NUM_THREADS={len(order.cores)}"]
    if order.device is not None:
        limits.append(f"--gpus=device={order.device}")
    return [*mounts, *limits, f"--env=TRAINING_JOB_NAME={order.folder.name}"]


def _images(data: Path) -> Sequence[tuple[str, Path]]:
    """What is mounted where below the channel: the folder, or each of its entries where they are links."""
    inside = sorted(data.iterdir())
    if any(path.is_symlink() for path in inside):
        return [(f"/{path.name}", path.resolve()) for path in inside]
    return [("", data.resolve())]


def _mount(source: Path, target: str, *, readonly: bool = False) -> str:
    return f"--mount=type=bind,source={source},target={target}" + (",readonly" if readonly else "")
