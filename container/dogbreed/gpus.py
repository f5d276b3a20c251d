"""Which GPUs a process may use, told without torch: a process that has woken CUDA cannot be forked any more.

Sources: CUDA C++ Programming Guide, CUDA Environment Variables (CUDA_VISIBLE_DEVICES); NVML API Reference.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any


def visible_gpus(told: str | None = None, *, library: Any = None) -> tuple[str, ...]:  # noqa: ANN401  untyped
    """Names of the GPUs that CUDA would show this process, each fit for CUDA_VISIBLE_DEVICES.

    Where that variable is set, they are those that it names; else all that NVML lists, by UUID, since CUDA numbers
    them in another order. Of a GPU that is divided (MIG) each instance is one.

    Args:
        told: the variable's value, None where it is not set.
        library: stands for the module `pynvml`; default that module, where it is installed.

    Returns:
        Empty where there is no GPU or no driver.
    """
    try:
        library = library or importlib.import_module("pynvml")
        library.nvmlInit()
    except Exception:  # not installed; or NVML's own errors: no driver, no permission
        return ()
    try:
        handles = _handles(library)
        if told is not None:
            return tuple(_named(told, len(handles)))
        return tuple(_text(library.nvmlDeviceGetUUID(part)) for handle in handles for part in _parts(library, handle))
    except library.NVMLError:
        return ()
    finally:
        library.nvmlShutdown()


def told_gpus(told: str | None, *, library: Any) -> tuple[str, ...] | None:  # noqa: ANN401  untyped
    """The names in CUDA_VISIBLE_DEVICES, as CUDA reads it; None where it is not set and all GPUs are visible."""
    return None if told is None else tuple(_named(told, library.nvmlDeviceGetCount()))


def find_gpus(names: Sequence[str] | None, *, library: Any) -> list[Any]:  # noqa: ANN401  untyped
    """NVML's handles of named GPUs, in the order of the names.

    Args:
        names: as CUDA_VISIBLE_DEVICES has them: a number, or a UUID with or without its prefix, of which the beginning
            is enough. None is all GPUs. Of a GPU that is divided (MIG) a number names the first instance.
        library: the module `pynvml`, initialised.

    Returns:
        Without those that NVML does not know.

    Raises:
        library.NVMLError: NVML lists no GPUs.
    """
    handles = _handles(library)
    if names is None:
        return [part for handle in handles for part in _parts(library, handle)]
    by_uuid = {_bare(_uuid(library, part)): part for handle in handles for part in _parts(library, handle)}
    found = []
    for name in names:
        if name.isdecimal():
            found += _parts(library, handles[int(name)])[:1] if int(name) < len(handles) else []
        else:
            found += [part for uuid, part in by_uuid.items() if uuid and uuid.startswith(_bare(name))][:1]
    return found


def _handles(library: Any) -> list[Any]:  # noqa: ANN401  untyped
    return [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]


def _uuid(library: Any, handle: Any) -> str:  # noqa: ANN401  untyped
    """Empty of a GPU that does not answer."""
    try:
        return _text(library.nvmlDeviceGetUUID(handle))
    except library.NVMLError:
        return ""


def _bare(uuid: str) -> str:
    """NVML writes `GPU-` or `MIG-` before it, torch does not."""
    return uuid.removeprefix("GPU-").removeprefix("MIG-").lower()


def _named(names: str, count: int) -> Iterable[str]:
    """As CUDA reads the variable: up to the first name that is none."""
    for name in (part.strip() for part in names.split(",")):
        if not name or name.startswith("-") or (name.isdecimal() and int(name) >= count):
            return
        yield name


def _parts(library: Any, handle: Any) -> list[Any]:  # noqa: ANN401  untyped
    """The instances of a GPU that is divided, else the GPU."""
    try:
        divided, _ = library.nvmlDeviceGetMigMode(handle)
    except library.NVMLError:  # it cannot be divided
        return [handle]
    if not divided:
        return [handle]
    found = []
    for index in range(library.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            found.append(library.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
        except library.NVMLError:  # a place without an instance
            continue
    return found


def _text(name: str | bytes) -> str:
    """Bytes in older versions of nvidia-ml-py."""
    return name.decode() if isinstance(name, bytes) else name
