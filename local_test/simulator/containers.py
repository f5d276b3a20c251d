"""A Docker image as a subject, by docker-py.

The root is mounted at /opt/ml, mounts below it are real ones, limits are the kernel's. Ports are published on 127.0.0.1
only. Everything that is made carries a label, `local_test`, and is removed by who made it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from local_test.simulator.processes import free_port
from local_test.simulator.subjects import Command, Mount, Network, Start, SubjectError

if TYPE_CHECKING:
    from docker.models.containers import Container

_ROOT = "/opt/ml"
_PORT = 8080
_LABEL = "local_test"
_Result = TypeVar("_Result")


class ImageSubject:
    """An image that the engine of this machine has.

    Args:
        image: name with tag, or id.
        gpus: whether containers get all GPUs.

    Raises:
        SubjectError: no engine answers, or it has no such image.
    """

    def __init__(self, image: str, *, gpus: bool = False) -> None:
        try:
            import docker
            import docker.errors
        except ImportError as error:
            raise SubjectError("--image needs docker-py: pip install docker; or use --process") from error
        self._image = image
        self._gpus = gpus
        self._pause_s: float | None = None
        # Networks that no start has made yet.
        self._planned: set[str] = set()
        try:
            self._client = docker.from_env()
            weakref.finalize(self, self._client.close)
            self._labels = dict(self._client.images.get(image).labels)
        except docker.errors.ImageNotFound as error:
            raise SubjectError(f"there is no image {image} here; build it (make build) or docker pull it") from error
        except docker.errors.DockerException as error:
            raise SubjectError(f"no Docker engine answers ({_reason(error)}); start one, or use --process") from error

    @property
    def title(self) -> str:
        """Its name."""
        return f"image {self._image}"

    @property
    def labels(self) -> Mapping[str, str]:
        """Those of the image."""
        return self._labels

    def start(self, start: Start) -> ContainerRunning:
        """Starts a container; see `Subject.start`. Without a port, `serve` listens on 8080 and is not told so."""
        inside = start.port or _PORT
        outside = None
        placeholders = [path for mount in start.mounts for path in _placeholder(start.root, mount)]
        options = self._options(start)
        own_network = ""
        if start.network is not None:
            self._make_network(start.network.name, isolated=start.network_isolation)
            options |= self._joined(start.network.name, start.host)
        elif start.network_isolation and start.command is Command.SERVE:
            # Nothing outside, but this machine has to reach it.
            own_network = f"local-test-{uuid.uuid4().hex[:12]}"
            self._planned.add(own_network)
            self._make_network(own_network, isolated=True)
            options |= self._joined(own_network, start.host)
        elif start.network_isolation:
            options["network_mode"] = "none"
        if start.command is Command.SERVE and not start.network_isolation:
            outside = free_port()
            options["ports"] = {f"{inside}/tcp": ("127.0.0.1", outside)}
        container: Container | None = None

        def remove() -> None:
            if container is not None:
                container.remove(force=True, v=True)
            if own_network:
                self._remove_network(own_network)
            if os.geteuid() != 0:
                for folder in (start.root, *(mount.source for mount in start.mounts if not mount.read_only)):
                    self.hand_back(folder, os.geteuid(), os.getegid())
            for placeholder in reversed(placeholders):
                # One that the subject has put something into stays.
                with contextlib.suppress(OSError):
                    placeholder.rmdir() if placeholder.is_dir() else placeholder.unlink()

        try:
            container = self._ask(lambda: self._client.containers.create(**options))
            self._ask(container.start)
        except SubjectError:
            remove()
            raise
        address = ""
        if outside is not None:
            address = f"http://127.0.0.1:{outside}"
        elif start.command is Command.SERVE:
            container.reload()
            network = start.network.name if start.network else own_network
            address = f"http://{container.attrs['NetworkSettings']['Networks'][network]['IPAddress']}:{inside}"
        return ContainerRunning(container, address, start.log, remove)

    def _options(self, start: Start) -> dict[str, Any]:
        """What docker-py is told, apart from networks and ports."""
        from docker.types import DeviceRequest
        from docker.types import Mount as Bind

        mounts = [Bind(_ROOT, str(start.root.resolve()), type="bind")]
        for mount in start.mounts:
            source = str(mount.source.resolve())
            mounts.append(Bind(f"{_ROOT}/{mount.target}", source, type="bind", read_only=mount.read_only))
        told = {"SAGEMAKER_BIND_TO_PORT": str(start.port)} if start.port and start.command is Command.SERVE else {}
        options: dict[str, Any] = {
            "image": self._image,
            "command": [start.command.value],
            "name": f"local-test-{uuid.uuid4().hex[:12]}",
            "hostname": start.host,
            "environment": told | dict(start.environment),
            "mounts": mounts,
            "labels": {_LABEL: "subject"},
        }
        if start.limits.memory_bytes is not None:
            options |= {"mem_limit": start.limits.memory_bytes, "memswap_limit": start.limits.memory_bytes}
        if start.limits.cpus is not None:
            # The engine refuses more than there are.
            options["nano_cpus"] = int(min(start.limits.cpus, self._engine_cpus()) * 1e9)
        if self._gpus:
            options["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
        return options

    @contextmanager
    def network(self, count: int) -> Iterator[Network]:
        """A network of the engine, made by the first start: only that knows whether it is isolated."""
        name = f"local-test-{uuid.uuid4().hex[:12]}"
        self._planned.add(name)
        try:
            yield Network(tuple(sorted(f"algo-{number}" for number in range(1, count + 1))), "eth0", name)
        finally:
            if name in self._planned:
                self._planned.remove(name)
            else:
                self._remove_network(name)

    def pause_s(self) -> float:
        """Time to make, start and remove a container of this image that does nothing."""
        if self._pause_s is None:
            from docker.errors import APIError

            began = time.monotonic()
            container = self._ask(
                lambda: self._client.containers.create(
                    self._image, entrypoint=["true"], network_mode="none", labels={_LABEL: "pause"}
                )
            )
            # An image without `true` takes about as long to say so.
            with contextlib.suppress(APIError):
                container.start()
                container.wait()
            container.remove(force=True, v=True)
            self._pause_s = time.monotonic() - began
        return self._pause_s

    def hand_back(self, folder: Path, user: int, group: int) -> None:
        """Gives what a container wrote as root to somebody else, by a container: this process may not."""
        self._ask(
            lambda: self._client.containers.run(
                self._image,
                ["-R", f"{user}:{group}", _ROOT],
                entrypoint=["chown"],
                user="0",
                volumes={str(folder.resolve()): {"bind": _ROOT, "mode": "rw"}},
                network_mode="none",
                labels={_LABEL: "hand back"},
                remove=True,
            )
        )

    def _joined(self, network: str, host: str) -> dict[str, object]:
        aliases = self._client.api.create_endpoint_config(aliases=[host])
        return {"network": network, "networking_config": {network: aliases}}

    def _make_network(self, name: str, *, isolated: bool) -> None:
        if name in self._planned:
            self._ask(
                lambda: self._client.networks.create(
                    name, driver="bridge", internal=isolated, labels={_LABEL: "network"}
                )
            )
            self._planned.remove(name)

    def _remove_network(self, name: str) -> None:
        from docker.errors import NotFound

        with contextlib.suppress(NotFound):
            self._client.networks.get(name).remove()

    def _engine_cpus(self) -> int:
        return int(self._ask(self._client.info)["NCPU"])

    def _ask(self, question: Callable[[], _Result]) -> _Result:
        from docker.errors import DockerException

        try:
            return question()
        except DockerException as error:
            raise SubjectError(f"the engine does not start {self._image}: {_reason(error)}") from error


class ContainerRunning:
    """A started container; see `Running`.

    Args:
        container: docker-py's.
        address: base URL, or empty.
        log: receives what it says.
        remove: takes away the container and what was made for it.
    """

    def __init__(self, container: Container, address: str, log: Path, remove: Callable[[], None]) -> None:
        self._container = container
        self._address = address
        self._remove = remove
        self._closed = False
        self._code: int | None = None
        self._ended = threading.Event()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._following = threading.Thread(target=self._follow, args=(log,), daemon=True)
        self._following.start()
        threading.Thread(target=self._await, daemon=True).start()

    @property
    def name(self) -> str:
        """The container's."""
        return str(self._container.name)

    @property
    def address(self) -> str:
        """Base URL, or empty for train."""
        return self._address

    def exit_code(self) -> int | None:
        """None while it runs, and until its log is complete."""
        return self._code if self._ended.is_set() else None

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None when it still runs."""
        self._ended.wait(timeout_s)
        return self.exit_code()

    def terminate(self) -> None:
        """SIGTERM to its first process."""
        self._signal("SIGTERM")

    def kill(self) -> None:
        """SIGKILL to its first process, with which the kernel ends all others."""
        self._signal("SIGKILL")
        self._ended.wait(10)

    def memory_bytes(self) -> int | None:
        """What the container holds without files that the kernel could drop, as `docker stats` counts."""
        from docker.errors import APIError

        if self.exit_code() is not None:
            return None
        try:
            memory = self._container.client.api.stats(self._container.id, stream=False, one_shot=True)["memory_stats"]
        except APIError:
            return None
        if "usage" not in memory:
            return None
        details = memory.get("stats", {})
        return int(memory["usage"]) - int(details.get("total_inactive_file", details.get("inactive_file", 0)))

    def processes(self) -> Sequence[int]:
        """Ids as the engine's machine counts; the first process first."""
        from docker.errors import APIError

        if self.exit_code() is not None:
            return []
        try:
            self._container.reload()
            first = int(self._container.attrs["State"]["Pid"])
            rows = self._container.top(ps_args="-eo pid")["Processes"]
        except APIError:
            return []
        return sorted((int(row[0]) for row in rows), key=lambda process: (process != first, process))

    def written(self) -> Sequence[str]:
        """Nothing: the kernel refuses it."""
        return []

    def close(self) -> None:
        """Kills it and removes it."""
        if self._closed:
            return
        self._closed = True
        self.kill()
        self._remove()

    def _signal(self, name: str) -> None:
        from docker.errors import APIError

        # One that has ended gets no signals.
        with contextlib.suppress(APIError):
            self._container.kill(name)

    def _follow(self, log: Path) -> None:
        from docker.errors import APIError

        with (
            log.open("ab", buffering=0) as file,
            contextlib.suppress(APIError, OSError),
            contextlib.closing(self._container.logs(stream=True, follow=True)) as chunks,
        ):
            for chunk in chunks:
                file.write(chunk)

    def _await(self) -> None:
        from docker.errors import APIError

        try:
            self._code = int(self._container.wait(timeout=None)["StatusCode"])
        except (APIError, OSError):
            self._code = 137
        self._following.join(10)
        self._ended.set()


def _placeholder(root: Path, mount: Mount) -> list[Path]:
    """Makes a mount point, so that the engine does not make it as root; what was made, outermost first."""
    place = root / mount.target
    missing = [path for path in (place, *place.parents) if not path.exists() and path.is_relative_to(root)]
    if mount.source.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    return missing[::-1]


def _reason(error: Exception) -> str:
    """The engine's own words where it has any, on one line."""
    return " ".join(str(getattr(error, "explanation", None) or error).split())
