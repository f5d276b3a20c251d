"""What watches a job: introduces `insight`, which takes plain values, to the loop, which knows only observers.

Only the leader's process watches. Nothing here ends a job but a rule that the user has named in `stop-on`.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dogbreed.environment import TrainingEnvironment, shorten_mlflow_requests
from dogbreed.hyperparameters import Hyperparameters
from dogbreed.insight import report
from dogbreed.insight.photos import WrongPhoto, wrong_photo
from dogbreed.insight.report import EpochRecord, JobRecord
from dogbreed.insight.rules.registry import default_rules, parse_names, parse_rules
from dogbreed.insight.system import DEFAULT_INTERVAL_S, Gpus, Machine, SystemSampler
from dogbreed.insight.tensorboard import TensorBoard
from dogbreed.insight.timeline import DEFAULT_SKIP, DEFAULT_STEPS, OperatorProfile, Timeline
from dogbreed.insight.tracking import DEFAULT_EXPERIMENT, Run, Tracker
from dogbreed.insight.verdicts import Status
from dogbreed.insight.watch import Watch
from dogbreed.training.data import Loading, Sample
from dogbreed.training.loop import Phase
from dogbreed.training.sources import find_corrupt
from dogbreed.training.state import EpochResult

logger = logging.getLogger(__name__)

_THUMBNAILS = 12
_RECORD_S = 10.0
"""Between two writes of the record of a job that goes on."""


class Watching:
    """An observer that tells `insight.Watch` of a job, and ends in a report.

    Until `attach` it only hears of the frozen part's passes: what comes before the training is none of its steps.

    Args:
        environment: of the job.
        hyperparameters: of the job.
        device: that trains.
        record: what is known before the training.

    Raises:
        HyperparameterError: `rules` or `stop-on` cannot be read.
    """

    def __init__(
        self,
        environment: TrainingEnvironment,
        hyperparameters: Hyperparameters,
        device: torch.device,
        record: JobRecord,
    ) -> None:
        gpu = device.type == "cuda"
        rules = (
            parse_rules(hyperparameters.rules)
            if hyperparameters.rules
            else default_rules(pretrained=hyperparameters.pretrained, gpus=torch.cuda.device_count())
        )
        profiling = environment.profiling
        self._environment = environment
        self._on = hyperparameters.insight
        self._record = record
        self._folder = environment.paths.output_data / "insight"
        self._timeline = Timeline(event=partial(torch.cuda.Event, enable_timing=True) if gpu else None)
        self._watch = Watch(
            rules,
            timeline=self._timeline,
            sampler=SystemSampler(
                profiling.folder,
                node=environment.hosts.rank + 1,
                interval_s=profiling.interval_s or DEFAULT_INTERVAL_S,
                probe=Machine(Gpus.find(_visible_gpus() if gpu else None, told=environment.gpus)),
            ),
            operators=OperatorProfile(
                skip=profiling.start_step or DEFAULT_SKIP, steps=profiling.steps or DEFAULT_STEPS, device=device.type
            ),
            stop_on=parse_names(hyperparameters.stop_on, rules),
            labels=record.labels,
        )
        folder = environment.tensorboard or (environment.paths.tensorboard if hyperparameters.tensorboard else None)
        self._board = TensorBoard(folder) if folder else None
        if folder:
            logger.info("TensorBoard finds scalars and histograms in %s", folder)
        self._tracker = _tracker(environment, record)
        self._attached = False
        # Heard five times in a step that may take less than a millisecond: straight to the timeline, once it is on.
        self.on_part: Callable[[str], None] = _unheard
        self._epochs: list[EpochRecord] = []
        self._record_due_s = 0.0

    @property
    def asks_to_stop(self) -> bool:
        """A rule that `stop-on` names has found an issue."""
        return bool(self._watch.stopped_by)

    @property
    def stopped_by(self) -> str:
        """That rule's name, or empty."""
        return self._watch.stopped_by

    def attach(
        self,
        learning: nn.Module,
        criterion: nn.Module,
        gradient_scale: Callable[[], float],
        loading: Loading | None = None,
    ) -> None:
        """Begins to watch what learns, before its first forward pass; see `tensors.attach` and `Lesson.watch`."""
        if not self._on:
            return
        self._attached = True
        if loading is not None:
            self._timeline.load_by(loading.threads, loading.seconds, processes=loading.processes)
        self.on_part = self._timeline.mark
        paths = self._environment.paths
        self._watch.attach(
            learning,
            criterion,
            folder=paths.tensors,
            config=self._environment.hook_config,
            gradient_scale=gradient_scale,
            board=self._board,
        )

    def on_fit_start(self, history: Sequence[EpochResult], batches: int) -> None:
        """Takes up the epochs of an earlier start of the job, and counts steps from where it was."""
        self._epochs = [_told(result) for result in history]
        if self._attached:
            self._watch.go_on(batches)

    def on_pass_start(self, phase: Phase, epoch: int, batches: int) -> None:
        """Begins a pass of the timeline, and the hook's mode."""
        if self._hears(phase):
            self._watch.start_pass(phase.value)

    def on_batch(self, phase: Phase) -> None:
        """Ends a step."""
        if self._hears(phase):
            self._watch.step(phase.value)

    def on_left_out(self, samples: int) -> None:
        """The console says so."""

    def on_pass_end(self, phase: Phase) -> None:
        """Ends a pass."""
        if self._hears(phase):
            self._watch.end_pass()

    def on_epoch_end(self, result: EpochResult) -> None:
        """Keeps the record as it is now, from which an interrupted job gets its page."""
        self._epochs.append(_told(result))
        more = {"learning_rate": result.learning_rate, "images_per_s": result.images_per_s}
        self._show(result.epoch, {**result.metrics, **more})
        # A record tells of all epochs so far: written after each of thousands, it would cost more than they do.
        if not self._on or time.monotonic() < self._record_due_s:
            return
        self._record_due_s = time.monotonic() + _RECORD_S
        self._record = replace(self._record, epochs=tuple(self._epochs), ended=datetime.now(UTC))
        try:
            report.write_record(self._record, self._folder)
        except OSError as error:
            logger.warning("the record of the job cannot be written: %s", error)

    def finish(self, *, failed: bool = False, **known: object) -> None:
        """Judges for the last time, writes the report and ends what is told to others.

        Args:
            failed: the job ends with an error.
            known: further fields of its `JobRecord`.
        """
        record = replace(self._record, epochs=tuple(self._epochs), ended=datetime.now(UTC), **known)  # type: ignore[arg-type]
        tested = {name: value for name, value in record.metrics.items() if name.startswith("test_")}
        self._show(record.best_epoch, tested)
        if self._on:
            findings = self._watch.finish(self._folder)
            self._write_report(replace(record, verdicts=findings.verdicts, profile=findings.profile))
        if self._tracker is not None:
            self._tracker.finish({"insight": self._folder, "model": self._environment.paths.model}, failed=failed)

    def _write_report(self, record: JobRecord) -> None:
        try:
            page = report.write(record, self._folder)
        except OSError as error:
            logger.warning("the report cannot be written: %s", error)
            return
        # Each verdict stood in the log when it was reached; here is what to do, and where all of them are.
        for verdict in record.verdicts:
            if verdict.status is Status.ISSUES_FOUND and verdict.recommendation:
                logger.info("%s: %s", verdict.rule, verdict.recommendation)
        counts = Counter(verdict.status for verdict in record.verdicts)
        logger.info(
            "%d rules found no issue, %d found one, %d had not enough data; report: %s",
            counts[Status.NO_ISSUES_FOUND],
            counts[Status.ISSUES_FOUND],
            counts[Status.NOT_ENOUGH_DATA],
            page,
        )

    def _show(self, epoch: int, values: Mapping[str, float]) -> None:
        """Tells those who draw curves of an epoch."""
        if self._tracker is not None and values:
            self._tracker.metrics(epoch, values)
        if self._board is not None:
            self._board.scalars(epoch, {f"epoch/{name}": value for name, value in values.items()})
            self._board.flush()

    def _hears(self, phase: Phase) -> bool:
        return self._attached or (self._on and phase is Phase.FEATURES)


def _visible_gpus() -> tuple[str, ...]:
    """The job's GPUs by UUID: CUDA numbers them in another order than NVML."""
    return tuple(str(torch.cuda.get_device_properties(number).uuid) for number in range(torch.cuda.device_count()))


def _told(result: EpochResult) -> EpochRecord:
    return EpochRecord(result.epoch, result.metrics, result.learning_rate, result.seconds)


def _unheard(part: str) -> None:
    """What an observer says of a part of a step before it watches."""


def _tracker(environment: TrainingEnvironment, record: JobRecord) -> Tracker | None:
    told = environment.tracking
    if told is None:
        return None
    shorten_mlflow_requests()
    run = Run(told.uri, told.experiment or DEFAULT_EXPERIMENT, told.run_id, told.run_name or environment.job_name)
    return Tracker(run, record.hyperparameters)


class WrongAnswers:
    """Remembers the samples of a pass in order that were answered wrong with the greatest confidence."""

    def __init__(self) -> None:
        self._seen = 0
        self._found: list[tuple[float, int, int]] = []

    def hear(self, logits_NK: Tensor, indices_N: Tensor) -> None:
        """A batch's logits [N, K] and class indices int64 [N]."""
        confidences, answers = logits_NK.float().softmax(dim=1).max(dim=1)
        wrong = (answers != indices_N).nonzero().flatten().tolist()
        self._found += [(float(confidences[row]), self._seen + row, int(answers[row])) for row in wrong]
        self._found = sorted(self._found, reverse=True)[:_THUMBNAILS]
        self._seen += len(indices_N)

    def photos(
        self, samples: Sequence[Sample], corrupt: Sequence[str], labels: Sequence[str]
    ) -> tuple[WrongPhoto, ...]:
        """Thumbnails, the most confident first.

        Args:
            samples: of the pass, in its order.
            corrupt: paths with reasons; they were not in any batch.
            labels: class names.
        """
        unreadable = find_corrupt(samples, corrupt)
        seen = [sample for sample in samples if sample not in unreadable]
        if len(seen) != self._seen:
            return ()
        return tuple(
            wrong_photo(
                Path(seen[position].path),
                true=labels[seen[position].index],
                predicted=labels[answer],
                confidence=confidence,
            )
            for confidence, position, answer in self._found
            if not math.isnan(confidence)
        )
