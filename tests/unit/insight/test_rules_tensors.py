import math

import pytest
from tests.unit.insight.evidence_made import losses, reading, tensors

from dogbreed.insight.evidence import Evidence
from dogbreed.insight.rules.tensors import (
    AllZero,
    DeadRelu,
    ExplodingTensor,
    PoorWeightInitialization,
    SaturatedActivation,
    TensorVariance,
    UnchangedTensor,
    VanishingGradient,
    WeightUpdateRatio,
)
from dogbreed.insight.verdicts import Status

FALLING = [2.0, 1.8, 1.7, 1.5, 1.4, 1.2, 1.1, 1.0, 0.9, 0.8]


def weights(*changes, **values):
    return [reading(0, **values)] + [
        reading(100 * (place + 1), change=change, largest_change=change, before=0.5, **values)
        for place, change in enumerate(changes)
    ]


def first_steps(*, spread=0.1, variances=(1.0, 2.0), train=FALLING):
    return Evidence(
        losses=losses(train),
        tensors={
            "gradients": {"gradient/a": tuple(reading(step, p5=-spread / 2, p95=spread / 2) for step in range(10))},
            "relu_input": {
                f"relu{layer}_input_0": (reading(0, variance=variance),) for layer, variance in enumerate(variances)
            },
        },
    )


# rule, evidence that must trigger it, what the verdict must say, and evidence that must not.
CASES = [
    (
        VanishingGradient(),
        tensors("gradients", gradient__a=[reading(0), reading(100, abs_mean=9e-8)]),
        ["gradient.a was 9e-08 at step 100", "limit 1e-07"],
        tensors("gradients", gradient__a=[reading(0), reading(100, abs_mean=1.1e-7)]),
    ),
    (
        ExplodingTensor(),
        tensors("weights", fc=[reading(0), reading(100, max=math.inf)]),
        ["Fc was inf at step 100"],
        tensors("weights", fc=[reading(0), reading(100)]),
    ),
    (
        ExplodingTensor(only_nan=True, collection_names="gradients"),
        tensors("gradients", a=[reading(0, min=math.nan, max=math.nan)]),
        ["nan at step 0"],
        tensors("gradients", a=[reading(0, max=math.inf)]),
    ),
    (
        PoorWeightInitialization(),
        first_steps(variances=(1.0, 10.5)),
        ["factor of up to 10.5 (limit 10)", "relu1_input_0 has 10.5"],
        first_steps(variances=(1.0, 9.5)),
    ),
    (
        PoorWeightInitialization(),
        first_steps(spread=0.0009),
        ["gradient/a at step 0", "within 0.0009 (limit 0.001)"],
        first_steps(spread=0.0011),
    ),
    (
        PoorWeightInitialization(),
        first_steps(train=[2.0, 2.1, 2.2, 2.1, 2.3, 2.4, 1.0, 0.9, 0.8, 0.7]),
        ["no new minimum for 5", "2 at step 0 was not undercut until step 5"],
        first_steps(train=[2.0, 2.1, 2.2, 2.1, 2.3, 1.9, 1.8, 1.7, 1.6, 1.5]),
    ),
    (
        DeadRelu(),
        tensors("relu_output", relu_output_0=[reading(0, units=[0.0, 0.009, 0.0, 0.5])]),
        ["Of the 4 units of relu_output_0 75 % were dead at step 0 (limit 50 %)"],
        tensors("relu_output", relu_output_0=[reading(0, units=[0.0, 0.011, 0.0, 0.5])]),
    ),
    (
        SaturatedActivation(),
        tensors("sigmoid_input", gate_input_0=[reading(3, units=[0.0, 0.0, 0.5])]),
        ["66.7 % were saturated at step 3"],
        tensors("tanh_input", gate_input_0=[reading(3, units=[0.0, 0.5, 0.5])]),
    ),
    (
        WeightUpdateRatio(),
        tensors("weights", fc=weights(0.01, 5.1)),
        ["fc changed by 10.2 times its size between steps 100 and 200 (at most 10"],
        tensors("weights", fc=weights(0.01, 4.9)),
    ),
    (
        WeightUpdateRatio(),
        tensors("weights", fc=weights(4e-9)),
        ["fc changed by 8e-09", "at least 1e-08"],
        tensors("weights", fc=weights(6e-9), frozen=weights(0.0, learns=0.0)),
    ),
    (
        AllZero(collection_names="weights"),
        tensors("weights", fc=[reading(0), reading(100, zeros=1.0)]),
        ["fc had 100 % zeros at step 100"],
        tensors("weights", fc=[reading(0), reading(100, zeros=0.99)]),
    ),
    (
        AllZero(tensor_regex="^fc", threshold=40),
        tensors("weights", fc=[reading(0, zeros=0.4)]),
        ["fc had 40 % zeros"],
        tensors("weights", fc=[reading(0, zeros=0.39)], conv=[reading(0, zeros=1.0)]),
    ),
    (
        # As in the rule's public tests: identical at the first three saves, fires at the third.
        UnchangedTensor(collection_names="weights"),
        tensors("weights", fc=weights(0.0, 0.0, mean=0.0)),
        ["fc was the same at steps 0, 100, 200"],
        tensors("weights", fc=weights(0.0, 1e-4, mean=0.0)),
    ),
    (
        UnchangedTensor(collection_names="gradients"),
        tensors("gradients", a=[reading(step, mean=1.0) for step in (0, 100, 200)]),
        ["a was the same"],
        tensors("gradients", a=[reading(step, mean=1.0 + step) for step in (0, 100, 200)]),
    ),
    (
        TensorVariance(tensor_regex="fc", max_threshold=2.0),
        tensors("weights", fc=[reading(0, variance=2.1)]),
        ["fc had variance 2.1 at step 0 (allowed is -inf to 2)"],
        tensors("weights", fc=[reading(0, variance=1.9)]),
    ),
    (
        TensorVariance(tensor_regex="fc", min_threshold=1e-3),
        tensors("weights", fc=[reading(0, variance=1e-4)]),
        ["variance 0.0001"],
        tensors("weights", fc=[reading(0, variance=1e-2)]),
    ),
]


@pytest.mark.parametrize(("rule", "sick", "told", "well"), CASES)
def test_a_rule_fires_on_its_case_with_evidence_and_not_on_the_other(rule, sick, told, well):
    verdict = rule.judge(sick)
    assert verdict.status is Status.ISSUES_FOUND
    assert verdict.violations > 0
    assert verdict.recommendation
    for words in told:
        assert words in verdict.evidence
    verdict = rule.judge(well)
    assert (verdict.status, verdict.violations) == (Status.NO_ISSUES_FOUND, 0)
    assert verdict.datapoints > 0


@pytest.mark.parametrize(
    ("rule", "missing"),
    [
        (VanishingGradient(), "No gradients were saved"),
        (ExplodingTensor(), "no losses and no tensors"),
        (ExplodingTensor(tensor_regex="fc"), "No saved tensor is selected"),
        (PoorWeightInitialization(), "no inputs of two ReLU modules, no gradients, no losses"),
        (DeadRelu(), "No outputs of ReLU modules were saved: the backbone is frozen."),
        (SaturatedActivation(), "No inputs of Tanh or Sigmoid modules"),
        (WeightUpdateRatio(), "no weights; weights that learn are needed at 2 train steps"),
        (AllZero(tensor_regex="fc"), "saved are none"),
        (UnchangedTensor(tensor_regex="fc"), "No saved tensor is selected"),
        (TensorVariance(tensor_regex="fc"), "No saved tensor is selected"),
    ],
)
def test_a_rule_without_its_tensors_says_which_are_missing(rule, missing):
    verdict = rule.judge(Evidence(missing={"relu_output": "the backbone is frozen."}))
    assert verdict.status is Status.NOT_ENOUGH_DATA
    assert missing in verdict.evidence


def test_poor_weight_initialization_evaluates_what_is_there_and_names_the_rest():
    verdict = PoorWeightInitialization().judge(Evidence(losses=losses(FALLING)))
    assert verdict.status is Status.NO_ISSUES_FOUND
    assert "Not looked at, because not saved: inputs of two ReLU modules; gradients." in verdict.evidence


def test_unchanged_tensor_says_how_many_saves_are_missing():
    verdict = UnchangedTensor(collection_names="weights").judge(tensors("weights", fc=weights(0.0)))
    assert "saved at 2 steps at most; 3 are needed" in verdict.evidence
