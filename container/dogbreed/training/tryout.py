"""A search inside one job: many heads are tried on features that are stored once, and the best one's recipe is taken.

The first trial is what the job was given; the others are drawn from the declared ranges, as evenly spread as may be
(Sobol 1967, scrambled by the job's seed). Trials that differ in learning rate and weight decay alone learn as one
stack. Each has its own schedule, early stopping and best epoch, as a job of its own would. The whole takes seconds to
minutes and draws the same every time, so that it keeps no state: what interrupts it makes it begin anew.

Knows batches and heads, neither files nor the order of a job's events.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

from dogbreed.errors import HyperparameterError
from dogbreed.hyperparameters import Hyperparameters, SearchRange, Value, declared
from dogbreed.statistics import standard_error
from dogbreed.training.averaging import make_averaging
from dogbreed.training.heads import StackedHeads, StackedOptimizer, losses
from dogbreed.training.loop import Batches, Phase, nothing_decoded, step_seed
from dogbreed.training.mixing import make_mixing
from dogbreed.training.optim import Schedule, make_schedule
from dogbreed.training.selection import Selection

logger = logging.getLogger(__name__)

# Numbers in the weights of one stack; gradients and the optimizer's means are as large. On a CPU more than its caches
# hold makes a head dearer again: of 139,000 numbers each, 1, 4, 10 and 20 in a stack took 1.8, 0.8, 0.6 and 1.0 s a
# head; of 15,000, 0.74, 0.22, 0.10 and 0.07 s, and 0.06 s with 50.
_MOST_NUMBERS = {"cpu": 2**20, "cuda": 2**24}
# Draws whose values cannot go together, in a row, after which nothing else is drawn.
_MOST_REFUSED = 1000
_SILENCE_S = 30.0

_NOT_FINITE = "a loss that is not finite"

Feed = Callable[[Hyperparameters], tuple[Batches, Batches]]
"""A trial's hyperparameters -> batches that learn, and batches that judge."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one head.

    Attributes:
        number: from 1; the first has what the job was given.
        hyperparameters: of it.
        metrics: of its best epoch on the validation images; empty when it has none.
        best_epoch: from 1; 0 when it has none.
        epochs: that it has run.
        ended_by: ``epochs``, ``early stopping``, ``stop signal``, or ``a loss that is not finite``, which leaves it
            without metrics.
    """

    number: int
    hyperparameters: Hyperparameters
    metrics: Mapping[str, float]
    best_epoch: int
    epochs: int
    ended_by: str


@dataclass(frozen=True, slots=True)
class Tryout:
    """What a search came to.

    Attributes:
        trials: by their numbers.
        best: what is worth taking: the best of the objective, the first of equals, but the first trial where that is
            better by no more than chance, see `_worth_taking`; None when a stop came before the first epoch had ended.
        weights: state dict of the best head, on the CPU; empty without one.
        stopped: a stop signal cut it short.
    """

    trials: tuple[Trial, ...]
    best: Trial | None
    weights: Mapping[str, Tensor]
    stopped: bool


@dataclass
class _Learner:
    """A head that learns; stands for its optimizer towards its schedule."""

    number: int
    recipe: Hyperparameters
    selection: Selection
    param_groups: list[dict[str, Any]]
    schedule: Schedule = field(init=False)
    metrics: dict[str, float] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    epochs: int = 0
    ended_by: str = ""

    def note(self, metrics: dict[str, float]) -> bool:
        """Takes an epoch's validation metrics in; True when they are its best."""
        self.epochs += 1
        if not math.isfinite(metrics["validation_loss"]):
            # A job of its own would fail here, however well it had begun.
            self.ended_by, self.metrics, self.weights = _NOT_FINITE, {}, {}
            return False
        objective = metrics[self.recipe.objective]
        self.schedule.judge(objective)
        is_best = self.selection.update(objective)
        if is_best:
            self.metrics = metrics
        if self.epochs >= self.recipe.epochs:
            self.ended_by = "epochs"
        elif self.selection.exhausted:
            self.ended_by = "early stopping"
        return is_best

    @property
    def rank(self) -> tuple[float, int]:
        """Less is better; of equals the earlier trial, so that nothing replaces in vain what was given."""
        objective = self.metrics.get(self.recipe.objective, math.nan)
        value = -objective if self.selection.maximise else objective
        return (math.inf if math.isnan(value) else value, self.number)

    def trial(self) -> Trial:
        """What became of it."""
        best_epoch = self.selection.best_epoch if self.metrics else 0
        return Trial(self.number, self.recipe, self.metrics, best_epoch, self.epochs, self.ended_by)


def draw(chosen: Hyperparameters) -> tuple[Hyperparameters, ...]:
    """The recipes of the trials, the given one first.

    Args:
        chosen: says how many there are, what is searched, and the seed.

    Raises:
        HyperparameterError: nearly everything that is drawn cannot go together.
    """
    ranges = {name: found for name in chosen.searched if (found := declared(name).search)}
    given = replace(chosen, search_trials=0)
    recipes = [given]
    sobol = SobolEngine(len(ranges), scramble=True, seed=chosen.seed)  # type: ignore[no-untyped-call]
    refused = 0
    while len(recipes) < chosen.search_trials:
        shares = sobol.draw(1, dtype=torch.float64)[0].tolist()
        values: dict[str, Any] = {
            name.replace("-", "_"): _at(one, share) for (name, one), share in zip(ranges.items(), shares, strict=True)
        }
        recipe = replace(given, **values)
        if not recipe.conflicts():
            recipes.append(recipe)
            refused = 0
            continue
        refused += 1
        if refused > _MOST_REFUSED:
            raise HyperparameterError(
                f"search-over={chosen.search_over}: nothing that is drawn can go together, such as: "
                f"{'; '.join(recipe.conflicts())}"
            )
    return tuple(recipes)


def try_heads(
    recipes: Sequence[Hyperparameters],
    make_head: Callable[[Hyperparameters], nn.Module],
    feed: Feed,
    *,
    device: torch.device,
    classes: int,
    stop_requested: Callable[[], bool],
) -> Tryout:
    """Trains a head by each recipe and says which is the best, in float32.

    Args:
        recipes: of the trials.
        make_head: an untrained head for a recipe, on any device.
        feed: batches of stored features for a recipe.
        device: that trains.
        classes: K.
        stop_requested: asked before every step.

    Raises:
        DataError: there is no validation image.
        HyperparameterError: no trial has a loss that is finite.
    """
    search = _Search(device, classes, stop_requested, len(recipes))
    for group in _groups(recipes):
        head, batches = make_head(group[0][1]), feed(group[0][1])
        most = max(1, _MOST_NUMBERS[device.type] // max(1, sum(parameter.numel() for parameter in head.parameters())))
        for first in range(0, len(group), most):
            if not search.stopped:
                search.run(_Stack(group[first : first + most], head, batches, device))
    trials = tuple(sorted(search.trials, key=lambda trial: trial.number))
    if search.best is None and not search.stopped:
        raise HyperparameterError(
            f"none of {len(trials)} heads has a loss that stays finite; lower lr, or set clip-norm=1"
        )
    best = _worth_taking(search)
    return Tryout(trials, best.trial() if best else None, best.weights if best else {}, search.stopped)


class _Search:
    """What the stacks of a search have in common: the best head so far, and when to stop."""

    def __init__(self, device: torch.device, classes: int, stop_requested: Callable[[], bool], count: int) -> None:
        self.trials: list[Trial] = []
        self.best: _Learner | None = None
        self.first: _Learner | None = None
        self.samples = 0
        self.stopped = False
        self.device = device
        self.classes = classes
        self.stop_requested = stop_requested
        self._count = count
        self._spoken = time.monotonic()

    def run(self, stack: _Stack) -> None:
        """Trains the heads of a stack to their ends, or to a stop signal."""
        learners, epoch = list(stack.learners), 0
        while stack.learners and not self.stopped:
            epoch += 1
            judged = stack.epoch(epoch, self)
            if judged is None:
                self.stopped = True
                break
            for position, (learner, metrics) in enumerate(zip(stack.learners, judged, strict=True)):
                if learner.note(metrics):
                    learner.weights = stack.weights(position)
            stack.keep([position for position, learner in enumerate(stack.learners) if not learner.ended_by])
            self._tell(epoch, len(stack.learners))
        for learner in learners:
            learner.ended_by = learner.ended_by or "stop signal"
            self.trials.append(learner.trial())
        best = min([*learners, *([self.best] if self.best else [])], key=lambda learner: learner.rank)
        self.best = best if best.metrics else None
        self.first = next((learner for learner in learners if learner.number == 1), self.first)

    def _tell(self, epoch: int, learning: int) -> None:
        logger.debug("search: epoch %d is done, %d heads of this stack go on", epoch, learning)
        if time.monotonic() - self._spoken >= _SILENCE_S:
            self._spoken = time.monotonic()
            done = len(self.trials)
            logger.info("search: %d of %d heads are done, %d are past epoch %d", done, self._count, learning, epoch)


class _Stack:
    """Heads that learn together.

    Args:
        trials: numbers and recipes, which differ in learning rate and weight decay alone.
        head: untrained.
        batches: that learn, and that judge.
        device: that trains.
    """

    def __init__(
        self,
        trials: Sequence[tuple[int, Hyperparameters]],
        head: nn.Module,
        batches: tuple[Batches, Batches],
        device: torch.device,
    ) -> None:
        self._recipe = trials[0][1]
        self._train, self._validation = batches
        self._heads = StackedHeads(head, len(trials)).to(device)
        self._optimizer = StackedOptimizer(self._heads, [recipe for _, recipe in trials])
        self._averaging = make_averaging(self._recipe.ema, self._heads)
        self.learners = [_begin(number, recipe, len(self._train)) for number, recipe in trials]

    def epoch(self, number: int, search: _Search) -> list[dict[str, float]] | None:
        """One epoch of all heads; their validation metrics, or None after a stop signal."""
        if not self._learn(number, search):
            return None
        with self._averaging.swapped():
            return self._judge(number, search)

    def weights(self, position: int) -> Mapping[str, Tensor]:
        """Of one head, as it was judged."""
        with self._averaging.swapped():
            return self._heads.weights(position)

    def keep(self, positions: Sequence[int]) -> None:
        """Leaves the heads at these positions alone."""
        if len(positions) == len(self.learners):
            return
        rows = list(positions)
        averages = self._averaging.state_dict()
        self._heads.keep(rows)
        self._optimizer.keep(rows)
        self._averaging = make_averaging(self._recipe.ema, self._heads)
        self._averaging.load_state_dict(
            {name: value if name == "steps" else value[rows] for name, value in averages.items()}
        )
        self.learners = [self.learners[position] for position in rows]

    def _learn(self, epoch: int, search: _Search) -> bool:
        """One pass of learning; False when a stop signal cut it short."""
        self._heads.train()
        recipe = self._recipe
        mix = make_mixing(recipe, search.classes)
        for number, batch in enumerate(self._train.epoch(epoch)):
            if search.stop_requested():
                return False
            # As the loop seeds a step, so that the same is dropped and mixed.
            torch.manual_seed(step_seed(recipe.seed, epoch, number))
            inputs, targets = mix(batch.images.to(search.device).float(), batch.indices.to(search.device))
            total = losses(self._heads(inputs), targets, recipe.label_smoothing).sum()
            total.backward()  # type: ignore[no-untyped-call]
            rates = [learner.schedule.get_last_lr()[0] for learner in self.learners]
            self._optimizer.step(torch.tensor(rates, device=search.device))
            for learner in self.learners:
                learner.schedule.step()
            self._averaging.update()
        return True

    @torch.no_grad()
    def _judge(self, epoch: int, search: _Search) -> list[dict[str, float]] | None:
        """Validation metrics of each head; None when a stop signal came."""
        self._heads.eval()
        dtype = torch.float64 if search.device.type == "cpu" else torch.float32
        loss_T = torch.zeros(len(self._heads), dtype=dtype, device=search.device)
        correct_T = torch.zeros(len(self._heads), dtype=torch.int64, device=search.device)
        samples = 0
        for batch in self._validation.epoch(epoch):
            if search.stop_requested():
                return None
            indices_N = batch.indices.to(search.device)
            logits_NTK = self._heads(batch.images.to(search.device).float())
            loss_T += losses(logits_NTK, indices_N) * len(indices_N)
            correct_T += (logits_NTK.argmax(dim=2) == indices_N[:, None]).sum(dim=0)
            samples += len(indices_N)
        if not samples:
            raise nothing_decoded(Phase.VALIDATION)
        search.samples = samples
        return [
            {"validation_loss": loss / samples, "validation_accuracy": correct / samples}
            for loss, correct in zip(loss_T.tolist(), correct_T.tolist(), strict=True)
        ]


def report(tryout: Tryout, chosen: Hyperparameters) -> dict[str, Any]:
    """What was tried, as plain values: the best recipe as a job is given it, and all trials.

    Args:
        tryout: what it came to.
        chosen: what the job was given.

    Raises:
        ValueError: it has no best trial.
    """
    if tryout.best is None:
        raise ValueError("nothing was tried to its first epoch's end")
    best = given(tryout.best.hyperparameters)
    return {
        "trial": str(tryout.best.number),
        "metric": chosen.objective,
        "value": tryout.best.metrics[chosen.objective],
        "hyperparameters": best | _texts(_searched(tryout.best, chosen)),
        "trials": [
            {
                "trial": str(trial.number),
                "value": trial.metrics.get(chosen.objective),
                "hyperparameters": _texts(_searched(trial, chosen)),
                "metrics": dict(trial.metrics),
                "best_epoch": trial.best_epoch,
                "epochs": trial.epochs,
                "ended_by": trial.ended_by,
            }
            for trial in tryout.trials
        ],
    }


def given(chosen: Hyperparameters) -> dict[str, str]:
    """What a job is to be given, to be taught by these: all that are not the defaults.

    A preset's values stand there themselves, so that whatever else the job is given goes before them.
    """
    defaults = Hyperparameters().as_dict()
    unusual = {name: value for name, value in chosen.as_dict().items() if value != defaults[name]}
    searching = ("search-trials", "search-over") if chosen.search_trials == 0 else ()
    return _texts({name: value for name, value in unusual.items() if name not in ("preset", *searching)})


def searched_values(told: Mapping[str, Any], chosen: Hyperparameters) -> dict[str, Any]:
    """The values of the best trial for what was searched, by field.

    Args:
        told: what `report` made.
        chosen: that it was made for.
    """
    best = Hyperparameters.parse(told["hyperparameters"]).as_dict()
    return {name.replace("-", "_"): best[name] for name in chosen.searched}


def lines(tryout: Tryout, chosen: Hyperparameters) -> list[str]:
    """The trials for people, the best first; never read as metric lines, which are the job's own."""
    metric = chosen.objective
    sign = -1 if metric.endswith("accuracy") else 1
    ranked = sorted(tryout.trials, key=lambda trial: sign * trial.metrics.get(metric, -sign * math.inf))
    told = []
    for trial in ranked:
        values = " ".join(f"{name}={value}" for name, value in _texts(_searched(trial, chosen)).items())
        reached = f"{trial.metrics[metric]:.4f} in epoch {trial.best_epoch}" if trial.metrics else "nothing"
        ended = "" if trial.ended_by == "epochs" else f", ended by {trial.ended_by}"
        told.append(f"head {trial.number:3d}: {reached} of {trial.epochs}{ended}; {values}")
    return told


def _worth_taking(search: _Search) -> _Learner | None:
    """The best head; what was given where that is better by at most one standard error of its accuracy.

    Of many heads the best has also had luck with the validation images, all the more the fewer they are; the simplest
    within one standard error is the rule of Breiman et al. 1984, Classification and Regression Trees, section 3.4.3.
    Losses have no error that could be told from their mean, and the best is taken.
    """
    best, first = search.best, search.first
    if best is None or first is None or first is best or not first.metrics or not first.selection.maximise:
        return best
    reached, given = (one.metrics[one.recipe.objective] for one in (best, first))
    error = standard_error(given, search.samples)
    if reached - given > error:
        return best
    logger.info(
        "head %d reached %.4f and the first, which has what was given, %.4f: one standard error on %d images is %.4f, "
        "and what was given stays",
        best.number,
        reached,
        given,
        search.samples,
        error,
    )
    return first


def _begin(number: int, recipe: Hyperparameters, batches: int) -> _Learner:
    selection = Selection(
        maximise=recipe.objective.endswith("accuracy"),
        patience=recipe.patience,
        min_delta=recipe.min_delta,
        min_epochs=recipe.min_epochs,
    )
    one = _Learner(number, recipe, selection, [{"lr": recipe.lr * recipe.head_lr_factor}])
    one.schedule = make_schedule(recipe, one, steps=batches * recipe.epochs)
    return one


def _groups(recipes: Sequence[Hyperparameters]) -> list[list[tuple[int, Hyperparameters]]]:
    """Numbers and recipes of those that can be stacked, in the order of their first."""
    found: dict[Hyperparameters, list[tuple[int, Hyperparameters]]] = {}
    plain = Hyperparameters()
    for number, recipe in enumerate(recipes, 1):
        shared = replace(recipe, lr=plain.lr, weight_decay=plain.weight_decay)
        found.setdefault(shared, []).append((number, recipe))
    return list(found.values())


def _at(one: SearchRange, share: float) -> Value:
    """The value at a share, in [0, 1), of a range; numbers with six digits, which is how they are told."""
    if one.choices:
        return one.choices[int(share * len(one.choices))]
    low, high = cast(float, one.low), cast(float, one.high)
    value = low * (high / low) ** share if one.scale == "log" else low + (high - low) * share
    return float(f"{value:.6g}")


def _searched(trial: Trial, chosen: Hyperparameters) -> dict[str, Value]:
    values = trial.hyperparameters.as_dict()
    return {name: values[name] for name in chosen.searched}


def _texts(values: Mapping[str, Value]) -> dict[str, str]:
    """As a job is given them."""
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}
