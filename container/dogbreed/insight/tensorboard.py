"""Scalars and histograms of a job for TensorBoard, in an events file of its own format.

Needs no library: `tensorboard` brings gRPC and a web server (70 MB) for what are a few fields per number, and smdebug's
own export numbers everything by its global step, writes one file and one thread per mode, brings whole tensors to the
CPU, and knows no epoch, learning rate or accuracy.

What is shown:

- ``epoch/NAME`` at each epoch: losses, accuracies, learning rate, images per second; test scores at the best epoch.
- ``step/train_loss`` at each train step whose loss is saved.
- ``weights/NAME`` and ``gradients/NAME``, histograms of what learns, at the steps at which these are saved.

Sources: tensorflow's event.proto, summary.proto and histogram.proto for the field numbers.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dogbreed.insight.records import checksum, double, field, head, single, whole

logger = logging.getLogger(__name__)

_BINS = 40
_VERSION = b"brain.Event:2"


class TensorBoard:
    """Writes one events file. No method raises: a folder that cannot be written costs one warning.

    Args:
        folder: that `tensorboard --logdir` is given; made when there is something to write.
        clock: seconds since 1970.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        name = f"events.out.tfevents.{int(clock()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = folder / name
        self._pending = bytearray()
        self._off = False

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Takes numbers by name at a step or epoch."""
        for tag, value in values.items():
            self._add(step, field(1, tag.encode()) + single(2, value))

    def histogram(
        self, step: int, tag: str, sample: NDArray[np.floating], *, low: float, high: float, elements: int
    ) -> None:
        """Takes the distribution of a tensor. One with NaN or infinities has none and is left out.

        Args:
            step: of training.
            tag: name.
            sample: some of its elements, 1-d; they stand for all.
            low: its smallest element.
            high: its largest.
            elements: of the whole tensor.
        """
        if not (len(sample) and np.isfinite(low) and np.isfinite(high)):
            return
        values = sample.astype(np.float64)
        # A tensor of equal elements has no width, and bins need one.
        top = high if high > low else low + max(abs(low), 1.0) * 1e-6
        counts, edges = np.histogram(values, bins=_BINS, range=(low, top))
        stands_for = elements / len(values)
        message = (
            double(1, low)
            + double(2, high)
            + double(3, elements)
            + double(4, values.sum() * stands_for)
            + double(5, np.square(values).sum() * stands_for)
            + field(6, edges[1:].astype("<f8").tobytes())
            + field(7, (counts * stands_for).astype("<f8").tobytes())
        )
        self._add(step, field(1, tag.encode()) + field(5, message))

    def flush(self) -> None:
        """Writes what was taken, so that a TensorBoard that is open shows it."""
        if self._off or not self._pending:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as file:
                if not file.tell():
                    file.write(self._record(field(3, _VERSION)))
                file.write(self._pending)
        except OSError as error:
            self._off = True
            logger.warning("nothing (more) is written for TensorBoard: %s", error)
        self._pending.clear()

    def _add(self, step: int, value: bytes) -> None:
        if not self._off:
            self._pending += self._record(whole(2, step) + field(5, field(1, value)))

    def _record(self, content: bytes) -> bytes:
        event = double(1, self._clock()) + content
        return head(len(event)) + event + checksum(event)
