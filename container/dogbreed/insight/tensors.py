"""The smdebug hook: what a job saves of its tensors, for the rules and for smdebug's own readers.

smdebug decides what belongs to which collection and when a collection is saved, so a hook configuration written by
the platform means here what it means everywhere. How it is saved is ours, because smdebug's own way costs more than a
step of a small network (`tensorfiles`), looks at a checkpoint folder at every step, crashes the job on bfloat16 and
shows the output of an in-place ReLU as its input:

- a module gets a hook only when something of it is saved, and only for the steps at which it is; so does the criterion
  in training, once enough labels are known; the loop tells of steps; inputs are taken *before* the module runs;
- the losses and answers of an evaluation are gathered as they come and looked at together;
- nothing waits for a device: numbers stay where they are until the pass ends, and then come over together;
- an error switches the hook off and training goes on.

What the rules need is kept in memory at our intervals, whatever the platform wants on disk: losses every 10 train steps
and at every evaluation step (SageMaker's default is one in 500, with which the loss rules end in "Error" on any
ordinary fine-tuning job), gradients and weights every 100 steps, activations at the first ten and every 500. smdebug is
imported only where a hook is made: its import takes seconds.

Sources: awslabs/sagemaker-debugger 1.0.34, docs/api.md and docs/pytorch.md.
"""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dogbreed.deferred import is_compiled
from dogbreed.insight.evidence import Answers, Losses, Reading, Tensors
from dogbreed.insight.kept import Kept
from dogbreed.insight.listening import Listeners
from dogbreed.insight.passes import Labels, Pass
from dogbreed.insight.reductions import EXTRA, PLACES, STATISTICS, UNKNOWN, Together, sample, share, summarise
from dogbreed.insight.rules.common import Need
from dogbreed.insight.saved import read, read_losses
from dogbreed.insight.saveplan import (
    ACTIVATION_INTERVAL,
    ACTIVATIONS,
    FIRST_STEPS,
    OWN,
    TENSOR_INTERVAL,
    TRAIN_INTERVAL,
    Wanted,
    is_filed,
    kind_of,
    loss_name,
    make_plan,
    mode_keys,
    quieten_smdebug,
    type_name,
    wanted,
)
from dogbreed.insight.schedule import NEVER, NOTHING, make_schedule
from dogbreed.insight.tensorboard import TensorBoard
from dogbreed.insight.tensorfiles import TensorFiles

__all__ = ["Mode", "TensorHook", "Wanted", "attach", "read", "read_losses", "wanted"]

logger = logging.getLogger(__name__)

_KEPT_LABELS = 20_000
_FLUSH_S = 30.0
_FLUSH_ENTRIES = 20_000
_FLUSH_BYTES = 64 * 1024 * 1024
_REST_S = 4.0
"""Passes that are shorter are looked at together."""

Mode = Literal["train", "validation", "test"]

_LOSSES_ALONE = Wanted()
_NO_NAMES: frozenset[str] = frozenset()


def attach(
    model: nn.Module,
    criterion: nn.Module,
    *,
    folder: Path,
    config: Path | None,
    wanted: Wanted = _LOSSES_ALONE,
    evaluation_criterion: nn.Module | None = None,
    gradient_scale: Callable[[], float] | None = None,
    board: TensorBoard | None = None,
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
        board: is shown losses, and the weights and gradients of what learns, at the steps at which they are saved.

    Returns:
        The hook; one that does nothing, and says why in `failure`, when smdebug cannot be used: a job never fails
        because of what watches it.
    """
    quieten_smdebug()
    if board is not None:
        wanted = replace(wanted, needs=wanted.needs | {Need.WEIGHTS, Need.GRADIENTS})
    criteria = [criterion]
    if evaluation_criterion is not None and evaluation_criterion is not criterion:
        criteria.append(evaluation_criterion)
    try:
        plan, missing, thins = make_plan(model, folder, config, wanted)
        if board is not None:
            plan.tensorboard_dir = None  # smdebug's own export, of the same
        hook = TensorHook(plan, wanted, missing, gradient_scale, board=board, thins=thins)
        hook.register(model, criteria)
    except Exception as error:  # smdebug asserts and raises as it likes
        reason = f"the debugger hook cannot be used: {type(error).__name__}: {error}"
        logger.warning("no tensors are saved, %s", reason)
        return TensorHook(None, wanted, {}, None, failure=reason)
    return hook


class _Tensor(NamedTuple):
    """A tensor's statistics on their way from the device."""

    collection: str
    name: str
    step: int
    statistics: Tensor
    sampled: Mapping[str, Tensor]
    units: Tensor | None
    learns: bool
    shown: Tensor
    elements: int


class _Loss(NamedTuple):
    step: int
    value: Tensor


class _File(NamedTuple):
    """A tensor on its way to smdebug's files; see `TensorFiles.add`."""

    step: int
    mode: str
    mode_number: int
    mode_step: int
    name: str
    value: Tensor


@dataclass(slots=True)
class _Pending:
    """What is on its way from the device; `size` is in bytes, of what the files get."""

    files: list[_File] = field(default_factory=list)
    kept: list[_Tensor] = field(default_factory=list)
    losses: list[_Loss] = field(default_factory=list)
    ended: list[Pass] = field(default_factory=list)
    size: int = 0


class _Told(NamedTuple):
    """What was fetched of a pass: losses of evaluation steps, and its labels if it has ended."""

    one: Pass
    losses: Sequence[np.generic]
    labels: Labels | None


class TensorHook:
    """A registered hook that is told which pass is running. Make it with `attach`.

    Its methods may be called from the training thread, `evidence` from any thread. None of them raises.

    Args:
        plan: an smdebug hook that says what is saved when; None does nothing.
        wanted: what the rules need.
        missing: collection -> why it cannot be saved.
        gradient_scale: see `attach`.
        failure: why nothing is saved, or empty.
        board: see `attach`.
        thins: of many evaluation passes fewer and fewer go to the files; see `saveplan.is_filed`.
    """

    def __init__(
        self,
        plan: Any,  # noqa: ANN401  smdebug has no types
        wanted: Wanted,
        missing: Mapping[str, str],
        gradient_scale: Callable[[], float] | None,
        *,
        failure: str = "",
        board: TensorBoard | None = None,
        thins: bool = False,
    ) -> None:
        self._plan = plan
        self._wanted = wanted
        self._missing = dict(missing)
        self._gradient_scale = gradient_scale
        self._failure = failure
        self._board = board
        self._thins = thins
        self._off = plan is None
        self._wants_answers = Need.ANSWERS in wanted.needs
        self._wants_first_steps = Need.FIRST_STEPS in wanted.needs
        self._modules, self._criteria, self._gradients = Listeners(), Listeners(), Listeners()
        self._thread = threading.get_ident()
        # Of the step in hand.
        self._overall = self._step = -1
        self._next = self._next_tensors = NEVER
        self._plain = False
        self._hears_all = False
        self._begun = False
        self._past_loss = False
        self._armed = False
        self._heard = False
        self._saving: frozenset[Any] = frozenset()
        self._keeping: frozenset[str] = frozenset()
        self._scale = 1.0
        self._calls: dict[str, int] = {}
        self._summed: dict[str, tuple[list[_Tensor], list[_File]]] = {}
        # On their way from the device.
        self._pending = _Pending()
        self._evaluated = 0
        self._flushed_s = time.monotonic()
        self._written_s = -math.inf
        self._closing = False
        self._samples_before: dict[str, Tensor] = {}
        self._kept = Kept()
        self._seen_labels = 0
        if plan is not None:
            self._modes = mode_keys()
            self._collections = [one for one in plan._get_all_collections_to_save() if one.name not in OWN]
            self._schedules = {name: make_schedule(self._collections, mode) for name, mode in self._modes.items()}
            # Of a training's steps most that are saved give their loss alone.
            losses = [one for one in self._collections if one.name == "losses"]
            others = [one for one in self._collections if one.name != "losses"]
            train, intervals = self._modes["TRAIN"], (TENSOR_INTERVAL, wanted.weights_every, ACTIVATION_INTERVAL)
            self._schedules["TRAIN"] = make_schedule(others, train, intervals)
            self._loss_schedule = make_schedule(losses, train, (TRAIN_INTERVAL,))
            self._steps = dict.fromkeys(self._modes, -1)
            self._mode = "TRAIN"
            self._files = TensorFiles(Path(plan.out_dir), plan.worker)
            self._writes = plan.save_all_workers or plan.worker == plan.chief_worker
            self._enter("TRAIN")

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

    def go_on(self, steps: int) -> None:
        """So many train steps were done before this hook was made: the next one has that number."""
        if not self._off and steps:
            with self._guarded():
                self._overall = self._step = self._steps["TRAIN"] = steps - 1
                self._pass = self._new_pass()
                self._look_ahead()

    def set_mode(self, phase: Mode) -> None:
        """A pass begins: its losses are filed under TRAIN, EVAL (validation) or PREDICT (test: it is no epoch)."""
        self.end_pass()
        if not self._off:
            with self._guarded():
                self._enter({"train": "TRAIN", "validation": "EVAL", "test": "PREDICT"}[phase])

    def _enter(self, mode: str) -> None:
        self._steps[self._mode] = self._step
        self._mode = mode
        self._plan.set_mode(self._modes[mode])
        self._schedule = self._schedules[mode]
        # An evaluation at whose every step the loss is saved and nothing else: there is nothing to decide.
        self._plain = bool(self._schedule.losses_alone) and not self._plan.tensorboard_dir
        self._step = self._steps[mode]
        self._pass = self._new_pass()
        self._begun = self._past_loss = False
        self._disarm()
        self._hears_all = mode != "TRAIN" or self._wants_labels()
        self._look_ahead()

    def step(self) -> None:
        """A batch of the running pass is done; of a training's it is a step. At most steps this only counts."""
        if self._off or self._mode != "TRAIN":
            return
        try:
            if self._armed:
                self._disarm()
            if not (self._past_loss or self._begun):
                self._count()
            self._past_loss = self._begun = False
            if self._step + 1 >= self._next:
                self._look_ahead()
        except Exception as error:
            self._give_up(error)

    def end_pass(self) -> None:
        """A pass is over: what was saved in it, and in others just before, comes from the device and is written."""
        if not self._off and (self._heard or self._closing):
            with self._guarded():
                self._end_pass()
                if self._closing or time.monotonic() - self._flushed_s > _REST_S:
                    self._flush()

    def _end_pass(self) -> None:
        self._release_gradients()
        if self._heard:
            self._heard = False
            self._pass.last = self._overall, self._step
            self._pass.ended = True
            self._pending.ended.append(self._pass)
            self._evaluated += self._mode == "EVAL"
            self._pass = self._new_pass()

    def _new_pass(self) -> Pass:
        thinned = self._mode == "EVAL" and self._plain and self._thins and not is_filed(self._evaluated)
        return Pass(self._mode, trained=self._steps["TRAIN"] + 1, filed=not thinned)

    def close(self) -> None:
        """Writes what is buffered and takes the hook off; the model is as it was before."""
        self._closing = True
        self.end_pass()
        self._remove()
        if not self._off:
            with self._guarded():
                self._plan.export_collections()
                self._plan.exported_collections = True
                self._plan.close()
        self._off = True

    def evidence(self) -> tuple[Losses, Tensors, Answers, Mapping[str, str]]:
        """Losses, tensors and answers kept so far, and why the others are missing; for `evidence.Evidence`.

        In another thread than the hook's own those of the passes that ended in the last seconds may be absent.
        """
        if not self._off and self._pending.ended and threading.get_ident() == self._thread:
            with self._guarded():
                self._flush()
        losses, tensors, answers = self._kept.evidence()
        missing = dict(self._missing)
        if self._failure:
            every = ("losses", "gradients", "weights", "relu_input", "relu_output", "tanh_input", "answers")
            missing |= dict.fromkeys(every, self._failure + ".")
        return losses, tensors, answers, missing

    def register(self, model: nn.Module, criteria: Sequence[nn.Module]) -> None:
        """Puts hooks on what is saved, and nowhere else."""
        self._model = model
        self._modules.add(model.register_forward_pre_hook, self._on_forward)
        compiled = is_compiled(model)
        self._parameters = [
            (f"{type_name(model)}_{name.removeprefix('_orig_mod.')}", parameter)
            for name, parameter in model.named_parameters()
        ]
        for name, parameter in self._parameters:
            if parameter.requires_grad and self._is_saved(f"gradient/{name}"):
                heard = _OnGradient(self, f"gradient/{name}")
                self._gradients.add(parameter.register_post_accumulate_grad_hook, heard)
        for path, module in [] if compiled else model.named_modules():
            name = path or type_name(model)
            kind = kind_of(module)
            if self._is_saved(f"{name}_input_0"):
                self._modules.add(module.register_forward_pre_hook, _OnInput(self, name, kind))
            if self._is_saved(f"{name}_output_0"):
                self._modules.add(module.register_forward_hook, _OnOutput(self, name, kind))
        for criterion in criteria:
            self._criteria.add(criterion.register_forward_hook, self._on_loss)
        self._look_ahead()

    def _wants_labels(self) -> bool:
        return self._wants_answers and self._seen_labels < _KEPT_LABELS

    def _is_saved(self, name: str) -> bool:
        from smdebug.core.utils import match_inc

        return any(match_inc(name, one.include_regex) for one in self._collections)

    def _on_forward(self, module: nn.Module, inputs: object) -> None:
        """The model is called at a step at which something is saved."""
        if not self._off and module is self._model and not self._begun and not self._past_loss:
            try:
                self._begin()
            except Exception as error:
                self._give_up(error)

    def _on_loss(self, criterion: nn.Module, inputs: tuple[Tensor, ...], loss: Tensor) -> None:
        """A forward pass is over: of an evaluation's step, or in training of the step in hand or a part of it.

        A training's steps are counted by `step`; most of them are not heard of here.
        """
        if self._off:
            return
        try:
            training = self._mode == "TRAIN"
            if not training:
                self._hear(criterion, inputs, loss)
            elif self._wants_labels():
                self._seen_labels += self._pass.hear_labels(inputs)
            # Of a step in several parts the loss and the activations of the first one are saved.
            if (self._begun or self._step + 1 >= self._next) and not self._past_loss:
                if not self._begun:
                    self._begin()  # not the model itself was called, but a copy of it
                self._take_loss(criterion, loss)
                self._begun = False
                self._past_loss = training
                self._look_ahead()
            elif not training:
                self._count()
                if self._step + 1 >= self._next:
                    self._look_ahead()
        except Exception as error:
            self._give_up(error)

    def _count(self) -> None:
        """A step more, of this mode and of all."""
        if self._armed:
            self._disarm()
        self._heard = True
        self._overall += 1
        self._step += 1

    def _look_ahead(self) -> None:
        """Finds the next step at which something is saved; modules and criteria tell of the coming one if it is one."""
        coming = self._step + 1
        self._next_tensors = NEVER if self._plain else self._schedule.next(coming)
        self._next = self._next_tensors
        if self._mode == "TRAIN":
            self._next = min(self._next, self._loss_schedule.next(coming))
        self._modules.listen(coming >= self._next_tensors)
        self._criteria.listen(self._hears_all or coming >= self._next)

    def _disarm(self) -> None:
        """Nothing more is saved of the step before, whose backward pass is over."""
        self._release_gradients()
        self._armed = False
        self._saving, self._keeping = NOTHING, _NO_NAMES
        self._gradients.listen(False)

    def _begin(self) -> None:
        """A step at which something is saved begins."""
        if self._must_flush():
            self._flush()
        self._count()
        plan, mode, step = self._plan, self._modes[self._mode], self._step
        plan.step = self._overall
        plan.mode_steps[mode] = step
        plan.mode_steps[self._modes["GLOBAL"]] = self._overall
        self._begun = self._armed = True
        self._calls.clear()
        training, with_tensors = self._mode == "TRAIN", step >= self._next_tensors
        collections = (
            *(self._loss_schedule.collections if training else ()),
            *(self._schedule.collections if with_tensors else ()),
        )
        self._saving = frozenset(one for one in collections if one.save_config.should_save_step(mode, step))
        if training:
            self._keeping = self._kept_at(step)
        if training and with_tensors:
            self._take_weights()
            self._await_gradients()

    def _take_loss(self, criterion: nn.Module, loss: Tensor) -> None:
        """The loss of a step at which something is saved."""
        if "losses" in self._keeping:
            self._pending.losses.append(_Loss(self._step, loss.detach()))
        if self._saving:
            name = loss_name(criterion)
            self._loss_to_files(f"{name}_output_{self._call(name)}", loss)

    def _hear(self, criterion: nn.Module, inputs: tuple[Tensor, ...], loss: Tensor) -> None:
        """A step of an evaluation: what it gave is held as it is, for a while."""
        if not self._pass.name:
            self._pass.name = f"{loss_name(criterion)}_output_0"
            # It is heard before it is counted.
            self._pass.first = self._overall + 1, self._step + 1
        keeps = self._wants_answers and self._mode == "EVAL"
        if self._pass.hear(loss, inputs[:2] if keeps else ()) and self._must_flush():
            self._flush()

    def _kept_at(self, step: int) -> frozenset[str]:
        """Collections of which the rules are told at a train step."""
        first = step < FIRST_STEPS
        names: list[str] = []
        if step % TRAIN_INTERVAL == 0 or (first and self._wants_first_steps):
            names.append("losses")
        if step % TENSOR_INTERVAL == 0 or (first and self._wants_first_steps):
            names.append("gradients")
        if step % self._wanted.weights_every == 0:
            names.append("weights")
        if first or step % ACTIVATION_INTERVAL == 0:
            names += ACTIVATIONS
        return frozenset(names)

    def _take_weights(self) -> None:
        keeping = "weights" in self._keeping and Need.WEIGHTS in self._wanted.needs
        for name, parameter in self._parameters:
            if name.endswith("weight") and keeping:
                self._keep("weights", name, parameter.data, learns=parameter.requires_grad)
            elif self._saving:
                self._to_files(name, parameter.data, ())

    def _await_gradients(self) -> None:
        """Listens to the gradients of this step alone: a hook that does nothing costs microseconds in every step."""
        if self._gradient_scale is not None:
            self._scale = self._gradient_scale()
        self._gradients.listen(True)

    def take_gradient(self, name: str, gradient: Tensor) -> None:
        """Takes a parameter's gradient during the backward pass, as it stands with this part of the step.

        What was taken of it with the part before is replaced: the optimizer steps with the sum of all parts. No copy of
        the gradients themselves is kept, which a job may have no memory for.
        """
        if self._off or not (self._saving or "gradients" in self._keeping):
            return
        try:
            kept, filed = len(self._pending.kept), len(self._pending.files)
            if self._scale != 1.0:
                gradient = gradient.detach() / self._scale
            if "gradients" in self._keeping and Need.GRADIENTS in self._wanted.needs:
                self._keep("gradients", name, gradient)
            else:
                self._to_files(name, gradient, ())
            self._summed[name] = self._pending.kept[kept:], self._pending.files[filed:]
            del self._pending.kept[kept:], self._pending.files[filed:]
        except Exception as error:
            self._give_up(error)

    def _release_gradients(self) -> None:
        """The step's backward passes are over: what was taken last of each gradient is on its way."""
        for kept, files in self._summed.values():
            self._pending.kept += kept
            self._pending.files += files
        self._summed.clear()

    def take_activation(self, name: str, kind: str, side: str, value: object) -> None:
        """Takes what goes into a module, or comes out of it."""
        if self._off or self._past_loss or not (self._saving or "relu_input" in self._keeping):
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
        statistics = summarise(value)
        sampled: dict[str, Tensor] = {}
        units = None
        if collection == "gradients" and Need.FIRST_STEPS in self._wanted.needs and self._step < FIRST_STEPS:
            sampled["p5"], sampled["p95"] = torch.quantile(
                sample(value).float(), torch.tensor([0.05, 0.95], device=value.device)
            )
        elif collection == "weights":
            now = sample(value).clone()
            before = self._samples_before.get(name)
            if before is not None and before.shape == now.shape:
                change = (now - before).abs()
                sampled = {"change": change.mean(), "largest_change": change.max(), "before": before.abs().mean()}
            self._samples_before[name] = now
        elif collection == "relu_output":
            units = share(value > 0)
        elif collection in ("tanh_input", "sigmoid_input"):
            low, high = self._wanted.tanh if collection == "tanh_input" else self._wanted.sigmoid
            units = share((value >= low) & (value <= high))
        shown = value.new_empty(0)
        if self._board is not None and learns and collection in ("weights", "gradients"):
            shown = self._samples_before[name] if collection == "weights" else sample(value).clone()
        self._pending.kept.append(
            _Tensor(collection, name, self._step, statistics, sampled, units, learns, shown, value.numel())
        )
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
                        place = PLACES.get((reduction, absolute))
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

    def _loss_to_files(self, name: str, loss: Tensor) -> None:
        """As `_to_files`; most of what is saved are losses, alone and whole."""
        alone = len(self._saving) == 1 and not self._plan.tensorboard_dir
        if alone and self._writes and self._plan._get_collections_with_tensor(name) == self._saving:
            self._queue(name, loss.detach())
        else:
            self._to_files(name, loss, ())

    def _to_files_extra(
        self, name: str, statistics: Tensor, sampled: Mapping[str, Tensor], units: Tensor | None
    ) -> None:
        """Statistics that smdebug has no name for, as tensors of their own."""
        unknown = statistics.new_tensor(UNKNOWN)
        known = {"zeros": statistics[STATISTICS.index("zeros")], **sampled}
        self._queue(f"insight/{name}", torch.stack([known.get(one, unknown).to(statistics.dtype) for one in EXTRA]))
        if units is not None:
            self._queue(f"units/{name}", units)

    def _queue(self, name: str, value: Tensor) -> None:
        mode = self._modes[self._mode]
        self._pending.files.append(_File(self._overall, self._mode, mode.value, self._step, name, value))
        self._pending.size += value.numel() * value.element_size()

    def _must_flush(self) -> bool:
        """Whether to write before the pass ends; asked before steps at which something is saved."""
        return (
            self._pending.size > _FLUSH_BYTES
            or len(self._pending.files) > _FLUSH_ENTRIES
            or time.monotonic() - self._flushed_s > _FLUSH_S
        )

    def _flush(self) -> None:
        """Brings everything over from the device, in one piece, keeps it and writes it."""
        pending, self._pending = self._pending, _Pending()
        losses, kept, files = pending.losses, pending.kept, pending.files
        passes = [*pending.ended, self._pass]
        self._flushed_s = time.monotonic()
        small = Together()
        loss_places = [small.add(one.value) for one in losses]
        pass_places = [self._send(one, small) for one in passes]
        kept_places = [
            (small.add(one.statistics), [(name, small.add(value)) for name, value in one.sampled.items()])
            for one in kept
        ]
        file_places = [small.add(one.value) for one in files]
        shown_places = [small.add(one.shown) for one in kept]
        values = small.fetch()
        told = [
            _Told(one, [value for place in places for value in values[place]], one.labels() if one.ended else None)
            for one, places in zip(passes, pass_places, strict=True)
        ]
        with self._kept.together():
            for loss, place in zip(losses, loss_places, strict=True):
                self._kept.add_train_loss(loss.step, float(values[place].reshape(-1).mean()))
            for row in told:
                row.one.values += [float(value) for value in row.losses]
                if row.one.ended and row.one.values and row.one.mode == "EVAL":
                    self._kept.add_evaluation(row.one.trained, row.one.values)
                if row.labels is not None:
                    self._kept.add_labels(row.labels)
            for one, (place, sampled) in zip(kept, kept_places, strict=True):
                numbers = dict(zip(STATISTICS, values[place].tolist(), strict=True))
                numbers |= {name: float(values[at]) for name, at in sampled}
                if not one.learns:
                    numbers["learns"] = 0.0
                units = None if one.units is None else one.units.cpu().numpy()
                self._kept.add_reading(one.collection, one.name, Reading(one.step, numbers, units))
        if self._board is not None:
            self._show(
                self._board,
                [(loss, values[place]) for loss, place in zip(losses, loss_places, strict=True)],
                [
                    (one, values[at], values[by])
                    for one, (at, _), by in zip(kept, kept_places, shown_places, strict=True)
                ],
            )
        if self._writes:
            for row in told:
                self._file_pass(row)
            self._write_files(files, [values[place] for place in file_places])

    @staticmethod
    def _send(one: Pass, small: Together) -> list[int]:
        """Puts the losses of a pass with what comes from the device; returns their places."""
        one.fold()
        losses, one.losses = one.losses, []
        return [small.add(stretch) for stretch in losses]

    @staticmethod
    def _show(
        board: TensorBoard,
        losses: Sequence[tuple[_Loss, NDArray[Any]]],
        kept: Sequence[tuple[_Tensor, NDArray[Any], NDArray[Any]]],
    ) -> None:
        """Train losses with their values, and tensors with their statistics and samples, for people to look at."""
        for loss, value in losses:
            board.scalars(loss.step, {"step/train_loss": float(value.reshape(-1).mean())})
        for one, statistics, shown in kept:
            low, high = (float(statistics[STATISTICS.index(name)]) for name in ("min", "max"))
            tag = f"{one.collection}/{one.name.removeprefix('gradient/')}"
            board.histogram(one.step, tag, shown.reshape(-1), low=low, high=high, elements=one.elements)
        board.flush()

    def _file_pass(self, told: _Told) -> None:
        """Files losses of evaluation steps, one saved step each, and the labels of a pass under its last step."""
        one, labels = told.one, told.labels
        if not one.filed:
            return
        number = self._modes[one.mode].value
        losses_alone = self._schedules[one.mode].losses_alone
        if losses_alone and told.losses and self._plan._get_collections_with_tensor(one.name) & losses_alone:
            done = len(one.values) - len(told.losses)
            for place, value in enumerate(told.losses, done):
                step, mode_step = one.first[0] + place, one.first[1] + place
                self._files.add(step, one.mode, number, mode_step=mode_step, name=one.name, value=np.asarray(value))
        if labels is not None:
            for collection, indices in (
                ("labels", labels.train if len(labels.train) else labels.true),
                ("predictions", labels.predicted),
            ):
                if len(indices):
                    self._plan.get_collection(collection).add_tensor_name(collection)
                    step, mode_step = one.last
                    self._files.add(step, one.mode, number, mode_step=mode_step, name=collection, value=indices)

    def _write_files(self, files: Sequence[_File], values: Sequence[NDArray[Any]]) -> None:
        for (step, mode, number, mode_step, name, _), value in zip(files, values, strict=True):
            self._files.add(step, mode, number, mode_step=mode_step, name=name, value=value)
        # Files are few and large: one for each pass of a small network costs as much as the pass's forward steps.
        if self._closing or time.monotonic() - self._written_s > _FLUSH_S or self._files.size > _FLUSH_BYTES:
            self._written_s = time.monotonic()
            if not self._plan.exported_collections:
                self._plan.export_collections()
                self._plan.exported_collections = True
            self._files.write()

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
        for listeners in (self._modules, self._criteria, self._gradients):
            listeners.listen(False)
        if self._plan is not None:
            # smdebug would make its folder again when the process ends.
            atexit.unregister(self._plan._cleanup)


@dataclass(frozen=True, slots=True)
class _OnGradient:
    hook: TensorHook
    name: str

    def __call__(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.hook.take_gradient(self.name, parameter.grad)


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
