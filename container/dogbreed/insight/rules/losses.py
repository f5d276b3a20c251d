"""Rules on losses: is the job learning, is it learning by heart, has it run too long, has it blown up?

Pure: two series of losses in, one verdict out. Knows nothing of smdebug, files or networks. Names, parameters and
defaults are those of AWS's page `debugger-built-in-rules` (SageMaker developer guide). AWS published no source of these
rules and few formulas; where the page leaves room, the rule's docstring says which reading was chosen and why.

Words: a *train loss* is that of one batch, saved every few steps; an *evaluation* is one whole pass over the validation
split, with the mean of its losses. Both have their place on one axis, the number of train steps done before.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from dogbreed.insight.evidence import Evidence, Losses, Point, Series
from dogbreed.insight.rules.common import Need, times, verdict
from dogbreed.insight.verdicts import Status, Verdict

JUDGED = "losses"
"""Among a verdict's details: which losses it is about, ``EVAL`` or ``TRAIN``."""
_HIDDEN_PERCENT = 5.0
"""A loss that may have fallen by so much is not said to have stayed."""
_NEIGHBOURS = 0.6745 * math.sqrt(2)
"""Median of the absolute difference of two draws from a normal distribution, in standard deviations."""
_MOST_CHANCE = 20.0
"""In logarithms, as far as numbers go."""
_FEWEST = 3
"""Losses in a third, at least, to say that they stayed: the noise of fewer may seem small by chance."""
_NO_LOSS = 1e-12
"""Has nowhere left to fall."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossNotDecreasing:
    """Fires when the loss does not decrease at an adequate rate.

    Timing, from the page: a loss is compared with the newest one that is at least `num_steps` older, and the next
    comparison follows at least `num_steps` later (`comparisons`).

    The rule of 2019 had one threshold: fire when the loss *rose* by `diff_percent` or more, which with its default of 0
    also caught a flat loss. The page of today has two, and this is the reading here (`breaks`): a rise fires above
    `increase_threshold_percent`, a fall or a flat loss fires below `diff_percent`.

    The page gives `mode` the default GLOBAL and says beside it that EVAL, TRAIN and GLOBAL are tried in this order.
    EVAL first is the reading here: two batches in a row differ by more than either threshold in any healthy job, while
    the means of whole passes do not. TRAIN is taken when the evaluations allow no comparison and no more of them can
    come; GLOBAL mixes the two and is not offered.

    Train losses are compared once, over the whole job, and not batch by batch: the mean of the first third with that of
    the last, both of logarithms, with what chance may make of them (`_Trend`). A rise or a fall is one that exceeds
    chance; a loss is said not to fall only where chance hides less than 5 %. Where it hides more, there is not enough
    data.

    Attributes:
        num_steps: train steps between two compared losses, at least.
        diff_percent: a fall of less is not enough.
        increase_threshold_percent: a rise of up to this is tolerated.
        mode: ``EVAL``, ``TRAIN``, or empty to try them in this order.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOSSES})

    num_steps: int = 10
    diff_percent: float = 0.1
    increase_threshold_percent: float = 5.0
    mode: Literal["EVAL", "TRAIN", ""] = ""

    def judge(self, evidence: Evidence) -> Verdict:
        """Judges the losses."""
        return self.evaluate(evidence.losses, ongoing=evidence.ongoing)

    def evaluate(self, losses: Losses, *, ongoing: bool = False) -> Verdict:
        """Judges the evaluations, or the train losses when these do not suffice.

        Args:
            losses: of the job so far.
            ongoing: more may come, so that train losses are judged only where ``mode`` asks for them.
        """
        if self.mode != "TRAIN":
            pairs = self.comparisons(_finite(losses.evaluation))
            if pairs:
                return self._judge(pairs)
        if self.mode == "TRAIN" or not (self.mode or ongoing):
            trend = _Trend.of(_finite(losses.train))
            if trend is not None and trend.steps >= self.num_steps:
                return self._judge_trend(trend)
        evaluations, batches = times(len(losses.evaluation), "evaluation"), times(len(losses.train), "train loss")
        two = f"two finite evaluations that are at least num_steps={self.num_steps} steps apart"
        three = f"three finite train losses over at least {self.num_steps} steps"
        found, needed = {
            "EVAL": (evaluations, two),
            "TRAIN": (batches, three),
            "": (f"{evaluations} and {batches}", two if ongoing else f"{two}, or {three}"),
        }[self.mode]
        return verdict(
            self,
            Status.NOT_ENOUGH_DATA,
            evidence=f"The job has {found}; {needed} are needed.",
            recommendation="Nothing to do while the job runs: more is still to come."
            if ongoing
            else "Train for more steps: more epochs, or a smaller batch size.",
        )

    def comparisons(self, series: Series) -> list[tuple[Point, Point]]:
        """Which loss is compared with which: pairs of an old and a new point."""
        steps = [point.step for point in series]
        pairs: list[tuple[Point, Point]] = []
        for new in series:
            if pairs and new.step < pairs[-1][1].step + self.num_steps:
                continue
            older = bisect_right(steps, new.step - self.num_steps)
            if older:
                pairs.append((series[older - 1], new))
        return pairs

    def breaks(self, old: float, new: float) -> bool:
        """Whether the loss rose too much or fell too little, see the class. A loss of 0 has nowhere left to fall."""
        if old == 0:
            return new > 0
        change_percent = (new - old) / abs(old) * 100
        if change_percent > 0:
            return change_percent > self.increase_threshold_percent
        return -change_percent < self.diff_percent

    def _judge(self, pairs: Sequence[tuple[Point, Point]]) -> Verdict:
        """The verdict on evaluations."""
        broken = [pair for pair in pairs if self.breaks(pair[0].value, pair[1].value)]
        if not broken:
            first, last = pairs[0][0], pairs[-1][1]
            return verdict(
                self,
                Status.NO_ISSUES_FOUND,
                evidence=f"The evaluation loss went from {first.value:.4g} at step {first.step} to {last.value:.4g} at "
                f"step {last.step} and passed all {len(pairs)} comparisons.",
                datapoints=len(pairs),
                details={JUDGED: "EVAL"},
            )
        old, new = broken[0]
        kind = "rose" if new.value > old.value else "did not fall" if new.value == old.value else "fell only"
        amount = "" if old.value in (new.value, 0) else f" by {_percent(old.value, new.value)}"
        return verdict(
            self,
            Status.ISSUES_FOUND,
            evidence=f"The evaluation loss {kind}{amount}, from {old.value:.4g} at step {old.step} to {new.value:.4g} "
            f"at step {new.step} ({self._limit(rose=new.value > old.value)}); {len(broken)} of {len(pairs)} "
            f"comparisons failed.",
            recommendation=self._advice(late=2 * pairs.index(broken[0]) >= len(pairs), rose=new.value > old.value),
            violations=len(broken),
            datapoints=len(pairs),
            details={JUDGED: "EVAL"},
        )

    def _judge_trend(self, trend: _Trend) -> Verdict:
        """The verdict on train losses."""
        rose = trend.least > 1 + self.increase_threshold_percent / 100
        fell = trend.most <= 1 - self.diff_percent / 100 or trend.old <= 2 * _NO_LOSS
        stayed = trend.taken >= _FEWEST and trend.least >= 1 - max(self.diff_percent, _HIDDEN_PERCENT) / 100
        told = (
            f"from {trend.old:.4g} to {trend.new:.4g}, which are the means of the first and the last {trend.taken} of "
            f"{times(trend.losses, 'train loss')}. Batches vary by {trend.noise * 100:.2g} %, so chance alone may "
            f"change this by {(math.exp(min(trend.chance, _MOST_CHANCE)) - 1) * 100:.2g} %"
        )
        went = f"{'rose' if trend.new > trend.old else 'fell'} by {_percent(trend.old, trend.new)}"
        if not (rose or fell or stayed):
            return verdict(
                self,
                Status.NOT_ENOUGH_DATA,
                evidence=f"The train loss {went}, {told}: too much to say whether it falls. More train losses are "
                f"needed, or two evaluations at least num_steps={self.num_steps} steps apart.",
                recommendation="Train for more steps: more epochs, or a smaller batch size.",
                datapoints=trend.losses,
                details={JUDGED: "TRAIN"},
            )
        broken = rose or not fell
        return verdict(
            self,
            Status.ISSUES_FOUND if broken else Status.NO_ISSUES_FOUND,
            evidence=f"The train loss {went}, {told} ({self._limit(rose=rose)}).",
            recommendation=self._advice(late=False, rose=rose) if broken else "",
            violations=int(broken),
            datapoints=trend.losses,
            details={JUDGED: "TRAIN"},
        )

    def _limit(self, *, rose: bool) -> str:
        return (
            f"a rise of {self.increase_threshold_percent:g} % is tolerated"
            if rose
            else f"a fall of {self.diff_percent:g} % is expected"
        )

    def _advice(self, *, late: bool, rose: bool) -> str:
        if late:
            return "From there on the job gained little: fewer epochs or a smaller patience would save the time."
        if rose:
            return "Lower lr by a factor of 3 to 10: its steps lead past the minimum."
        return "Raise lr by a factor of 3 to 10, or let more learn (trainable=last_stage): the job hardly moves."


@dataclass(frozen=True, slots=True, kw_only=True)
class Overfit:
    """Fires when the validation loss stays above the train loss by more than a ratio.

    The page: (mean validation loss - mean train loss) / mean train loss > `ratio_threshold` for more than `patience`
    evaluations. It does not say over which losses the means go. Here a comparison is made at every evaluation, between
    its own mean and the mean of the train losses saved since the evaluation before, and the evaluations over the
    threshold must follow one another: one good evaluation starts the count again.

    Train losses are measured with dropout, augmentation and the weights of the moment, so they are too high rather than
    too low: a validation loss above them is rarely an accident.

    Attributes:
        start_step: evaluations before this step are left out.
        patience: evaluations over the threshold in a row that are tolerated.
        ratio_threshold: share of the train loss by which the validation loss may be higher.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOSSES})

    start_step: int = 0
    patience: int = 1
    ratio_threshold: float = 0.1

    def judge(self, evidence: Evidence) -> Verdict:
        """Judges the losses."""
        return self.evaluate(evidence.losses)

    def evaluate(self, losses: Losses) -> Verdict:
        """Compares every evaluation with the training before it."""
        pairs = [pair for pair in _epochs(losses) if pair[1].step >= self.start_step]
        needed = self.patience + 1
        if len(pairs) < needed:
            found = f"{times(len(losses.evaluation), 'evaluation')} and {times(len(losses.train), 'train loss')}"
            since = f" from step {self.start_step} on" if self.start_step else ""
            return verdict(
                self,
                Status.NOT_ENOUGH_DATA,
                evidence=f"The job has {found}, from which {times(len(pairs), 'comparison')} can be made{since}; at "
                f"least {needed} evaluations with a finite train loss since the one before are needed.",
                recommendation="Train for more epochs, or with a smaller batch size so that an epoch has more steps.",
                datapoints=len(pairs),
            )
        broken = 0
        streak = 0
        first: tuple[Point, Point] | None = None
        for train, evaluation in pairs:
            streak = streak + 1 if self._over(train.value, evaluation.value) else 0
            if streak > self.patience:
                broken += 1
                first = first or (train, evaluation)
        train, evaluation = first or pairs[-1]
        compared = (
            f"the validation loss was {evaluation.value:.4g} and the mean train loss before it {train.value:.4g}, a "
            f"difference of {_percent(train.value, evaluation.value, signed=True)} with a limit of "
            f"{self.ratio_threshold * 100:g} %"
        )
        if not broken:
            return verdict(
                self,
                Status.NO_ISSUES_FOUND,
                evidence=f"At the last of {times(len(pairs), 'evaluation')}, step {evaluation.step}, {compared}.",
                datapoints=len(pairs),
            )
        return verdict(
            self,
            Status.ISSUES_FOUND,
            evidence=f"At step {evaluation.step} {compared}; it was over the limit for {times(needed, 'evaluation')} "
            f"in a row then, and {broken} of {len(pairs)} evaluations fired.",
            recommendation="Look at the accuracy first: while that still rises, no harm is done. Else add images, use "
            "augment=crop, raise dropout or weight-decay, or let less learn (trainable=head).",
            violations=broken,
            datapoints=len(pairs),
        )

    def _over(self, train: float, evaluation: float) -> bool:
        if train == 0:
            return evaluation > 0
        return (evaluation - train) / train > self.ratio_threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Overtraining:
    """Fires when training went on although nothing improved any more.

    The page: the train loss does not improve for `patience_train` steps, the validation loss not for
    `patience_validation` steps, and an improvement counts from `delta` on. It says neither whether both must have
    stalled or either, nor whether `delta` is absolute. Here both must have, because single batches set no new optimum
    for five saves in any healthy job; a step is a saved train loss, or an evaluation; `delta` is absolute, in nats.

    Attributes:
        patience_train: saved train losses without a new optimum.
        patience_validation: evaluations without a new optimum.
        delta: how much lower than the optimum a loss must be to be a new one.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOSSES})

    patience_train: int = 5
    patience_validation: int = 10
    delta: float = 0.01

    def judge(self, evidence: Evidence) -> Verdict:
        """Judges the losses."""
        return self.evaluate(evidence.losses)

    def evaluate(self, losses: Losses) -> Verdict:
        """Asks at every evaluation how long ago the optima were."""
        train, evaluation = _finite(losses.train), _finite(losses.evaluation)
        if len(train) <= self.patience_train or len(evaluation) <= self.patience_validation:
            return verdict(
                self,
                Status.NOT_ENOUGH_DATA,
                evidence=f"The job has {times(len(evaluation), 'evaluation')} and {times(len(train), 'train loss')}; "
                f"at least {self.patience_validation + 1} and {self.patience_train + 1} are needed before a stall of "
                f"{self.patience_validation} evaluations and {self.patience_train} train losses can show.",
                recommendation="Nothing to do for a job this short: it cannot have run on for long without improving.",
            )
        waited_train = self._waited(train)
        waited_evaluation = self._waited(evaluation)
        steps = [point.step for point in train]
        stalled: list[int] = []
        for position, point in enumerate(evaluation):
            latest = bisect_right(steps, point.step - 1) - 1
            if (
                latest >= 0
                and waited_train[latest] >= self.patience_train
                and waited_evaluation[position] >= self.patience_validation
            ):
                stalled.append(position)
        if not stalled:
            return verdict(
                self,
                Status.NO_ISSUES_FOUND,
                evidence=f"At the end the last improvement by {self.delta:g} or more was "
                f"{times(waited_evaluation[-1], 'evaluation')} ago (limit {self.patience_validation}) and "
                f"{times(waited_train[-1], 'saved train loss')} ago (limit "
                f"{self.patience_train}); the rule fires when both limits are reached.",
                datapoints=len(evaluation),
            )
        first = stalled[0]
        best = evaluation[first - waited_evaluation[first]]
        return verdict(
            self,
            Status.ISSUES_FOUND,
            evidence=f"At step {evaluation[first].step} the validation loss had not improved on {best.value:.4g} of "
            f"step {best.step} by {self.delta:g} for {times(waited_evaluation[first], 'evaluation')} (limit "
            f"{self.patience_validation}), nor had the train loss for its last {self.patience_train} saves; "
            f"{len(stalled)} of {times(len(evaluation), 'evaluation')} fired.",
            recommendation=f"Stop early: set patience below {self.patience_validation}, or fewer epochs. Only time was "
            f"lost: the bundle holds the best epoch.",
            violations=len(stalled),
            datapoints=len(evaluation),
        )

    def _waited(self, series: Series) -> list[int]:
        """For each point, how many points ago the optimum then was."""
        waited: list[int] = []
        optimum = math.inf
        for point in series:
            if point.value <= optimum - self.delta:
                optimum = point.value
                waited.append(0)
            else:
                waited.append(waited[-1] + 1)
        return waited


@dataclass(frozen=True, slots=True)
class _Trend:
    """Where the losses of single batches went over a whole job, and how far chance may have carried them.

    Logarithms are compared, because batches vary in proportion to their loss: one that varies by 10 % does so at 4 nats
    and at 0.4. Noise is the median of the differences between neighbours, scaled to the standard deviation of a normal
    distribution: neither the trend nor a single jump (a learning rate so high that the first steps lead from 4 to 8,000
    nats) is taken for noise. Chance is two standard errors of the difference of the means, and more with few losses, of
    which the noise is little known.

    Attributes:
        old: mean of the first third, in nats.
        new: mean of the last third.
        taken: losses in either.
        losses: all of them.
        steps: between the middles of the two.
        noise: standard deviation of a single logarithm.
        chance: by how much the logarithm of ``new / old`` may be off.
    """

    old: float
    new: float
    taken: int
    losses: int
    steps: float
    noise: float
    chance: float

    @classmethod
    def of(cls, series: Series) -> _Trend | None:
        """The trend of finite losses; None of fewer than three."""
        if len(series) < 3:
            return None
        taken = len(series) // 3
        logs = [math.log(max(point.value, _NO_LOSS)) for point in series]
        noise = statistics.median(abs(after - before) for before, after in pairwise(logs)) / _NEIGHBOURS
        first, last = series[:taken], series[-taken:]
        return cls(
            old=math.exp(statistics.fmean(logs[:taken])),
            new=math.exp(statistics.fmean(logs[-taken:])),
            taken=taken,
            losses=len(series),
            steps=statistics.fmean(point.step for point in last) - statistics.fmean(point.step for point in first),
            noise=noise,
            chance=(2 + 6 / (len(series) - 1)) * noise * math.sqrt(2 / taken),
        )

    @property
    def least(self) -> float:
        """The lowest ratio of new to old that chance allows."""
        return self.new / self.old * math.exp(-self.chance)

    @property
    def most(self) -> float:
        """The highest."""
        return self.new / self.old * math.exp(min(self.chance, _MOST_CHANCE))


def _finite(series: Series) -> Series:
    """Without NaN and infinity, which are `ExplodingTensor`'s to report."""
    return tuple(point for point in series if math.isfinite(point.value))


def _epochs(losses: Losses) -> list[tuple[Point, Point]]:
    """Each evaluation with the mean of the train losses since the evaluation before; without such losses, left out."""
    train = _finite(losses.train)
    pairs: list[tuple[Point, Point]] = []
    start = 0
    for evaluation in losses.evaluation:
        window = [point.value for point in train if start <= point.step < evaluation.step]
        start = evaluation.step
        if window and math.isfinite(evaluation.value):
            pairs.append((Point(start, sum(window) / len(window)), evaluation))
    return pairs


def _percent(old: float, new: float, *, signed: bool = False) -> str:
    if old == 0:
        return "infinitely many %"
    change = (new - old) / abs(old) * 100
    return f"{change:+.3g} %" if signed else f"{abs(change):.3g} %"
