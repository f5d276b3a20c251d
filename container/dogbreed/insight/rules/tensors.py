"""Rules on gradients, weights and activations: does the network still learn, and can it?

Pure: statistics of tensors in, one verdict out. Names, parameters and defaults are those of AWS's page
`debugger-built-in-rules` (SageMaker developer guide) and of the SageMaker SDK; AWS published no source of these rules.
Where the page leaves room, the rule's docstring says which reading was chosen and why. Parameters that name tensors by
a regex default to empty here: AWS's defaults (`.*relu_output`, ...) match module *names*, which finds 17 ReLUs of a
ResNet-18, 3 of 120 of a DenseNet-121 and none of a VGG-16, while the hook chooses modules by their type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from dogbreed.insight.evidence import Evidence, Reading, Readings
from dogbreed.insight.rules.common import Need, listed, no_tensors, not_enough, select, times, verdict
from dogbreed.insight.verdicts import Status, Verdict

_STATISTICS = ("min", "max", "mean", "variance", "abs_mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class VanishingGradient:
    """Fires when the gradients of a tensor become extremely small.

    The page: the mean of the absolute values of a gradient tensor is below `threshold`. Every tensor is looked at by
    itself, as the rule's public tests of 2019 did.

    Attributes:
        threshold: mean absolute gradient below which it counts as vanished.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})

    threshold: float = 1e-7

    def judge(self, evidence: Evidence) -> Verdict:
        """Looks at the gradients saved in training."""
        gradients = evidence.tensors.get("gradients", {})
        found = list(_readings(gradients))
        if not found:
            return not_enough(self, no_tensors(evidence, "gradients", "gradients"), _SAVE_MORE)
        broken = [(name, one) for name, one in found if one.values["abs_mean"] < self.threshold]
        if not broken:
            name, one = min(found, key=lambda pair: _or_inf(pair[1].values["abs_mean"]))
            return verdict(
                self,
                Status.NO_ISSUES_FOUND,
                evidence=f"The smallest mean absolute gradient was {one.values['abs_mean']:.3g}, of {name} at step "
                f"{one.step} (limit {self.threshold:g}); {times(len(gradients), 'tensor')} in "
                f"{times(len(found), 'reading')}.",
                datapoints=len(found),
            )
        name, one = broken[0]
        return verdict(
            self,
            Status.ISSUES_FOUND,
            evidence=f"The mean absolute gradient of {name} was {one.values['abs_mean']:.3g} at step {one.step} (limit "
            f"{self.threshold:g}); {times(len(broken), 'reading')} of {len(found)} fired, of "
            f"{listed(_names(broken))}.",
            recommendation="These layers learn nothing. Use a network with BatchNorm and skip connections, start from "
            "pretrained=true, or look for a layer that is always 0 (DeadRelu, AllZero) behind them.",
            violations=len(broken),
            datapoints=len(found),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplodingTensor:
    """Fires when a tensor holds NaN, or infinity unless `only_nan`.

    The page inspects every saved tensor when none is selected. Losses are numbers and inspected as such; of the others
    the smallest and the largest element are enough, because both become NaN when one element is.

    Attributes:
        collection_names: collections to inspect, separated by blanks or `+`.
        tensor_regex: names to inspect; without both, everything that was saved.
        only_nan: infinity does not count.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOSSES, Need.GRADIENTS, Need.WEIGHTS})

    collection_names: str | None = None
    tensor_regex: str | None = None
    only_nan: bool = False

    def judge(self, evidence: Evidence) -> Verdict:
        """Looks for the first value that is no number."""
        found = [
            (step, name, value)
            for name, one in _readings(select(evidence, self.collection_names, self.tensor_regex))
            for step, value in [(one.step, self._worst(one))]
        ]
        inspected = sorted({name for _, name, _ in found})
        losses = 0
        if self._takes_losses():
            for name, series in (("train", evidence.losses.train), ("evaluation", evidence.losses.evaluation)):
                losses += len(series)
                found += [(point.step, f"the {name} loss", point.value) for point in series]
        if not found:
            if self.collection_names or self.tensor_regex:
                return not_enough(self, _nothing_selected(evidence))
            return not_enough(
                self,
                "The job saved no losses and no tensors; at least 1 is needed.",
                "The log says why nothing is saved.",
            )
        scope = f"{times(losses, 'saved loss')} and {times(len(inspected), 'tensor')}"
        broken = sorted((one for one in found if self._exploded(one[2])), key=lambda one: one[0])
        if not broken:
            return verdict(
                self,
                Status.NO_ISSUES_FOUND,
                evidence=f"All values of {scope} are finite." if not self.only_nan else f"No value of {scope} is NaN.",
                datapoints=len(found),
            )
        step, name, value = broken[0]
        return verdict(
            self,
            Status.ISSUES_FOUND,
            evidence=f"{name[0].upper()}{name[1:]} was {value} at step {step}, the first of "
            f"{times(len(broken), 'reading')} among {len(found)} of {scope}.",
            recommendation="Lower lr by a factor of 10, or use precision=fp32.",
            violations=len(broken),
            datapoints=len(found),
        )

    def _takes_losses(self) -> bool:
        names = self.collection_names or ""
        regex = self.tensor_regex
        return not (names or regex) or "losses" in names or (regex is not None and bool(re.search(regex, "loss")))

    def _worst(self, reading: Reading) -> float:
        values = (reading.values["min"], reading.values["max"])
        return next((value for value in values if self._exploded(value)), values[1])

    def _exploded(self, value: float) -> bool:
        return math.isnan(value) or (math.isinf(value) and not self.only_nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoorWeightInitialization:
    """Fires when the first steps show that the initial weights are bad.

    The page names three signs within the first `steps` steps, each enough by itself:

    (a) the largest and the smallest variance of the activations' inputs differ between layers by more than the factor
        `threshold` (the page says once "variance of activation inputs across layers" and once "variance of weights per
        layer"; the parameter `activation_inputs_regex` decides for the first);
    (b) the smallest distance between the 95th and the 5th percentile of a gradient is below `distribution_range`;
    (c) the loss has no new minimum for `patience` steps.

    A sign whose tensors are missing is left out and named; at least one must be there.

    Attributes:
        activation_inputs_regex: names of activation inputs; None takes those of all ReLU modules.
        threshold: factor between the variances.
        distribution_range: width of a gradient's distribution, at least.
        patience: steps without a new minimum of the loss that are tolerated.
        steps: how many of the first steps are looked at.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOSSES, Need.GRADIENTS, Need.RELU_INPUTS, Need.FIRST_STEPS})

    activation_inputs_regex: str | None = None
    threshold: float = 10.0
    distribution_range: float = 0.001
    patience: int = 5
    steps: int = 10

    def judge(self, evidence: Evidence) -> Verdict:
        """Looks for each of the three signs."""
        signs = {
            "inputs of two ReLU modules": self._variances(evidence),
            "gradients": self._gradients(evidence),
            f"losses of more than {self.patience} of the first {self.steps} steps": self._losses(evidence),
        }
        missing = [what for what, sign in signs.items() if sign is None]
        known = [sign for sign in signs.values() if sign is not None]
        absent = f" Not looked at, because not saved: {'; '.join(missing)}." if missing else ""
        if not known:
            return not_enough(
                self,
                f"None of the three signs can be looked for: the first {self.steps} train steps have no "
                f"{', no '.join(missing)}.",
                _SAVE_MORE,
            )
        broken = [text for fired, text in known if fired]
        return verdict(
            self,
            Status.ISSUES_FOUND if broken else Status.NO_ISSUES_FOUND,
            evidence=" ".join(broken or [text for _, text in known]) + absent,
            recommendation="Start from pretrained weights, or initialise layers before a ReLU with He's method "
            "(nn.init.kaiming_normal_) and use BatchNorm; then see whether the loss falls."
            if broken
            else "",
            violations=len(broken),
            datapoints=len(known),
        )

    def _variances(self, evidence: Evidence) -> tuple[bool, str] | None:
        inputs = evidence.tensors.get("relu_input", {})
        if self.activation_inputs_regex is not None:
            inputs = {name: one for name, one in inputs.items() if re.search(self.activation_inputs_regex, name)}
        worst: tuple[float, int, tuple[str, float], tuple[str, float]] | None = None
        for step in sorted({one.step for _, one in _readings(inputs) if one.step < self.steps}):
            layers = [(name, one.values["variance"]) for name, one in _readings(inputs) if one.step == step]
            layers = [layer for layer in layers if math.isfinite(layer[1])]
            if len(layers) > 1:
                least, most = min(layers, key=lambda pair: pair[1]), max(layers, key=lambda pair: pair[1])
                ratio = most[1] / least[1] if least[1] else math.inf
                if worst is None or ratio > worst[0]:
                    worst = ratio, step, least, most
        if worst is None:
            return None
        ratio, step, least, most = worst
        return (
            ratio > self.threshold,
            f"The variance of activation inputs differs between layers by a factor of up to {ratio:.3g} (limit "
            f"{self.threshold:g}): at step {step} {most[0]} has {most[1]:.3g} and {least[0]} {least[1]:.3g}.",
        )

    def _gradients(self, evidence: Evidence) -> tuple[bool, str] | None:
        spreads = [
            (one.values["p95"] - one.values["p5"], name, one.step)
            for name, one in _readings(evidence.tensors.get("gradients", {}))
            if one.step < self.steps and "p5" in one.values
        ]
        spreads = [spread for spread in spreads if math.isfinite(spread[0])]
        if not spreads:
            return None
        spread, name, step = min(spreads)
        return (
            spread < self.distribution_range,
            f"The narrowest gradient was that of {name} at step {step}, where 90 % of its values lie within "
            f"{spread:.3g} (limit {self.distribution_range:g}).",
        )

    def _losses(self, evidence: Evidence) -> tuple[bool, str] | None:
        points = [point for point in evidence.losses.train if point.step < self.steps]
        if len(points) <= self.patience:
            return None
        best, waited = points[0], 0
        for point in points[1:]:
            if point.value < best.value:
                best, waited = point, 0
            else:
                waited += 1
            if waited >= self.patience:
                return True, (
                    f"The train loss had no new minimum for {self.patience} of the first {self.steps} steps: "
                    f"{best.value:.4g} at step {best.step} was not undercut until step {point.step}. Single batches "
                    f"vary; look at the curve before acting."
                )
        return False, f"The train loss fell to {best.value:.4g} at step {best.step}."


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadRelu:
    """Fires when most ReLUs of a layer are never active.

    The page: a ReLU is dead when it is active less than `threshold_inactivity` percent; the rule fires when more than
    `threshold_layer` percent of a layer are dead. The unit of counting is not said: here it is a channel or a feature,
    and the share is taken over batch and image positions, because all positions of a channel share their weights.

    Attributes:
        tensor_regex: names of activation outputs; None takes those of all ReLU modules.
        threshold_inactivity: percent of positions at which a living unit is above 0, at least.
        threshold_layer: percent of a layer's units that may be dead.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.RELU_OUTPUTS})

    tensor_regex: str | None = None
    threshold_inactivity: float = 1.0
    threshold_layer: float = 50.0

    def judge(self, evidence: Evidence) -> Verdict:
        """Counts the dead units of every layer and step."""
        outputs = _matching(evidence.tensors.get("relu_output", {}), self.tensor_regex)
        return _judge_units(
            self,
            outputs,
            inactivity=self.threshold_inactivity,
            layer=self.threshold_layer,
            state="dead",
            missing=no_tensors(evidence, "relu_output", "outputs of ReLU modules"),
            recommendation="Lower lr, or warm it up; a large step pushed biases so low that these units answer 0 to "
            "everything and get no gradient any more. LeakyReLU cannot die.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SaturatedActivation:
    """Fires when most units of a Tanh or Sigmoid layer are saturated.

    The page: a node is active while its input lies between the thresholds of its kind; it is saturated when it is
    active in less than `threshold_inactivity` percent; the rule fires when more than `threshold_layer` percent of a
    layer's nodes are. Units are counted as by `DeadRelu`.

    Attributes:
        collection_names: ``tanh_input``, ``sigmoid_input`` or both; None takes both.
        tensor_regex: names of activation inputs; None takes those of all Tanh and Sigmoid modules.
        threshold_tanh_min: smallest input of an active Tanh.
        threshold_tanh_max: largest input of an active Tanh.
        threshold_sigmoid_min: smallest input of an active Sigmoid.
        threshold_sigmoid_max: largest input of an active Sigmoid.
        threshold_inactivity: percent of positions at which an unsaturated unit is active, at least.
        threshold_layer: percent of a layer's units that may be saturated.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.BOUNDED_INPUTS})

    collection_names: str | None = None
    tensor_regex: str | None = None
    threshold_tanh_min: float = -9.4999
    threshold_tanh_max: float = 9.4999
    threshold_sigmoid_min: float = -23.0
    threshold_sigmoid_max: float = 16.99999
    threshold_inactivity: float = 1.0
    threshold_layer: float = 50.0

    def judge(self, evidence: Evidence) -> Verdict:
        """Counts the saturated units of every layer and step."""
        bounded = {
            collection: evidence.tensors[collection]
            for collection in ("tanh_input", "sigmoid_input")
            if collection in evidence.tensors and (not self.collection_names or collection in self.collection_names)
        }
        inputs = {name: readings for tensors in bounded.values() for name, readings in tensors.items()}
        return _judge_units(
            self,
            _matching(inputs, self.tensor_regex),
            inactivity=self.threshold_inactivity,
            layer=self.threshold_layer,
            state="saturated",
            missing=no_tensors(evidence, "tanh_input", "inputs of Tanh or Sigmoid modules"),
            recommendation="Lower lr or raise weight-decay, normalise the inputs of these layers (BatchNorm), or use "
            "another activation: a saturated unit passes no gradient on.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdateRatio:
    """Fires when weights change too much or hardly at all between two saved steps.

    The page compares the current step with the previous saved one and asks for a ratio of update to weight within
    [`small_threshold`, `large_threshold`]; it gives no formula. Here it is mean(|w - w_before|) / (mean(|w_before|) +
    `epsilon`) over up to 4096 elements of the tensor. Weights that do not learn are left out: theirs is 0 by intent.

    Attributes:
        num_steps: save the weights every so many steps (AWS's `train.save_interval`); None takes the hook's interval.
        large_threshold: largest ratio.
        small_threshold: smallest ratio.
        epsilon: keeps the ratio finite for weights that were all 0.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.WEIGHTS})

    num_steps: int | None = None
    large_threshold: float = 10.0
    small_threshold: float = 1e-8
    epsilon: float = 1e-9

    def judge(self, evidence: Evidence) -> Verdict:
        """Looks at every tensor between every two of its readings."""
        ratios: list[tuple[float, str, int, int]] = []
        weights = evidence.tensors.get("weights", {})
        for name, readings in weights.items():
            for before, now in pairwise(readings):
                if "change" in now.values and now.values.get("learns", 1.0):
                    ratio = now.values["change"] / (now.values["before"] + self.epsilon)
                    ratios.append((ratio, name, before.step, now.step))
        if not ratios:
            steps = sorted({one.step for _, one in _readings(weights)})
            found = f"weights at {times(len(steps), 'step')}" if steps else "no weights"
            return not_enough(
                self,
                f"The job saved {found}; weights that learn are needed at 2 train steps."
                + (f" {evidence.missing['weights']}" if "weights" in evidence.missing else ""),
                "Train for more steps, or save weights more often: WeightUpdateRatio:num_steps=10.",
            )
        broken = [one for one in ratios if not self.small_threshold <= one[0] <= self.large_threshold]
        ratio, name, old, new = min(broken or ratios, key=lambda one: (one[3], -abs(math.log(max(one[0], 1e-30)))))
        if not broken:
            least, most = min(ratios), max(ratios)
            return verdict(
                self,
                Status.NO_ISSUES_FOUND,
                evidence=f"Updates were between {least[0]:.3g} of the weights ({least[1]}, steps {least[2]} to "
                f"{least[3]}) and {most[0]:.3g} ({most[1]}, steps {most[2]} to {most[3]}); allowed is "
                f"{self.small_threshold:g} to {self.large_threshold:g}.",
                datapoints=len(ratios),
            )
        large = ratio > self.large_threshold or math.isnan(ratio)
        return verdict(
            self,
            Status.ISSUES_FOUND,
            evidence=f"{name} changed by {ratio:.3g} times its size between steps {old} and {new} "
            f"({'at most' if large else 'at least'} "
            f"{self.large_threshold if large else self.small_threshold:g} is expected); {len(broken)} of "
            f"{times(len(ratios), 'update')} fired, of {listed(sorted({one[1] for one in broken}))}.",
            recommendation="Lower lr by a factor of 10, or warm it up."
            if large
            else "Raise lr; if only some layers stand still, see whether a gradient reaches them (VanishingGradient).",
            violations=len(broken),
            datapoints=len(ratios),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AllZero:
    """Fires when a tensor is all, or mostly, zeros.

    The page: the share of zeros reaches `threshold` percent ("or more" is our reading of "reaches"). At least one of
    the two selectors must be given.

    Attributes:
        collection_names: collections to inspect, separated by blanks or `+`.
        tensor_regex: names to inspect.
        threshold: percent of elements that are exactly 0.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS, Need.WEIGHTS, Need.RELU_OUTPUTS})

    collection_names: str | None = None
    tensor_regex: str | None = None
    threshold: float = 100.0

    def judge(self, evidence: Evidence) -> Verdict:
        """Looks at every reading of the selected tensors."""
        return _judge_each(
            self,
            evidence,
            broken=lambda one: one.values["zeros"] * 100 >= self.threshold,
            key=lambda one: one.values["zeros"],
            told=lambda one: f"{one.values['zeros'] * 100:.3g} % zeros",
            limit=f"from {self.threshold:g} % on it fires",
            recommendation="A layer of zeros passes nothing on: see that its parameters are initialised and not frozen "
            "(requires_grad), and that a gradient reaches it.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UnchangedTensor:
    """Fires when a tensor does not change any more.

    The page: numpy.allclose holds over the last `num_steps` steps at which the tensor was saved. Here statistics are
    saved rather than elements: smallest, largest and mean value, variance and mean absolute value must be close, and
    of weights the largest change of up to 4096 elements must be within `atol` + `rtol` times their mean size.

    Attributes:
        collection_names: collections to inspect, separated by blanks or `+`.
        tensor_regex: names to inspect; at least one selector must be given.
        num_steps: saved steps in a row that must be equal.
        rtol: relative tolerance.
        atol: absolute tolerance.
        equal_nan: NaN equals NaN.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS, Need.WEIGHTS})

    collection_names: str | None = None
    tensor_regex: str | None = None
    num_steps: int = 3
    rtol: float = 1e-5
    atol: float = 1e-8
    equal_nan: bool = False

    def judge(self, evidence: Evidence) -> Verdict:
        """Looks at every `num_steps` readings in a row of the selected tensors."""
        tensors = select(evidence, self.collection_names, self.tensor_regex)
        if not tensors:
            return not_enough(self, _nothing_selected(evidence))
        windows = [
            (name, readings[end - self.num_steps : end])
            for name, readings in tensors.items()
            for end in range(self.num_steps, len(readings) + 1)
        ]
        if not windows:
            most = max(len(readings) for readings in tensors.values())
            return not_enough(
                self,
                f"The selected tensors were saved at {times(most, 'step')} at most; {self.num_steps} are needed.",
                "Train for more steps.",
            )
        broken = [
            (name, window)
            for name, window in windows
            if all(self._close(before, now) for before, now in pairwise(window))
        ]
        if not broken:
            return verdict(
                self,
                Status.NO_ISSUES_FOUND,
                evidence=f"All {times(len(tensors), 'tensor')} changed within every {self.num_steps} saved steps.",
                datapoints=len(windows),
            )
        name, window = broken[0]
        return verdict(
            self,
            Status.ISSUES_FOUND,
            evidence=f"{name} was the same at steps {', '.join(str(one.step) for one in window)}; "
            f"{times(len({name for name, _ in broken}), 'tensor')} of {len(tensors)} stood still at some time: "
            f"{listed(sorted({name for name, _ in broken}))}.",
            recommendation="See whether these parameters are frozen (trainable=), reached by a gradient "
            "(VanishingGradient), and given to the optimizer.",
            violations=len(broken),
            datapoints=len(windows),
        )

    def _close(self, before: Reading, now: Reading) -> bool:
        one = np.array([before.values[name] for name in _STATISTICS])
        other = np.array([now.values[name] for name in _STATISTICS])
        if not np.allclose(other, one, rtol=self.rtol, atol=self.atol, equal_nan=self.equal_nan):
            return False
        change = now.values.get("largest_change")
        return change is None or change <= self.atol + self.rtol * now.values["before"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorVariance:
    """Fires when the variance of a tensor is out of bounds.

    The page: above `max_threshold` or below `min_threshold`; None switches that side off. At least one selector, and
    one bound, must be given.

    Attributes:
        collection_names: collections to inspect, separated by blanks or `+`.
        tensor_regex: names to inspect.
        max_threshold: largest variance.
        min_threshold: smallest variance.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS, Need.WEIGHTS, Need.RELU_INPUTS, Need.RELU_OUTPUTS})

    collection_names: str | None = None
    tensor_regex: str | None = None
    max_threshold: float | None = None
    min_threshold: float | None = None

    def judge(self, evidence: Evidence) -> Verdict:
        """Looks at every reading of the selected tensors."""
        low = -math.inf if self.min_threshold is None else self.min_threshold
        high = math.inf if self.max_threshold is None else self.max_threshold
        return _judge_each(
            self,
            evidence,
            broken=lambda one: not low <= one.values["variance"] <= high,
            key=lambda one: one.values["variance"],
            told=lambda one: f"variance {one.values['variance']:.3g}",
            limit=f"allowed is {low:g} to {high:g}",
            recommendation="A variance that grows from layer to layer or from step to step asks for a smaller lr, a "
            "better initialisation or BatchNorm; one near 0 for the opposite.",
        )


_SAVE_MORE = "The job's log says what the hook saves; see docs/insight.md for what each rule needs."


def _readings(tensors: Mapping[str, Readings]) -> Iterator[tuple[str, Reading]]:
    """Every reading with the name of its tensor, tensor by tensor."""
    for name, readings in tensors.items():
        for one in readings:
            yield name, one


def _matching(tensors: Mapping[str, Readings], regex: str | None) -> dict[str, Readings]:
    return {name: one for name, one in tensors.items() if regex is None or re.search(regex, name)}


def _names(found: Sequence[tuple[str, Reading]]) -> list[str]:
    return list(dict.fromkeys(name for name, _ in found))


def _or_inf(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _nothing_selected(evidence: Evidence) -> str:
    known = [f"{collection} ({len(tensors)})" for collection, tensors in evidence.tensors.items() if tensors]
    why = "; ".join(f"{collection}: {reason}" for collection, reason in evidence.missing.items())
    return f"No saved tensor is selected; saved are {', '.join(known) or 'none'}, by collection." + (
        f" Missing are {why}" if why else ""
    )


def _judge_each(
    rule: AllZero | TensorVariance,
    evidence: Evidence,
    *,
    broken: Callable[[Reading], bool],
    key: Callable[[Reading], float],
    told: Callable[[Reading], str],
    limit: str,
    recommendation: str,
) -> Verdict:
    """Judges every reading of the selected tensors by itself."""
    found = list(_readings(select(evidence, rule.collection_names, rule.tensor_regex)))
    if not found:
        return not_enough(rule, _nothing_selected(evidence))
    fired = [pair for pair in found if broken(pair[1])]
    name, one = fired[0] if fired else max(found, key=lambda pair: key(pair[1]))
    share = (
        f"{len(fired)} of {times(len(found), 'reading')} fired, of {listed(_names(fired))}"
        if fired
        else (f"the largest of {times(len(found), 'reading')}")
    )
    return verdict(
        rule,
        Status.ISSUES_FOUND if fired else Status.NO_ISSUES_FOUND,
        evidence=f"{name} had {told(one)} at step {one.step} ({limit}); {share}.",
        recommendation=recommendation if fired else "",
        violations=len(fired),
        datapoints=len(found),
    )


def _judge_units(
    rule: DeadRelu | SaturatedActivation,
    tensors: Mapping[str, Readings],
    *,
    inactivity: float,
    layer: float,
    state: str,
    missing: str,
    recommendation: str,
) -> Verdict:
    """Judges the share of a layer's units that are active too seldom; both limits in percent."""
    shares = [
        (float(np.mean(one.units * 100 < inactivity)) * 100, name, one.step, len(one.units))
        for name, one in _readings(tensors)
        if one.units is not None and len(one.units)
    ]
    if not shares:
        return not_enough(rule, missing, _SAVE_MORE)
    broken = [share for share in shares if share[0] > layer]
    share, name, step, units = broken[0] if broken else max(shares)
    told = f"of the {units} units of {name} {share:.3g} % were {state} at step {step} (limit {layer:g} %)"
    if not broken:
        return verdict(
            rule,
            Status.NO_ISSUES_FOUND,
            evidence=f"At worst, {told}; {times(len(tensors), 'layer')} in {times(len(shares), 'reading')}.",
            datapoints=len(shares),
        )
    return verdict(
        rule,
        Status.ISSUES_FOUND,
        evidence=f"{told[0].upper()}{told[1:]}; {len(broken)} of {times(len(shares), 'reading')} fired, of "
        f"{listed(list(dict.fromkeys(share[1] for share in broken)))}.",
        recommendation=recommendation,
        violations=len(broken),
        datapoints=len(shares),
    )
