"""The training loop. It computes and tells observers; it knows nothing of logs, progress bars, hooks or files.

Every variant is decided outside and passed in: which parameters learn, the view of an image, the arithmetic, the
schedule. There are no options inside an epoch.

Legend: N batch, K classes, S side of the network's input in pixels.
"""

from __future__ import annotations

import contextlib
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dogbreed.artifacts import clone_weights
from dogbreed.errors import DataError, HyperparameterError
from dogbreed.training.compute import Compute
from dogbreed.training.data import Batch
from dogbreed.training.distributed import ALONE, Team
from dogbreed.training.metrics import PassMetrics
from dogbreed.training.mixing import Mixing, unmixed
from dogbreed.training.state import EpochResult, FitState

# Reading a loss waits for the device, so it is done now and then, and at the end of each epoch.
_CHECKED_STEPS = 50


class Phase(Enum):
    """What a pass over a split is for."""

    TRAIN = "train"
    VALIDATION = "validation"
    CALIBRATION = "calibration"
    TEST = "test"
    FEATURES = "features"


@dataclass(frozen=True, slots=True)
class FitResult:
    """What training came to.

    Attributes:
        history: one entry per finished epoch.
        best_epoch: from 1; 0 when the job was stopped before the first epoch ended, or none bettered the start.
        metrics: of the weights.
        best_validation: the validation pass of the best epoch, or None.
        weights: state dict of the best epoch on the CPU, or of the moment of the stop when no epoch had ended.
        ended_by: ``epochs``, ``early stopping`` or ``stop signal``.
    """

    history: tuple[EpochResult, ...]
    best_epoch: int
    metrics: dict[str, float]
    best_validation: PassMetrics | None
    weights: dict[str, Tensor]
    ended_by: str


class _Pass(NamedTuple):
    """What a training pass went through.

    Attributes:
        samples: that were learnt from, in all processes.
        left_out: readable ones that were not, see `Observer.on_left_out`.
        waited_s: seconds in which this process waited for data.
    """

    samples: int
    left_out: int
    waited_s: float


class Batches(Protocol):
    """Batches of one split, an epoch at a time."""

    def __len__(self) -> int:
        """Batches per epoch."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on, which depend on nothing but these numbers."""


class Keeper(Protocol):
    """Keeps the state of a fit somewhere safe, see `checkpoint.Checkpoints`."""

    def due(self) -> bool:
        """Whether it is time to keep the state, asked at every step."""

    def keep(self, state: FitState) -> None:
        """Keep the state now."""


class NoKeeper:
    """For a job without a place for checkpoints, and for processes that do not lead."""

    def due(self) -> bool:
        """Never."""
        return False

    def keep(self, state: FitState) -> None:
        """Does nothing."""


class Observer(Protocol):
    """Something that the loop tells about its steps. Every method returns quickly and changes nothing."""

    def on_fit_start(self, history: Sequence[EpochResult], batches: int) -> None:
        """A fit begins, or goes on: the epochs and the training batches that are behind it."""

    def on_pass_start(self, phase: Phase, epoch: int, batches: int) -> None:
        """A pass over a split begins; epoch, or for features the view, counts from 1."""

    def on_part(self, part: str) -> None:
        """A part of the batch in hand is done: data, copy, forward, backward, optimizer or checkpoint."""

    def on_batch(self, phase: Phase) -> None:
        """A batch is done."""

    def on_left_out(self, samples: int) -> None:
        """So many samples of a training batch teach nothing: they stood alone, and BatchNorm needs two."""

    def on_pass_end(self, phase: Phase) -> None:
        """The pass is over, or was left because of a stop signal."""

    def on_epoch_end(self, result: EpochResult) -> None:
        """An epoch's metrics are known."""


class CorruptImages:
    """The images that could not be decoded, and the share of them that ends the job.

    Each process meets those in its own share of the batches; after a pass all know them all, see `gather`.

    Args:
        samples: number of images in all splits.
        max_fraction: in [0, 1].
    """

    def __init__(self, samples: int, max_fraction: float) -> None:
        self._samples = samples
        self._max_fraction = max_fraction
        self._found: dict[str, None] = {}

    def add(self, problems: Sequence[str]) -> None:
        """Takes the problems of a batch; one that is known already counts once.

        Raises:
            DataError: more than ``max_fraction`` of all images are corrupt.
        """
        self._found.update(dict.fromkeys(problems))
        self._check()

    def gather(self, team: Team) -> None:
        """Takes what all processes have found, the same in each of them; all of them call it.

        Raises:
            DataError: more than ``max_fraction`` of all images are corrupt.
        """
        if not team.alone:
            self._found = dict.fromkeys(problem for found in team.gather(self.found) for problem in found)
            self._check()

    def _check(self) -> None:
        if len(self._found) > self._max_fraction * self._samples:
            first = next(iter(self._found))
            raise DataError(
                f"{len(self._found)} of {self._samples} images cannot be decoded, more than "
                f"max-corrupt-fraction={self._max_fraction:g}; the first is {first}; remove or repair them, or raise "
                f"the limit"
            )

    @property
    def found(self) -> tuple[str, ...]:
        """Paths with reasons, in the order in which they were met."""
        return tuple(self._found)


@dataclass(frozen=True)
class Loop:
    """Everything that stays the same from step to step.

    Attributes:
        model: inputs -> logits [N, K], on the compute device, in its final frozen or trainable state.
        prepare: what a batch holds, on the compute device -> the model's inputs.
        classes: K.
        criterion: logits [N, K], targets (indices [N] or shares [N, K]) -> mean loss; in eval mode the plain one.
        compute: device and arithmetic.
        seed: of what is drawn during a step (dropout); each step of each process has a seed of its own.
        team: the processes that train together, each on its share of every batch.
        accumulate: forward passes into which a batch is split, fewer where BatchNorm learns and a part would have but
            one sample; more need less memory and, but for BatchNorm, learn the same.
        clip_norm: the gradient's largest norm; 0 is any.
        mix: blends the samples of a training batch, see `mixing`.
        observers: told in this order.
        corrupt: collects undecodable images.
        stop_requested: asked before every step; True ends the job as soon as the step in hand is done.
    """

    model: nn.Module
    prepare: Callable[[Tensor], Tensor]
    classes: int
    criterion: nn.Module
    compute: Compute
    observers: Sequence[Observer]
    corrupt: CorruptImages
    stop_requested: Callable[[], bool]
    seed: int = 0
    team: Team = ALONE
    accumulate: int = 1
    clip_norm: float = 0.0
    mix: Mixing = unmixed

    def fit(
        self, train: Batches, validation: Batches, state: FitState, *, epochs: int, objective: str, keeper: Keeper
    ) -> FitResult:
        """Trains for up to ``epochs`` epochs and keeps the weights of the best one.

        Args:
            train: batches that learn.
            validation: batches that decide which epoch is best.
            state: where to begin, a new one or one that was kept; it is moved along.
            epochs: at most.
            objective: name of the metric that the state's selection is given.
            keeper: keeps the state of a long or interrupted fit.

        Raises:
            DataError: too many images are corrupt, or a whole pass held none that could be learnt from.
            HyperparameterError: the loss is not finite any more.
        """
        ended_by = ""
        learner = self.team.averaging(self.model)
        for observer in self.observers:
            observer.on_fit_start(tuple(state.history), (state.epoch - 1) * len(train) + state.batch)
        while state.epoch <= epochs and not state.selection.exhausted:
            started = time.perf_counter()
            trained = self._train_pass(learner, train, state, keeper)
            train_seconds = time.perf_counter() - started
            self.corrupt.gather(self.team)
            learning_rate = state.schedule.used
            learnt = state.learnt.summed(self.team)
            judged = None
            if trained is not None:
                _require_samples(learnt, Phase.TRAIN, trained.left_out)
                _check_loss(learnt, state.epoch, learning_rate)
                self.team.average_buffers([*self.model.buffers(), *state.averaging.buffers()])
                with state.averaging.swapped():
                    judged = self.evaluate(validation, Phase.VALIDATION, state.epoch)
            if judged is None or trained is None:
                ended_by = "stop signal"
                break
            metrics = {
                "train_loss": learnt.loss,
                "train_accuracy": learnt.accuracy,
                "validation_loss": judged.loss,
                "validation_accuracy": judged.accuracy,
            }
            is_best = state.selection.update(metrics[objective])
            if is_best:
                with state.averaging.swapped():
                    state.best_weights = clone_weights(self.model)
                state.best_metrics, state.best_validation = metrics, judged
            state.schedule.judge(metrics[objective])
            result = EpochResult(
                epoch=state.epoch,
                metrics=metrics,
                learning_rate=learning_rate,
                seconds=time.perf_counter() - started,
                images_per_s=trained.samples / train_seconds,
                waiting_share=trained.waited_s / train_seconds,
                is_best=is_best,
            )
            state.history.append(result)
            state.epoch, state.batch, state.learnt = state.epoch + 1, 0, PassMetrics(self.compute.device)
            for observer in self.observers:
                observer.on_epoch_end(result)
            if any(self.team.total(keeper.due())):
                state.collect(self.team)
                keeper.keep(state)
        state.collect(self.team)
        keeper.keep(state)
        return FitResult(
            history=tuple(state.history),
            best_epoch=state.selection.best_epoch,
            metrics=state.best_metrics,
            best_validation=state.best_validation,
            weights=clone_weights(self.model) if state.best_weights is None else state.best_weights,
            ended_by=ended_by or ("epochs" if state.epoch > epochs else "early stopping"),
        )

    def evaluate(
        self, batches: Batches, phase: Phase, epoch: int, hear: Callable[[Tensor, Tensor], object] = lambda *_: None
    ) -> PassMetrics | None:
        """One pass without learning, with a confusion matrix; None when it was cut short by a stop signal.

        Args:
            batches: of the split.
            phase: of the pass.
            epoch: from 1.
            hear: told of every batch's logits [N, K] and indices [N].
        """
        self.model.eval()
        self.criterion.eval()
        metrics = PassMetrics(self.compute.device, self.classes)
        stopped = False
        self._tell_start(phase, epoch, len(batches))
        try:
            for batch in batches.epoch(epoch):
                self._tell_part("data")
                stopped = self.stop_requested()
                if stopped:
                    break
                moved = self._receive(batch)
                if moved is not None:
                    inputs, indices = moved
                    with torch.no_grad(), self.compute.autocast():
                        logits = self.model(inputs)
                        loss = self.criterion(logits, indices)
                    metrics.add(loss, logits, indices)
                    hear(logits, indices)
                    self._tell_part("forward")
                self._tell_batch(phase)
        finally:
            self._tell_end(phase)
        self.corrupt.gather(self.team)
        if any(self.team.total(stopped)):
            return None
        return _require_samples(metrics.summed(self.team), phase)

    def outputs(self, frozen: nn.Module, batches: Batches, view: int) -> Iterator[tuple[Tensor, Batch]]:
        """Runs the frozen part of a network over one view of a split.

        Args:
            frozen: inputs -> outputs, in eval mode.
            batches: in a fixed order.
            view: number of the view, from 0; also the epoch that ``batches`` is asked for.

        Yields:
            The outputs [N, ...] of each batch, and the batch; ends early at a stop signal.
        """
        self._tell_start(Phase.FEATURES, view + 1, len(batches))
        try:
            for batch in batches.epoch(view):
                self._tell_part("data")
                if self.stop_requested():
                    return
                received = self._receive(batch)
                with torch.no_grad():
                    yield (torch.empty(0) if received is None else frozen(received[0])), batch
                self._tell_batch(Phase.FEATURES)
        finally:
            self._tell_end(Phase.FEATURES)

    def _train_pass(self, learner: nn.Module, batches: Batches, state: FitState, keeper: Keeper) -> _Pass | None:
        """The rest of the training pass in hand; None when a stop signal cut it short."""
        learner.train()
        self.criterion.train()
        samples, left_out, waited_s = 0, 0, 0.0
        normalises = learns_statistics(learner)
        self._tell_start(Phase.TRAIN, state.epoch, len(batches) - state.batch)
        try:
            stream = batches.epoch(state.epoch, state.batch)
            while True:
                asked = time.perf_counter()
                batch = next(stream, None)
                waited_s += time.perf_counter() - asked
                if batch is None:
                    return _Pass(samples, left_out, waited_s)
                self._tell_part("data")
                # BatchNorm cannot learn from one sample with 1x1 maps, and badly from larger ones. Who asks for batches
                # of one has them all the same.
                count = len(batch.indices)
                single = normalises and count == 1 and not (self.team.alone and not batch.left_out)
                own = 0 if single else count
                # One small sum for all that the processes must do alike: a step that one of them left out would make
                # the others wait in it for ever.
                stop, due, shared, spared, absent = self.team.total(
                    self.stop_requested(), keeper.due(), own, count - own, not own
                )
                if stop:
                    return None
                self.corrupt.add(batch.problems)
                if spared:
                    self._tell_left_out(spared)
                if shared:
                    self._seed_step(state)
                    # Who saw nothing takes over what the others' norm layers saw.
                    share = own / shared if absent and normalises else None
                    told = batch if own else None
                    self._step(learner, told, state, shared, normalises=normalises, statistics_share=share)
                state.batch += 1
                samples, left_out = samples + shared, left_out + spared
                if due:
                    state.collect(self.team)
                    keeper.keep(state)
                    self._tell_part("checkpoint")
                self._tell_batch(Phase.TRAIN)
        finally:
            self._tell_end(Phase.TRAIN)

    def _step(
        self,
        learner: nn.Module,
        batch: Batch | None,
        state: FitState,
        samples: int,
        *,
        normalises: bool,
        statistics_share: float | None,
    ) -> None:
        """One optimizer step, which all processes do together.

        Args:
            learner: the model, see `Team.averaging`.
            batch: this process's share; None where it has nothing to learn from.
            state: is moved along.
            samples: in the shares of all processes.
            normalises: see `learns_statistics`.
            statistics_share: weight of this process's running statistics in those of all, which all go on with; None
                where each goes on with its own.
        """
        state.optimizer.zero_grad(set_to_none=True)
        if batch is None:
            state.scaler.scale(learner(None)).backward()
        parts = [] if batch is None else _split(batch, self.accumulate, fewest=2 if normalises else 1)
        for number, part in enumerate(parts, 1):
            inputs, indices = self._move(part)
            inputs, targets = self.mix(inputs, indices)
            self._tell_part("copy")
            # Gradients travel between processes once per step, with its last part.
            with contextlib.nullcontext() if number == len(parts) else self.team.unsynchronised(learner):
                with self.compute.autocast(), _explained(len(indices)):
                    logits = learner(inputs)
                    loss = self.criterion(logits, targets)
                self._tell_part("forward")
                # Gradients are averaged over processes, which may have unequal shares: the weights make the average
                # that of all samples.
                weight = len(indices) * self.team.size / samples
                state.scaler.scale(loss if weight == 1 else loss * weight).backward()
                self._tell_part("backward")
            state.learnt.add(loss, logits, indices)
        if self.clip_norm:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.schedule.step()
        if statistics_share is not None:
            self.team.average_buffers(self.model.buffers(), statistics_share)
        state.averaging.update()
        self._tell_part("optimizer")
        if state.batch % _CHECKED_STEPS == 0:
            _check_loss(state.learnt, state.epoch, state.schedule.used)

    def _seed_step(self, state: FitState) -> None:
        """Seeds what a step draws with, from where the fit stands: one that goes on draws what it would have drawn.

        `torch.manual_seed` also asks every kind of device that there might be, which takes 80 microseconds.
        """
        seed = step_seed(self.seed, state.epoch, state.batch, self.team.rank)
        torch.default_generator.manual_seed(seed)
        if self.compute.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _receive(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Inputs and indices on the device; None when the whole batch was corrupt."""
        self.corrupt.add(batch.problems)
        return self._move(batch) if len(batch.indices) else None

    def _move(self, batch: Batch) -> tuple[Tensor, Tensor]:
        device = self.compute.device
        inputs = self.prepare(batch.images.to(device, non_blocking=True))
        return inputs, batch.indices.to(device, non_blocking=True)

    def _tell_start(self, phase: Phase, epoch: int, batches: int) -> None:
        for observer in self.observers:
            observer.on_pass_start(phase, epoch, batches)

    def _tell_part(self, part: str) -> None:
        for observer in self.observers:
            observer.on_part(part)

    def _tell_batch(self, phase: Phase) -> None:
        for observer in self.observers:
            observer.on_batch(phase)

    def _tell_left_out(self, samples: int) -> None:
        for observer in self.observers:
            observer.on_left_out(samples)

    def _tell_end(self, phase: Phase) -> None:
        for observer in self.observers:
            observer.on_pass_end(phase)


def step_seed(seed: int, epoch: int, batch: int, rank: int = 0) -> int:
    """Of what is drawn in one step: ``batch`` of the epoch is done, counted from 0."""
    return zlib.crc32(f"{seed}/{epoch}/{batch}/{rank}".encode())


def nothing_decoded(phase: Phase) -> DataError:
    """What is raised where a pass has met no image at all."""
    return DataError(f"not one {phase.value} image could be decoded; the log names them")


def _require_samples(metrics: PassMetrics, phase: Phase, left_out: int = 0) -> PassMetrics:
    if not metrics.samples and left_out:
        raise DataError(
            f"nothing was learnt: each of {left_out} readable {phase.value} images stood alone in a process's part of "
            f"a batch, and BatchNorm needs two; set batch-statistics=keep, give more images, or use fewer processes"
        )
    if not metrics.samples:
        raise nothing_decoded(phase)
    return metrics


def learns_statistics(model: nn.Module) -> bool:
    """Whether a BatchNorm of a model in training mode learns from what goes through, which takes two samples."""
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


@contextlib.contextmanager
def _explained(samples: int) -> Iterator[None]:
    """Around a forward pass in training."""
    try:
        yield
    except ValueError as error:
        if samples > 1 or "more than 1 value per channel" not in str(error):
            raise
        raise HyperparameterError(
            "BatchNorm cannot learn from a batch of one sample with maps of one pixel; set batch-size to 2 or "
            "more, batch-statistics=keep, or a larger image-size"
        ) from error


def _split(batch: Batch, parts: int, fewest: int) -> list[Batch]:
    """A batch in up to so many parts of nearly equal size, each of ``fewest`` samples at least if there are as many."""
    parts = max(1, min(parts, len(batch.indices) // fewest))
    if parts == 1:
        return [batch]
    pairs = zip(batch.images.tensor_split(parts), batch.indices.tensor_split(parts), strict=True)
    return [Batch(images, indices, ()) for images, indices in pairs]


def _check_loss(metrics: PassMetrics, epoch: int, learning_rate: float) -> None:
    if metrics.samples and not math.isfinite(metrics.loss):
        step = metrics.first_not_finite
        raise HyperparameterError(
            f"the training loss became {metrics.loss} in epoch {epoch}{f', step {step}' if step else ''}, at learning "
            f"rate {learning_rate:.3g}; lower lr, set clip-norm=1, or use precision=fp32"
        )
