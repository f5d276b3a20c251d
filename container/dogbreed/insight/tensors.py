"""The smdebug hook: what a job saves of its tensors, for the rules and for smdebug's own readers.

smdebug decides what belongs to which collection and when a collection is saved, so a hook configuration written by
the platform means here what it means everywhere. How it is saved is ours, because smdebug's own way costs more than a
step of a small network (`tensorfiles`), looks at a checkpoint folder at every step, crashes the job on bfloat16 and shows the
output of an in-place ReLU as its input:

- a module gets a hook only when something of it is saved; inputs are taken *before* the module runs;
- nothing waits for a device: numbers stay where they are until the pass ends, and then come over together;
- an error switches the hook off and training goes on.

What the rules need is kept in memory at our intervals, whatever the platform wants on disk: losses every 10 train steps
and at every evaluation step (SageMaker's default is one in 500, with which the loss rules end in "Error" on any
ordinary fine-tuning job), gradients and weights every 100 steps, activations at the first ten and every 500. smdebug is imported
only here, and only when a hook is made: its import takes seconds.

Sources: awslabs/sagemaker-debugger 1.0.34, docs/api.md and docs/pytorch.md.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dogbreed.insight.evidence import Answers, Losses, Point, Reading, Readings, Tensors
from dogbreed.insight.rules.common import Need, Rule
from dogbreed.insight.rules.registry import needs_of
from dogbreed.insight.rules.tensors import SaturatedActivation, WeightUpdateRatio
from dogbreed.insight.tensorfiles import TensorFiles

logger = logging.getLogger(__name__)

TRAIN_INTERVAL = 10
"""Train losses are saved every so many steps; evaluation losses at every step."""
TENSOR_INTERVAL = 100
"""Gradients and weights are saved every so many train steps."""
FIRST_STEPS = 10
ACTIVATION_INTERVAL = 500
"""Activations are saved at the first train steps, and then every so many."""

_STATISTICS = ("min", "max", "mean", "variance", "abs_mean", "zeros")
_SAMPLE = 4096
_EXTRA = ("zeros", "p5", "p95", "change", "largest_change", "before")
"""What stands, in this order, in the tensor ``insight/NAME`` beside smdebug's own reductions; NaN is unknown."""
# Bounds, so that a job of weeks keeps megabytes: the first readings show how it began, the last how it goes.
_KEPT_FIRST, _KEPT_LAST = 20, 200
_KEPT_LABELS = 20_000
_KEPT_LOSSES = 20_000
_FLUSH_S = 30.0
_FLUSH_ENTRIES = 20_000
_FLUSH_BYTES = 64 * 1024 * 1024

Mode = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is saved beside the losses; see `wanted`.

    Attributes:
        needs: of the rules.
        weights_every: train steps between two saves of the weights.
        tanh: smallest and largest input of an active Tanh.
        sigmoid: the same of a Sigmoid.
    """

    needs: frozenset[Need] = frozenset({Need.LOSSES})
    weights_every: int = TENSOR_INTERVAL
    tanh: tuple[float, float] = (-math.inf, math.inf)
    sigmoid: tuple[float, float] = (-math.inf, math.inf)


def wanted(rules: Sequence[Rule]) -> Wanted:
    """Exactly what these rules need."""
    every = [rule.num_steps for rule in rules if isinstance(rule, WeightUpdateRatio) and rule.num_steps]
    bounds = [rule for rule in rules if isinstance(rule, SaturatedActivation)]
    found = Wanted(needs=needs_of(rules), weights_every=min(every, default=TENSOR_INTERVAL))
    for rule in bounds:
        found = Wanted(
            found.needs,
            found.weights_every,
            (rule.threshold_tanh_min, rule.threshold_tanh_max),
            (rule.threshold_sigmoid_min, rule.threshold_sigmoid_max),
        )
    return found


def attach(
    model: nn.Module,
    criterion: nn.Module,
    *,
    folder: Path,
    config: Path | None,
    wanted: Wanted = Wanted(),
    evaluation_criterion: nn.Module | None = None,
    gradient_scale: Callable[[], float] | None = None,
) -> TensorHook:
    """Registers a hook on a model and its criterion.

    Args:
        model: what is trained, before its first forward pass and before DistributedDataParallel wraps it. A compiled
            model has no activations that could be saved, and says so.
        criterion: logits [N, K], indices int64 [N] -> mean loss; the same object throughout training.
        folder: output folder; when it exists a sibling with a number is taken, because smdebug needs a fresh one.
        config: `debughookconfig.json` of the platform, or None. Collections that it names are saved as it says; what
            the rules need besides is added.
        wanted: what the rules need.
        evaluation_criterion: where validation has one of its own.
        gradient_scale: factor by which gradients are larger than they are (`GradScaler.get_scale`), asked at steps at
            which gradients are saved.

    Returns:
        The hook; one that does nothing, and says why in `failure`, when smdebug cannot be used: a job never fails
        because of what watches it.
    """
    _quieten_smdebug()
    criteria = [criterion]
    if evaluation_criterion is not None and evaluation_criterion is not criterion:
        criteria.append(evaluation_criterion)
    try:
        plan, missing = _make_plan(model, folder, config, wanted)
        hook = TensorHook(plan, wanted, missing, gradient_scale)
        hook.register(model, criteria)
    except Exception as error:  # smdebug asserts and raises as it likes
        reason = f"the debugger hook cannot be used: {type(error).__name__}: {error}"
        logger.warning("no tensors are saved, %s", reason)
        return TensorHook(None, wanted, {}, None, failure=reason)
    return hook


class _Kept(NamedTuple):
    """A tensor's statistics on their way from the device."""

    collection: str
    name: str
    step: int
    statistics: Tensor
    sampled: Mapping[str, Tensor]
    units: Tensor | None
    learns: bool


class _Loss(NamedTuple):
    mode: str
    step: int
    value: Tensor


@dataclass(slots=True)
class _History:
    """Readings of one tensor: the first and the newest ones."""

    first: list[Reading] = field(default_factory=list)
    last: deque[Reading] = field(default_factory=lambda: deque(maxlen=_KEPT_LAST))

    def add(self, reading: Reading) -> None:
        (self.first if len(self.first) < _KEPT_FIRST else self.last).append(reading)

    def all(self) -> Readings:
        return (*self.first, *self.last)


class TensorHook:
    """A registered hook that is told which pass is running. Make it with `attach`.

    Its methods may be called from the training thread, `evidence` from any thread. None of them raises.

    Args:
        plan: an smdebug hook that says what is saved when; None does nothing.
        wanted: what the rules need.
        missing: collection -> why it cannot be saved.
        gradient_scale: see `attach`.
        failure: why nothing is saved, or empty.
    """

    def __init__(
        self,
        plan: Any,  # noqa: ANN401  smdebug has no types
        wanted: Wanted,
        missing: Mapping[str, str],
        gradient_scale: Callable[[], float] | None,
        *,
        failure: str = "",
    ) -> None:
        self._plan = plan
        self._wanted = wanted
        self._missing = dict(missing)
        self._gradient_scale = gradient_scale
        self._failure = failure
        self._off = plan is None
        self._handles: list[Any] = []
        self._lock = threading.Lock()
        # Of the step in hand.
        self._begun = False
        self._saving: frozenset[Any] = frozenset()
        self._keeping: frozenset[str] = frozenset()
        self._scale = 1.0
        self._calls: dict[str, int] = {}
        # On their way from the device.
        self._files_pending: list[tuple[int, str, int, int, str, Tensor]] = []
        self._kept_pending: list[_Kept] = []
        self._losses_pending: list[_Loss] = []
        self._answers_pending: list[tuple[Tensor, Tensor]] = []
        self._labels_pending: list[Tensor] = []
        self._pending_bytes = 0
        self._flushed_s = time.monotonic()
        self._samples_before: dict[str, Tensor] = {}
        # What rules look at.
        self._train_losses: deque[Point] = deque(maxlen=_KEPT_LOSSES)
        self._evaluations: deque[Point] = deque(maxlen=_KEPT_LOSSES)
        self._evaluating: list[float] = []
        self._tensors: dict[str, dict[str, _History]] = {}
        self._train_labels: list[NDArray[np.int64]] = []
        self._seen_labels = 0
        self._answers = Answers()
        if plan is not None:
            self._modes = _modes()
            self._mode = "TRAIN"
            plan.set_mode(self._modes["TRAIN"])
            self._collections = [one for one in plan._get_all_collections_to_save() if one.name not in _OWN]
            self._files = TensorFiles(Path(plan.out_dir), plan.worker)
            self._writes = plan.save_all_workers or plan.worker == plan.chief_worker

    def __deepcopy__(self, memo: dict[int, object]) -> TensorHook:
        """A copied model has its own parameters and the same watcher."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled model is not watched."""
        return TensorHook, (None, Wanted(), {}, None)

    @property
    def folder(self) -> Path:
        """Where smdebug's readers find what is saved; an empty folder name when nothing is."""
        return Path(self._plan.out_dir) if self._plan is not None else Path("no-tensors")

    @property
    def failure(self) -> str:
        """Why nothing (more) is saved, or empty."""
        return self._failure

    def set_mode(self, phase: Mode) -> None:
        """A pass begins: its losses are filed under TRAIN, EVAL (validation) or PREDICT (test: it is no epoch)."""
        self.end_pass()
        if not self._off:
            self._mode = {"train": "TRAIN", "validation": "EVAL", "test": "PREDICT"}[phase]
            self._plan.set_mode(self._modes[self._mode])
            self._begun = False

    def end_pass(self) -> None:
        """A pass is over: brings what was saved in it from the device and writes it."""
        if not self._off:
            with self._guarded():
                self._flush(whole_pass=True)

    def close(self) -> None:
        """Writes what is buffered and takes the hook off; the model is as it was before."""
        self.end_pass()
        self._remove()
        if not self._off:
            with self._guarded():
                self._plan.export_collections()
                self._plan.exported_collections = True
                self._plan.close()
        self._off = True

    def evidence(self) -> tuple[Losses, Tensors, Answers, Mapping[str, str]]:
        """Losses, tensors and answers kept so far, and why the others are missing; for `evidence.Evidence`."""
        with self._lock:
            losses = Losses(tuple(self._train_losses), tuple(self._evaluations))
            tensors = {
                collection: {name: one.all() for name, one in histories.items()}
                for collection, histories in self._tensors.items()
            }
            answers = self._answers
            labels = self._train_labels[:]
        answers = Answers(
            train_labels=np.concatenate(labels) if labels else answers.train_labels,
            labels=answers.labels,
            predictions=answers.predictions,
            evaluated=answers.evaluated,
        )
        missing = dict(self._missing)
        if self._failure:
            every = ("losses", "gradients", "weights", "relu_input", "relu_output", "tanh_input", "answers")
            missing |= dict.fromkeys(every, self._failure + ".")
        return losses, tensors, answers, missing

    def register(self, model: nn.Module, criteria: Sequence[nn.Module]) -> None:
        """Puts hooks on what is saved, and nowhere else."""
        self._model = model
        self._handles.append(model.register_forward_pre_hook(self._on_forward))
        compiled = isinstance(model, torch._dynamo.OptimizedModule)
        self._parameters = [
            (f"{_type_name(model)}_{name.removeprefix('_orig_mod.')}", parameter)
            for name, parameter in model.named_parameters()
        ]
        for name, parameter in self._parameters:
            if parameter.requires_grad and self._is_saved(f"gradient/{name}"):
                watcher = _OnGradient(self, f"gradient/{name}")
                self._handles.append(parameter.register_hook(watcher))  # type: ignore[no-untyped-call]
        for path, module in [] if compiled else model.named_modules():
            name = path or _type_name(model)
            kind = _kind(module)
            if self._is_saved(f"{name}_input_0"):
                self._handles.append(module.register_forward_pre_hook(_OnInput(self, name, kind)))
            if self._is_saved(f"{name}_output_0"):
                self._handles.append(module.register_forward_hook(_OnOutput(self, name, kind)))
        for criterion in criteria:
            self._handles.append(criterion.register_forward_pre_hook(self._on_criterion))
            self._handles.append(criterion.register_forward_hook(self._on_loss))

    def _is_saved(self, name: str) -> bool:
        from smdebug.core.utils import match_inc

        return any(match_inc(name, one.include_regex) for one in self._collections)

    def _on_forward(self, module: nn.Module, inputs: object) -> None:
        """The model is called: a step begins."""
        if not self._off and module is self._model:
            try:
                self._begin()
            except Exception as error:
                self._give_up(error)

    def _on_criterion(self, module: nn.Module, inputs: object) -> None:
        """A loss is computed; where the model itself was not called (a copy was), the step begins here."""
        if not self._off and not self._begun:
            try:
                self._begin()
            except Exception as error:
                self._give_up(error)

    def _on_loss(self, criterion: nn.Module, inputs: tuple[Tensor, ...], loss: Tensor) -> None:
        if self._off:
            return
        try:
            self._begun = False
            step = self._step
            if self._mode == "EVAL" or (self._mode == "TRAIN" and "losses" in self._keeping):
                self._losses_pending.append(_Loss(self._mode, step, loss.detach()))
            if Need.ANSWERS in self._wanted.needs and len(inputs) > 1:
                self._take_answers(inputs[0], inputs[1])
            if self._saving:
                name = _loss_name(criterion)
                self._to_files(f"{name}_output_{self._call(name)}", loss, ())
        except Exception as error:
            self._give_up(error)

    def _begin(self) -> None:
        """Counts a step and finds out what is saved at it."""
        plan, mode = self._plan, self._modes[self._mode]
        if self._due():
            self._flush(whole_pass=False)
        plan.step += 1
        step = plan.mode_steps[mode] + 1
        plan.mode_steps[mode] = step
        plan.mode_steps[self._modes["GLOBAL"]] = plan.step
        self._step = step
        self._begun = True
        train = self._mode == "TRAIN"
        self._saving = frozenset(
            one
            for one in self._collections
            if one.save_config.should_save_step(mode, step) and (train or one.name != "gradients")
        )
        self._keeping = self._kept_at(step) if train else frozenset()
        if self._saving or self._keeping:
            self._calls.clear()
            if train:
                if self._gradient_scale is not None and ("gradients" in self._keeping or self._saving):
                    self._scale = self._gradient_scale()
                self._take_weights()

    def _kept_at(self, step: int) -> frozenset[str]:
        """Collections of which the rules are told at a train step."""
        first = step < FIRST_STEPS
        names: list[str] = []
        if step % TRAIN_INTERVAL == 0 or (first and Need.FIRST_STEPS in self._wanted.needs):
            names.append("losses")
        if step % TENSOR_INTERVAL == 0 or (first and Need.FIRST_STEPS in self._wanted.needs):
            names.append("gradients")
        if step % self._wanted.weights_every == 0:
            names.append("weights")
        if first or step % ACTIVATION_INTERVAL == 0:
            names += _ACTIVATIONS
        return frozenset(names)

    def _take_weights(self) -> None:
        keeping = "weights" in self._keeping and Need.WEIGHTS in self._wanted.needs
        for name, parameter in self._parameters:
            if name.endswith("weight") and keeping:
                self._keep("weights", name, parameter.data, learns=parameter.requires_grad)
            elif self._saving:
                self._to_files(name, parameter.data, ())

    def take_gradient(self, name: str, gradient: Tensor) -> None:
        """Takes a gradient during the backward pass."""
        if self._off or not (self._saving or "gradients" in self._keeping):
            return
        try:
            if self._scale != 1.0:
                gradient = gradient.detach() / self._scale
            if "gradients" in self._keeping and Need.GRADIENTS in self._wanted.needs:
                self._keep("gradients", name, gradient)
            else:
                self._to_files(name, gradient, ())
        except Exception as error:
            self._give_up(error)

    def take_activation(self, name: str, kind: str, side: str, value: object) -> None:
        """Takes what goes into a module, or comes out of it."""
        if self._off or not (self._saving or "relu_input" in self._keeping):
            return
        try:
            for tensor in value if isinstance(value, tuple | list) else (value,):
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    full = f"{name}_{side}_{self._call(f'{name}_{side}')}"
                    collection = f"{kind}_{side}"
                    if collection in self._keeping:
                        self._keep(collection, full, tensor)
                    else:
                        self._to_files(full, tensor, ())
        except Exception as error:
            self._give_up(error)

    def _call(self, name: str) -> int:
        """How often this was taken at this step before: a module may be called twice."""
        number = self._calls.get(name, 0)
        self._calls[name] = number + 1
        return number

    def _keep(self, collection: str, name: str, value: Tensor, *, learns: bool = True) -> None:
        """Reduces a tensor to what rules look at, on its device."""
        value = value.detach()
        if not value.numel():
            return
        if value.dtype not in (torch.float32, torch.float64):
            value = value.float()
        statistics = _statistics(value)
        sampled: dict[str, Tensor] = {}
        units = None
        if collection == "gradients" and Need.FIRST_STEPS in self._wanted.needs and self._step < FIRST_STEPS:
            sampled["p5"], sampled["p95"] = torch.quantile(
                _sample(value).float(), torch.tensor([0.05, 0.95], device=value.device)
            )
        elif collection == "weights":
            now = _sample(value).clone()
            before = self._samples_before.get(name)
            if before is not None and before.shape == now.shape:
                change = (now - before).abs()
                sampled = {"change": change.mean(), "largest_change": change.max(), "before": before.abs().mean()}
            self._samples_before[name] = now
        elif collection == "relu_output":
            units = _share(value > 0)
        elif collection in ("tanh_input", "sigmoid_input"):
            low, high = self._wanted.tanh if collection == "tanh_input" else self._wanted.sigmoid
            units = _share((value >= low) & (value <= high))
        self._kept_pending.append(_Kept(collection, name, self._step, statistics, sampled, units, learns))
        if self._saving:
            self._to_files(name, value, statistics)
            if any(one.name == collection for one in self._saving):
                self._to_files_extra(name, statistics, sampled, units)

    def _to_files(self, name: str, value: Tensor, statistics: Tensor | tuple[()]) -> None:
        """Sends a tensor, or its reductions, to smdebug's files, as the collections that it is in say."""
        collections = self._plan._get_collections_with_tensor(name) & self._saving
        if not collections or not self._writes:
            return
        value = value.detach()
        if value.dtype in (torch.bfloat16, torch.float16):
            value = value.float()
        done: set[tuple[str, bool]] = set()
        for collection in collections:
            config = collection.reduction_config
            if collection.name == "losses":
                continue
            for absolute, names in (
                (False, (*config.reductions, *config.norms)),
                (True, (*config.abs_reductions, *config.abs_norms)),
            ):
                for reduction in names:
                    if (reduction, absolute) not in done:
                        done.add((reduction, absolute))
                        place = _PLACES.get((reduction, absolute))
                        reduced = (
                            statistics[place]
                            if len(statistics) and place is not None
                            else self._plan._get_reduction_of_data(reduction, value, name, absolute)
                        )
                        self._queue(self._plan._get_reduction_tensor_name(name, reduction, absolute), reduced)
        if any(one.reduction_config.save_raw_tensor is True for one in collections):
            self._queue(name, value.clone() if value.numel() > 1 else value)
        if self._plan.tensorboard_dir:
            self._plan._write_histogram_summary(name, value, collections)
            self._plan._write_scalar_summary(name, value, collections)

    def _to_files_extra(
        self, name: str, statistics: Tensor, sampled: Mapping[str, Tensor], units: Tensor | None
    ) -> None:
        """Statistics that smdebug has no name for, as tensors of their own."""
        unknown = statistics.new_tensor(math.nan)
        known = {"zeros": statistics[_STATISTICS.index("zeros")], **sampled}
        self._queue(f"insight/{name}", torch.stack([known.get(one, unknown).to(statistics.dtype) for one in _EXTRA]))
        if units is not None:
            self._queue(f"units/{name}", units)

    def _queue(self, name: str, value: Tensor) -> None:
        mode = self._modes[self._mode]
        self._files_pending.append((self._plan.step, self._mode, mode.value, self._step, name, value))
        self._pending_bytes += value.numel() * value.element_size()

    def _take_answers(self, logits: Tensor, target: Tensor) -> None:
        if target.dim() != 1 or target.is_floating_point() or logits.dim() != 2:
            return  # soft targets (mixup) are no labels
        if self._mode == "TRAIN":
            if self._seen_labels < _KEPT_LABELS:
                self._seen_labels += len(target)
                self._labels_pending.append(target.detach())
        elif self._mode == "EVAL":
            self._answers_pending.append((target.detach(), logits.detach().argmax(dim=1)))

    def _due(self) -> bool:
        return self._pending_bytes > _FLUSH_BYTES or (
            bool(self._saving or self._keeping)
            and (len(self._files_pending) > _FLUSH_ENTRIES or time.monotonic() - self._flushed_s > _FLUSH_S)
        )

    def _flush(self, *, whole_pass: bool) -> None:
        """Brings everything over from the device, in one piece, keeps it and writes it."""
        losses, self._losses_pending = self._losses_pending, []
        kept, self._kept_pending = self._kept_pending, []
        files, self._files_pending = self._files_pending, []
        self._pending_bytes = 0
        self._flushed_s = time.monotonic()
        small = _Together()
        loss_places = [small.add(one.value) for one in losses]
        kept_places = [
            (small.add(one.statistics), [(name, small.add(value)) for name, value in one.sampled.items()])
            for one in kept
        ]
        file_places = [small.add(entry[-1]) for entry in files]
        values = small.fetch()
        labels = self._fetch_labels() if whole_pass else None
        with self._lock:
            for loss, place in zip(losses, loss_places, strict=True):
                number = float(values[place].reshape(-1).mean())
                if loss.mode == "TRAIN":
                    self._train_losses.append(Point(loss.step, number))
                else:
                    self._evaluating.append(number)
            if whole_pass and self._evaluating:
                mean = sum(self._evaluating) / len(self._evaluating)
                done = self._plan.mode_steps.get(self._modes["TRAIN"], -1) + 1
                self._evaluations.append(Point(done, mean))
                self._evaluating = []
            for one, (place, sampled) in zip(kept, kept_places, strict=True):
                numbers = dict(zip(_STATISTICS, values[place].tolist(), strict=True))
                numbers |= {name: float(values[at]) for name, at in sampled}
                if not one.learns:
                    numbers["learns"] = 0.0
                units = None if one.units is None else one.units.cpu().numpy()
                histories = self._tensors.setdefault(one.collection, {})
                histories.setdefault(one.name, _History()).add(Reading(one.step, numbers, units))
            if labels is not None:
                self._keep_labels(*labels)
        if not self._writes:
            return
        for (step, mode, number, mode_step, name, _), place in zip(files, file_places, strict=True):
            self._files.add(step, mode, number, mode_step=mode_step, name=name, value=values[place])
        if labels is not None:
            self._write_labels(*labels)
        if files or labels is not None:
            if not self._plan.exported_collections:
                self._plan.export_collections()
                self._plan.exported_collections = True
            self._files.write()

    def _fetch_labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None:
        """Labels of training, and labels and predictions of validation, taken in this pass; None without any."""
        train, self._labels_pending = self._labels_pending, []
        answers, self._answers_pending = self._answers_pending, []
        if not train and not answers:
            return None
        none = torch.zeros(0, dtype=torch.int64)
        columns = (train, [one for one, _ in answers], [one for _, one in answers])
        first, second, third = (torch.cat(column).cpu().numpy() if column else none.numpy() for column in columns)
        return first.astype(np.int64), second.astype(np.int64), third.astype(np.int64)

    def _keep_labels(self, train: NDArray[np.int64], labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> None:
        if len(train):
            self._train_labels.append(train)
        if len(labels):
            self._answers = Answers(
                labels=labels, predictions=predictions, evaluated=self._answers.evaluated + len(labels)
            )

    def _write_labels(
        self, train: NDArray[np.int64], labels: NDArray[np.int64], predictions: NDArray[np.int64]
    ) -> None:
        """Files the labels of a pass under its last step."""
        mode = self._modes[self._mode]
        for collection, value in (("labels", train if len(train) else labels), ("predictions", predictions)):
            if len(value):
                self._plan.get_collection(collection).add_tensor_name(collection)
                self._files.add(
                    self._plan.step, self._mode, mode.value, mode_step=self._step, name=collection, value=value
                )

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Training goes on without the hook."""
        self._off = True
        self._remove()
        self._failure = f"the debugger hook failed and was taken off: {type(error).__name__}: {error}"
        logger.warning("no more tensors are saved, %s", self._failure)

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._plan is not None:
            import atexit

            # smdebug would make its folder again when the process ends.
            atexit.unregister(self._plan._cleanup)


@dataclass(frozen=True, slots=True)
class _OnGradient:
    hook: TensorHook
    name: str

    def __call__(self, gradient: Tensor) -> None:
        self.hook.take_gradient(self.name, gradient)


@dataclass(frozen=True, slots=True)
class _OnInput:
    hook: TensorHook
    name: str
    kind: str

    def __call__(self, module: nn.Module, inputs: tuple[object, ...]) -> None:
        self.hook.take_activation(self.name, self.kind, "input", inputs)


@dataclass(frozen=True, slots=True)
class _OnOutput:
    hook: TensorHook
    name: str
    kind: str

    def __call__(self, module: nn.Module, inputs: object, outputs: object) -> None:
        self.hook.take_activation(self.name, self.kind, "output", outputs)


class _Together:
    """Tensors of any device that come to the CPU in one copy per device, because each copy waits for the device."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def add(self, tensor: Tensor) -> int:
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def fetch(self) -> list[NDArray[Any]]:
        fetched: list[NDArray[Any]] = [np.zeros(0)] * len(self._tensors)
        groups: dict[torch.device, list[int]] = {}
        for place, tensor in enumerate(self._tensors):
            if tensor.numel() <= _SAMPLE and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16):
                groups.setdefault(tensor.device, []).append(place)
            else:
                fetched[place] = tensor.cpu().numpy()
        for places in groups.values():
            flat = torch.cat([self._tensors[place].reshape(-1).float() for place in places]).cpu().numpy()
            start = 0
            for place in places:
                shape = self._tensors[place].shape
                end = start + math.prod(shape)
                fetched[place] = flat[start:end].reshape(shape)
                start = end
        return fetched


def read(folder: Path) -> tuple[Losses, Tensors, Answers]:
    """Reads what a hook saved, through smdebug's own reader: what `TensorHook.evidence` gave, from an old job.

    Raises:
        FileNotFoundError: the folder holds no saved tensors.
    """
    trial = _open(folder)
    from smdebug.pytorch import modes

    known = set(trial.tensor_names())
    tensors: dict[str, dict[str, Readings]] = {}
    for name in sorted(known):
        collection = next((one for one in _KEPT if name in _names_in(trial, one)), None)
        if collection is None or f"insight/{name}" not in known:
            continue
        readings = []
        for step in trial.tensor(f"insight/{name}").steps(mode=modes.TRAIN):
            tensor = trial.tensor(name)
            numbers = {
                reduction if not absolute else f"abs_{reduction}": float(
                    tensor.reduction_value(reduction, step, mode=modes.TRAIN, abs=absolute)
                )
                for reduction, absolute in _PLACES
            }
            extra = trial.tensor(f"insight/{name}").value(step, mode=modes.TRAIN)
            numbers |= {one: float(value) for one, value in zip(_EXTRA, extra, strict=True) if not math.isnan(value)}
            units = trial.tensor(f"units/{name}").value(step, mode=modes.TRAIN) if f"units/{name}" in known else None
            readings.append(Reading(step, numbers, units))
        tensors.setdefault(collection, {})[name] = tuple(readings)
    return read_losses(folder, trial), tensors, _read_answers(trial)


def read_losses(folder: Path, trial: Any = None) -> Losses:  # noqa: ANN401  smdebug has no types
    """Reads the losses that a hook saved.

    Args:
        folder: of the saved tensors.
        trial: the folder when it is open already.

    Returns:
        Train losses at their steps, and the mean loss of each validation pass at the number of train steps before it.

    Raises:
        FileNotFoundError: the folder holds no saved tensors.
    """
    trial = trial or _open(folder)
    from smdebug.pytorch import modes

    names = [name for name in trial.tensor_names(collection="losses") if "_output_" in name]
    if not names:
        return Losses(train=(), evaluation=())
    loss = trial.tensor(names[0])
    train = tuple(Point(step, float(loss.value(step, mode=modes.TRAIN))) for step in loss.steps(mode=modes.TRAIN))
    # smdebug numbers steps per mode and over all modes; train steps between two validation passes leave a gap there.
    passes: list[list[tuple[int, float]]] = []
    for step in loss.steps(mode=modes.EVAL):
        overall = trial.global_step(modes.EVAL, step)
        if not passes or overall != passes[-1][-1][0] + 1:
            passes.append([])
        passes[-1].append((overall, float(loss.value(step, mode=modes.EVAL))))
    evaluation = []
    validated = 0
    for losses in passes:
        evaluation.append(Point(losses[0][0] - validated, sum(value for _, value in losses) / len(losses)))
        validated += len(losses)
    return Losses(train=train, evaluation=tuple(evaluation))


def _read_answers(trial: Any) -> Answers:  # noqa: ANN401  smdebug has no types
    from smdebug.pytorch import modes

    known = set(trial.tensor_names())
    train: list[NDArray[np.int64]] = []
    if "labels" in known:
        labels = trial.tensor("labels")
        train = [labels.value(step, mode=modes.TRAIN) for step in labels.steps(mode=modes.TRAIN)]
    found = Answers(train_labels=np.concatenate(train)) if train else Answers()
    if "predictions" not in known:
        return found
    steps = trial.tensor("predictions").steps(mode=modes.EVAL)
    return Answers(
        train_labels=found.train_labels,
        labels=trial.tensor("labels").value(steps[-1], mode=modes.EVAL),
        predictions=trial.tensor("predictions").value(steps[-1], mode=modes.EVAL),
        evaluated=sum(len(trial.tensor("predictions").value(step, mode=modes.EVAL)) for step in steps),
    )


def _open(folder: Path) -> Any:  # noqa: ANN401  smdebug has no types
    if not any((folder / "collections").glob("*/*_collections.json")):
        raise FileNotFoundError(f"{folder} holds no tensors saved by smdebug")
    _quieten_smdebug()
    from smdebug.trials import create_trial

    return create_trial(str(folder))


@lru_cache(maxsize=64)
def _cached_names(trial: Any, collection: str) -> frozenset[str]:  # noqa: ANN401  smdebug has no types
    try:
        return frozenset(trial.tensor_names(collection=collection))
    except Exception:  # smdebug: no such collection
        return frozenset()


def _names_in(trial: Any, collection: str) -> frozenset[str]:  # noqa: ANN401  smdebug has no types
    return _cached_names(trial, collection)


_ACTIVATIONS = ["relu_input", "relu_output", "tanh_input", "sigmoid_input"]
_KEPT = ("gradients", "weights", *_ACTIVATIONS)
_OWN = frozenset({"insight", "labels", "predictions"})
_PLACES = {
    ("min", False): 0,
    ("max", False): 1,
    ("mean", False): 2,
    ("variance", False): 3,
    ("mean", True): 4,
}
"""Reduction of smdebug and whether of absolute values -> its place among `_STATISTICS`."""


def _make_plan(
    model: nn.Module, folder: Path, config: Path | None, wanted: Wanted
) -> tuple[Any, dict[str, str]]:  # smdebug has no types
    """An smdebug hook with the platform's collections and ours, and why some of ours cannot be saved."""
    import smdebug.pytorch as smd

    given = {} if config is None else json.loads(config.read_text(encoding="utf-8"))
    modules = {} if isinstance(model, torch._dynamo.OptimizedModule) else dict(model.named_modules())
    ours, missing = _collections(wanted, modules)
    if isinstance(model, torch._dynamo.OptimizedModule):
        missing |= dict.fromkeys(_ACTIVATIONS, "the network is compiled, and a compiled module shows no activations.")
    theirs = given.get("CollectionConfigurations") or []
    merged = {one["CollectionName"]: one for one in (*ours, *theirs)}
    document = {
        **given,
        "LocalPath": str(_fresh(Path(given["LocalPath"]) if given.get("LocalPath") else folder)),
        "CollectionConfigurations": list(merged.values()),
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        plan = smd.Hook.create_from_json_file(file.name)
    plan._prepare_collections()
    return plan, missing


def _collections(wanted: Wanted, modules: Mapping[str, nn.Module]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Our collection configurations, and collection -> why it cannot be saved."""
    first = ",".join(str(step) for step in range(FIRST_STEPS))
    never = {f"{mode}.{key}": "0" for mode in ("eval", "predict", "global") for key in ("end_step",)}
    reductions = {"reductions": "min,max,mean,variance,abs_mean"}
    needs = wanted.needs

    def at(interval: int, *, first_steps: bool) -> dict[str, str]:
        return {"train.save_interval": str(interval), **({"train.save_steps": first} if first_steps else {})}

    early = Need.FIRST_STEPS in needs
    every: dict[str, dict[str, str]] = {
        "losses": {
            **at(TRAIN_INTERVAL, first_steps=early),
            "eval.save_interval": "1",
            "predict.save_interval": "1",
        }
    }
    if Need.GRADIENTS in needs:
        every["gradients"] = at(TENSOR_INTERVAL, first_steps=early) | never | reductions
    if Need.WEIGHTS in needs:
        every["weights"] = at(wanted.weights_every, first_steps=False) | never | reductions
    missing: dict[str, str] = {}
    for collection, need, side in (
        ("relu_input", Need.RELU_INPUTS, "input"),
        ("relu_output", Need.RELU_OUTPUTS, "output"),
        ("tanh_input", Need.BOUNDED_INPUTS, "input"),
        ("sigmoid_input", Need.BOUNDED_INPUTS, "input"),
    ):
        if need not in needs:
            continue
        kind = collection.partition("_")[0]
        names = [name for name, module in modules.items() if _kind(module) == kind]
        if names:
            pattern = "|".join(_escaped(name) for name in names)
            regex = {"include_regex": f"^({pattern})_{side}_[0-9]+$"}
            every[collection] = at(ACTIVATION_INTERVAL, first_steps=True) | never | reductions | regex
        else:
            missing[collection] = (
                f"the part of the network that is trained has no {_TYPE_NAMES[kind]} module; with cache=true the "
                f"frozen part runs once and is not watched."
            )
    for name, pattern in (("insight", "^(insight|units)/"), ("labels", "^labels$"), ("predictions", "^predictions$")):
        every[name] = {"include_regex": pattern, "save_interval": "1"}
    return [{"CollectionName": name, "CollectionParameters": one} for name, one in every.items()], missing


_TYPE_NAMES = {"relu": "ReLU", "tanh": "Tanh", "sigmoid": "Sigmoid"}


def _kind(module: nn.Module) -> str:
    """``relu``, ``tanh``, ``sigmoid``, or empty."""
    if isinstance(module, nn.ReLU | nn.ReLU6):
        return "relu"
    return "tanh" if isinstance(module, nn.Tanh) else "sigmoid" if isinstance(module, nn.Sigmoid) else ""


def _type_name(module: nn.Module) -> str:
    return type(module).__name__


def _escaped(name: str) -> str:
    return name.replace(".", "[.]")


def _loss_name(criterion: nn.Module) -> str:
    """The criterion's class; smdebug's `losses` are what has "loss" or "Loss" at its end."""
    name = _type_name(criterion)
    return name if name.lower().endswith("loss") else f"{name}Loss"


def _statistics(value: Tensor) -> Tensor:
    """Smallest, largest, mean, variance (over all elements), mean of absolute values and share of zeros."""
    low, high = torch.aminmax(value)
    variance, mean = torch.var_mean(value, correction=0)
    zeros = 1.0 - torch.count_nonzero(value) / value.numel()
    return torch.stack([low, high, mean, variance, value.abs().mean(), zeros.to(value.dtype)]).float()


def _sample(value: Tensor) -> Tensor:
    """Up to 4096 elements, evenly spread in memory, and always the same ones."""
    dense = (
        value.is_contiguous() or value.is_contiguous(memory_format=torch.channels_last)
        if value.dim() == 4
        else (value.is_contiguous())
    )
    flat = value.as_strided((value.numel(),), (1,)) if dense else value.reshape(-1)
    return flat[:: max(1, math.ceil(value.numel() / _SAMPLE))]


def _share(active_NU: Tensor) -> Tensor:
    """Share of batch and image positions at which each unit is active, float32 [U]; axis 1 are the units."""
    if active_NU.dim() < 2:
        return active_NU.float().reshape(-1)
    others = [axis for axis in range(active_NU.dim()) if axis != 1]
    return active_NU.float().mean(dim=others)


def _modes() -> dict[str, Any]:
    import smdebug.pytorch as smd

    return {mode.name: mode for mode in smd.modes}


def _fresh(folder: Path) -> Path:
    candidates = (folder if n == 1 else folder.with_name(f"{folder.name}-{n}") for n in count(1))
    return next(candidate for candidate in candidates if not candidate.exists())


def _quieten_smdebug() -> None:
    """Lets smdebug's warnings through our own formatter and drops its chatter; it installs a handler on import."""
    debugger = logging.getLogger("smdebug")
    if not any(isinstance(one, _WarningsOnly) for one in debugger.filters):
        debugger.addFilter(_WarningsOnly())


class _WarningsOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING
