"""Docker, as far as local mode needs more of it than the SDK does: what is there, what runs, and its end.

Containers are found by the name of their Compose project, which `process.start` chooses. Knows no job and no endpoint.
"""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
from pathlib import Path

from scripts.launcher.errors import LaunchError, SettingError

DEFAULT_IMAGE = "dogbreed:latest"
"""What `make build` makes."""

_NO_CLIENT = "--local needs Docker, and there is no `docker` command here"


def check(image: str) -> None:
    """Raises `SettingError`, one sentence, when local mode cannot run the image."""
    if importlib.util.find_spec("sagemaker") is None:
        raise SettingError("--local needs the SageMaker SDK: `make install`, or pip install sagemaker (3 or newer)")
    _check_engine()
    if _docker("compose", "version").returncode and shutil.which("docker-compose") is None:
        raise SettingError("--local needs Docker Compose: neither `docker compose` nor `docker-compose` is here")
    check_image(image)


def check_image(image: str) -> None:
    """Raises `SettingError`, one sentence, when there is no engine, or it has no such image."""
    _check_engine()
    if _docker("image", "inspect", image).returncode:
        raise SettingError(
            f"the image {image} is not on this machine: `make build` makes {DEFAULT_IMAGE}, `docker pull` fetches "
            "one, and --image names another"
        )


def containers(project: str, *options: str) -> list[str]:
    """Ids of a project's running containers; with `--all`, also of those that have ended."""
    found = _docker("ps", "--quiet", *options, "--filter", f"label=com.docker.compose.project={project}")
    if found.returncode:
        raise LaunchError(f"Docker does not tell what runs: {_last_line(found.stderr)}")
    return found.stdout.split()


def stop(project: str, grace_s: int) -> bool:
    """Sends SIGTERM to a project's containers, SIGKILL after ``grace_s``; returns whether there were any."""
    running = containers(project)
    if running:
        _docker("stop", "--time", str(grace_s), *running)
    return bool(running)


def remove(project: str) -> None:
    """Removes a project's containers, killing those that run: the SDK leaves them lying."""
    if found := containers(project, "--all"):
        _docker("rm", "--force", *found)


def remove_folder(folder: Path, image: str) -> None:
    """Deletes a folder with what containers have left in it, which belongs to root."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        # Whoever may start a container may delete as root.
        mount = f"{folder.parent.resolve()}:/cleaning"
        command = ("--entrypoint", "rm", image, "-rf", f"/cleaning/{folder.name}")
        _docker("run", "--rm", "--user", "0", "--volume", mount, *command)


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def is_free(port: int) -> bool:
    """Whether nothing listens on the port of 127.0.0.1."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _check_engine() -> None:
    engine = _docker("version", "--format", "{{.Server.Version}}")
    if engine.returncode:
        raise SettingError(f"--local needs a running Docker engine: {_last_line(engine.stderr)}")


def _docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    except FileNotFoundError as error:
        raise SettingError(_NO_CLIENT) from error


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it gives no reason"])[-1]
