"""smdebug's files of saved tensors, written quickly.

smdebug's own writer starts a thread and two files per step and builds every number as a protocol buffer in Python: 1.7
ms of CPU time per step and 0.17 ms per number, as much as a whole training step of a small head. This one writes the
same bytes, many steps at a time, into one events file with one index file per step, which smdebug's readers follow.

Source: awslabs/sagemaker-debugger 1.0.34, smdebug/core/tfevent and tfrecord, locations.py; tensorflow's event.proto,
summary.proto and tensor.proto for the field numbers.
"""

from __future__ import annotations

import json
import os
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dogbreed.insight.records import checksum, double, field, head, whole

_TYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 10, "float16": 19}
"""numpy's dtype -> DataType of tensorflow's types.proto."""
_STEPS_PER_INDEX_FOLDER = 1000
_CHECKED_INSTEAD = b"0x12345678"
"""smdebug's checksum of a record is that of these bytes, unless it is asked for the real one."""


class TensorFiles:
    """Collects tensors step by step and writes them on request.

    Args:
        folder: smdebug's output folder.
        worker: who saves, such as ``worker_0``.

    Attributes:
        size: bytes that wait to be written.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        self._folder = folder
        self._worker = worker
        self._steps: dict[int, tuple[str, int, list[tuple[str, bytes]]]] = {}
        self._groups: set[int] = set()
        self.size = 0

    def add(
        self, step: int, mode: str, mode_number: int, *, mode_step: int, name: str, value: NDArray[np.generic]
    ) -> None:
        """Takes a tensor.

        Args:
            step: over all modes.
            mode: ``TRAIN``, ``EVAL``, ``PREDICT`` or ``GLOBAL``.
            mode_number: smdebug's number of it.
            mode_step: within the mode.
            name: of the tensor.
            value: of any shape; dtypes without a number in tensorflow's enumeration become float32.
        """
        if value.dtype.name not in _TYPES:
            value = value.astype(np.float32)
        _, _, records = self._steps.setdefault(step, (mode, mode_step, []))
        event = _event(step, mode_number, mode_step, name, value)
        records.append((name, event))
        self.size += len(event)

    def write(self) -> None:
        """Writes what was taken since the last time: one events file, named after its first step, and the indices.

        Raises:
            OSError: the folder cannot be written.
        """
        if not self._steps:
            return
        first = f"{min(self._steps):012}"
        events_name = f"events/{first}/{first}_{self._worker}.tfevents"
        content = bytearray()
        indices: list[tuple[int, bytes]] = []
        for step, (mode, mode_step, records) in self._steps.items():
            entries = []
            for name, event in records:
                entries.append(
                    f'{{"tensorname": {json.dumps(name)}, "start_idx": {len(content)}, "length": {len(event)}}}'
                )
                content += event
            text = (
                f'{{"meta": {{"mode": "{mode}", "mode_step": {mode_step}, "event_file_name": "{events_name}"}}, '
                f'"tensor_payload": [{", ".join(entries)}], "shape_payload": []}}'
            )
            indices.append((step, text.encode()))
        events = self._folder / events_name
        events.parent.mkdir(parents=True, exist_ok=True)
        half_done = events.with_suffix(".tmp")
        half_done.write_bytes(content)
        half_done.replace(events)
        for step, index in indices:
            self._write_index(step, index)
        self._steps.clear()
        self.size = 0

    def _write_index(self, step: int, content: bytes) -> None:
        """Writes one small file in one piece; this runs for every saved step, so it calls the system directly."""
        group = step // _STEPS_PER_INDEX_FOLDER
        folder = f"{self._folder}/index/{group:09}"
        if group not in self._groups:
            os.makedirs(folder, exist_ok=True)  # noqa: PTH103
            self._groups.add(group)
        file = os.open(f"{folder}/{step:012}_{self._worker}.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(file, content)
        finally:
            os.close(file)


def _event(step: int, mode_number: int, mode_step: int, name: str, value: NDArray[np.generic]) -> bytes:
    """One tensor as a record of an events file; what is alike in all records of a tensor is made once."""
    content = value.tobytes()
    text = str(mode_step).encode()
    before, after = _metadata(mode_number, len(text))
    inner = _named(name, value.dtype.name, value.shape, len(content)) + content + before + text + after
    event = double(1, time.time()) + whole(2, step) + field(5, field(1, inner))
    return head(len(event)) + event + _footer()


@lru_cache(maxsize=1)
def _footer() -> bytes:
    return checksum(_CHECKED_INSTEAD)


@lru_cache(maxsize=4096)
def _named(name: str, dtype: str, shape: tuple[int, ...], content_bytes: int) -> bytes:
    """What stands before a tensor's content of so many bytes: its name, type, shape and the lengths."""
    dimensions = b"".join(field(2, whole(1, size)) for size in shape)
    absent = bytes(content_bytes)
    tensor = whole(1, _TYPES[dtype]) + field(2, dimensions) + field(4, absent)
    whole_value = field(1, name.encode()) + field(8, tensor)
    return whole_value[: len(whole_value) - content_bytes]


@lru_cache(maxsize=256)
def _metadata(mode_number: int, digits: int) -> tuple[bytes, bytes]:
    """What stands before and behind a mode step of so many digits."""
    mark = b"?" * digits
    plugins = ((b"mode_step", mark), (b"mode", str(mode_number).encode()))
    made = field(9, b"".join(field(1, field(1, name) + field(2, text)) for name, text in plugins))
    before, _, after = made.partition(mark)
    return before, after
