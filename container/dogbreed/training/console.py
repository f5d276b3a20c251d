"""What a person, or SageMaker's metric scraper, sees of a running job.

Progress bars on a terminal, plain lines elsewhere, and one metric line per epoch everywhere.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Never

from tqdm import tqdm

from dogbreed.logs import metric_line
from dogbreed.training.loop import Observer, Phase
from dogbreed.training.state import EpochResult

logger = logging.getLogger(__name__)

_SILENCE_S = 30.0
_SHOWN = 5


class Quietly:
    """Observer that passes on how far a pass is, and nothing of fits and epochs: for what comes before the training."""

    def __init__(self, observer: Observer) -> None:
        self.on_pass_start = observer.on_pass_start
        self.on_part = observer.on_part
        self.on_batch = observer.on_batch
        self.on_left_out = observer.on_left_out
        self.on_pass_end = observer.on_pass_end

    def on_fit_start(self, history: Sequence[EpochResult], batches: int) -> None:
        """Says nothing."""

    def on_epoch_end(self, result: EpochResult) -> None:
        """Says nothing."""


class Console:
    """Observer that reports progress: a bar per pass on a terminal, else a line when a pass is long silent.

    Args:
        epochs: of the job, at most.
        corrupt: the images that could not be decoded so far, paths with reasons.
        terminal: draw bars; default: standard error is a terminal.
        clock: seconds.
    """

    def __init__(
        self,
        epochs: int,
        *,
        corrupt: Callable[[], Sequence[str]] = tuple,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._epochs = epochs
        self._corrupt = corrupt
        self._told = 0
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._clock = clock
        self._bar: tqdm[Never] | None = None
        self._name = ""
        self._done = 0
        self._batches = 0
        self._spoken = 0.0
        self._spoke_of_left_out = False

    def on_fit_start(self, history: Sequence[EpochResult], batches: int) -> None:
        """Says nothing: what goes on from a checkpoint has said so."""

    def on_pass_start(self, phase: Phase, epoch: int, batches: int) -> None:
        """Begins a bar, or notes the time."""
        self._name = {
            Phase.TEST: "test",
            Phase.CALIBRATION: "calibration",
            Phase.FEATURES: f"frozen part, view {epoch}",
        }.get(phase, f"epoch {epoch}/{self._epochs} {phase.value}")
        self._done, self._batches, self._spoken = 0, batches, self._clock()
        if self._terminal:
            self._bar = tqdm(total=batches, desc=self._name, unit="batch", leave=False)

    def on_part(self, part: str) -> None:
        """Says nothing of it."""

    def on_batch(self, phase: Phase) -> None:
        """Moves the bar; without one, says how far the pass is when nothing was printed for a while."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif self._clock() - self._spoken >= _SILENCE_S:
            self._spoken = self._clock()
            logger.info("%s: batch %d of %d", self._name, self._done, self._batches)

    def on_left_out(self, samples: int) -> None:
        """Says so once: where it happens at all, it may happen at every step."""
        if not self._spoke_of_left_out:
            self._spoke_of_left_out = True
            logger.warning(
                "%d of the images of a training step stood alone in a process's part of the batch and taught nothing, "
                "as BatchNorm cannot learn from one; what is left out later is not told; batch-statistics=keep leaves "
                "none out",
                samples,
            )

    def on_pass_end(self, phase: Phase) -> None:
        """Removes the bar, so that log lines stand on lines of their own; says what could not be decoded, once."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        corrupt = self._corrupt()
        # A pass that was cut short by too many of them ends in an error that says so.
        if len(corrupt) > self._told and self._done >= self._batches:
            new, self._told = corrupt[self._told :], len(corrupt)
            number = "1 image" if len(new) == 1 else f"{len(new)} images"
            more = "; ..." if len(new) > _SHOWN else ""
            logger.warning("%s left out, cannot be decoded: %s%s", number, "; ".join(new[:_SHOWN]), more)

    def on_epoch_end(self, result: EpochResult) -> None:
        """Prints the epoch's one metric line."""
        logger.info(
            "%s lr=%.3g; seconds=%.1f; images_per_s=%.1f; waiting=%.0f%%;%s",
            metric_line(result.metrics, epoch=result.epoch),
            result.learning_rate,
            result.seconds,
            result.images_per_s,
            100 * result.waiting_share,
            " best so far" if result.is_best else "",
        )
