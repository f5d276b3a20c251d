"""Which GPUs a process may use, told without torch: a process that has woken CUDA cannot be forked any more.

Sources: CUDA C++ Programming Guide, CUDA Environment Variables (CUDA_VISIBLE_DEVICES); NVML API Reference.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
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
        handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
        if told is not None:
            return tuple(_named(told, len(handles)))
        return tuple(_text(library.nvmlDeviceGetUUID(part)) for handle in handles for part in _parts(library, handle))
    except library.NVMLError:
        return ()
    finally:
        library.nvmlShutdown()


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
