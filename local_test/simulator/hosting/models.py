"""The models of a multi-model endpoint on one instance: loaded when first asked for, unloaded when memory is short.

AWS docs: mms-container-apis, invoke-multi-model-endpoint. What the platform does not publish is decided here: the model
that was used least recently goes first, one that answers a request never, and pressure is the resident memory of all
the instance's processes over a limit, or a 507.

Knows the container's routes for models; nothing of clients.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from local_test.simulator.hosting import unpacking, wire

CAPABILITY = "com.amazonaws.sagemaker.capabilities.multi-models"
"""Label of an image that can serve several models."""

_NO_MEMORY = 507
_ALREADY = 409


class NoSuchModelError(Exception):
    """No archive has that name."""


class LoadingError(Exception):
    """The container did not load a model.

    Attributes:
        status: its own.
        text: what it sent.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text}")
        self.status = status
        self.text = text


class StillLoadingError(Exception):
    """The load goes on; the client is to ask again."""


@dataclass
class _Held:
    """A loaded model.

    Attributes:
        key: what the container calls it.
        users: requests under way.
        used: number of its last use.
    """

    key: str
    users: int = 0
    used: int = 0


class Models:
    """Those of one instance.

    Args:
        archives: folder of the tarballs that clients name.
        root: stands for the instance's /opt/ml.
        inside: where the container sees that root.
        address: of the container.
        loading_s: that a load may take.
        limit_bytes: of memory, over which models are unloaded; None waits for a 507.
        memory_bytes: of the instance now; None when it cannot be told.
        tell: is told of loads and unloads, by event and text.
    """

    def __init__(
        self,
        archives: Path,
        root: Path,
        *,
        inside: str,
        address: str,
        loading_s: float,
        limit_bytes: int | None,
        memory_bytes: Callable[[], int | None],
        tell: Callable[[str, str], None],
    ) -> None:
        self._archives = archives
        self._folder = root / "models"
        self._inside = f"{inside}/models"
        self._address = address
        self._loading_s = loading_s
        self._limit_bytes = limit_bytes
        self._memory_bytes = memory_bytes
        self._tell = tell
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._loads: dict[str, Future[None]] = {}
        self._uses = 0
        # One load at a time: two would judge the same free memory.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="models")

    def loaded(self) -> list[str]:
        """Names of the loaded, least recently used first."""
        with self._lock:
            return sorted(self._held, key=lambda name: self._held[name].used)

    def close(self) -> None:
        """Forgets what waits to be loaded."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def use(self, name: str, wait_s: float) -> Iterator[str]:
        """Lends a model, loading it first where it is not there; yields what the container calls it.

        Args:
            name: of its archive, below the folder.
            wait_s: for its load.

        Raises:
            NoSuchModelError: there is no such archive.
            StillLoadingError: it is not loaded in time; the load goes on.
            LoadingError: the container refused it.
            wire.NoAnswerError: the container broke off.
        """
        held = self._claim(name)
        if held is None:
            self._load_within(name, wait_s)
            held = self._claim(name)
            if held is None:  # unloaded again before this request came to use it
                raise StillLoadingError(name)
        try:
            yield held.key
        finally:
            with self._lock:
                held.users -= 1

    def forget(self, name: str) -> None:
        """The container says that it does not have a model that was loaded."""
        with self._lock:
            self._held.pop(name, None)

    def make_room(self, keep: str) -> bool:
        """Unloads the model used least recently that nobody uses, other than ``keep``; whether there was one."""
        with self._lock:
            idle = [name for name, held in self._held.items() if held.users == 0 and name != keep]
            if not idle:
                return False
            oldest = min(idle, key=lambda name: self._held[name].used)
            held = self._held.pop(oldest)
        self._request("DELETE", f"/models/{held.key}")
        shutil.rmtree(self._folder / held.key, ignore_errors=True)
        self._tell("unloaded", f"unloaded {oldest}")
        return True

    def _claim(self, name: str) -> _Held | None:
        with self._lock:
            held = self._held.get(name)
            if held is not None:
                self._uses += 1
                held.used = self._uses
                held.users += 1
            return held

    def _load_within(self, name: str, wait_s: float) -> None:
        archive = self._archive(name)
        with self._lock:
            load = self._loads.get(name)
            if load is None:
                load = self._loads[name] = self._pool.submit(self._load, name, archive)
        try:
            load.result(wait_s)
        except FutureTimeoutError as error:
            raise StillLoadingError(name) from error

    def _archive(self, name: str) -> Path:
        parts = PurePosixPath(name.lstrip("/")).parts
        archive = self._archives.joinpath(*parts)
        if not parts or ".." in parts or not archive.exists():
            raise NoSuchModelError(f"there is no {name} in {self._archives}")
        return archive

    def _load(self, name: str, archive: Path) -> None:
        try:
            key = hashlib.sha256(name.encode()).hexdigest()[:32]
            self._relieve(name)
            folder = self._folder / key
            shutil.rmtree(folder, ignore_errors=True)
            try:
                unpacking.put_model(archive, folder / "model")
                self._ask_to_load(name, key)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            with self._lock:
                self._uses += 1
                self._held[name] = _Held(key, used=self._uses)
            self._tell("loaded", f"loaded {name}; {len(self.loaded())} models")
            self._relieve(name)
        finally:
            with self._lock:
                del self._loads[name]

    def _ask_to_load(self, name: str, key: str) -> None:
        body = json.dumps({"model_name": key, "url": f"{self._inside}/{key}/model"}).encode()
        while True:
            answer = self._request("POST", "/models", body)
            if answer.status in (200, _ALREADY):
                return
            if answer.status != _NO_MEMORY or not self.make_room(name):
                raise LoadingError(answer.status, answer.body.decode(errors="replace"))

    def _relieve(self, keep: str) -> None:
        """Unloads while the memory is over its limit."""
        if self._limit_bytes is None:
            return
        while (self._memory_bytes() or 0) > self._limit_bytes:
            if not self.make_room(keep):
                return

    def _request(self, method: str, path: str, body: bytes | None = None) -> wire.Answer:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        return wire.ask(self._address, method, path, body=body, headers=headers, within_s=self._loading_s)
