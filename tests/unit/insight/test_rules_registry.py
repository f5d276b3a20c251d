from dataclasses import asdict

import pytest

from dogbreed.errors import HyperparameterError
from dogbreed.insight.evidence import Evidence
from dogbreed.insight.rules import bounds
from dogbreed.insight.rules.common import Need
from dogbreed.insight.rules.losses import Overfit, Overtraining
from dogbreed.insight.rules.registry import (
    RULES,
    default_rules,
    evaluate,
    name_of,
    needs_of,
    parse_names,
    parse_rules,
)
from dogbreed.insight.rules.tensors import AllZero
from dogbreed.insight.verdicts import Status


def test_rules_and_parameters_are_read():
    rules = parse_rules("Overfit, Overtraining:patience_validation=3;delta=0.5 ,AllZero:tensor_regex=fc[.]weight")
    assert rules == (
        Overfit(),
        Overtraining(patience_validation=3, delta=0.5),
        AllZero(tensor_regex="fc[.]weight"),
    )


def test_awss_name_of_the_stalled_rule_is_understood():
    assert [name_of(rule) for rule in parse_rules("StalledTrainingRule:threshold=5")] == ["StalledTraining"]


def test_none_and_booleans_and_choices_are_read():
    rules = parse_rules("ExplodingTensor:only_nan=true;tensor_regex=None,LossNotDecreasing:mode=EVAL")
    assert asdict(rules[0]) == {"collection_names": None, "tensor_regex": None, "only_nan": True}
    assert asdict(rules[1])["mode"] == "EVAL"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Overfitt", "rule 'Overfitt' is unknown; did you mean Overfit? known are LossNotDecreasing, Overfit,"),
        ("Overfit:patiance=1", "Overfit has no parameter 'patiance'; did you mean patience? known are start_step,"),
        ("Overfit:patience=few", "Overfit:patience='few' is not a whole number"),
        ("Overfit:patience", "Overfit:patience has no value"),
        ("Overfit,Overfit", "rule Overfit is given twice"),
        ("LossNotDecreasing:mode=BOTH", "is not one of 'EVAL', 'TRAIN', ''"),
        ("ExplodingTensor:only_nan=maybe", "is not true or false"),
        ("AllZero", "AllZero must be told what to look at"),
        ("UnchangedTensor:tensor_regex=", "UnchangedTensor must be told what to look at"),
        ("TensorVariance:collection_names=weights", "told a limit: TensorVariance:max_threshold=NUMBER or"),
        ("LossNotDecreasing:num_steps=0", "LossNotDecreasing:num_steps=0 is not allowed; give 1 or more"),
        ("LossNotDecreasing:num_steps=-5", "LossNotDecreasing:num_steps=-5 is not allowed; give 1 or more"),
        ("UnchangedTensor:tensor_regex=fc;num_steps=1", "UnchangedTensor:num_steps=1 is not allowed; give 2 or more"),
        ("WeightUpdateRatio:num_steps=-7", "WeightUpdateRatio:num_steps=-7 is not allowed"),
        ("Overfit:patience=-1", "Overfit:patience=-1 is not allowed; give 0 or more"),
        ("Overtraining:patience_train=0", "Overtraining:patience_train=0 is not allowed; give 1 or more"),
        ("LowGPUUtilization:window=0", "LowGPUUtilization:window=0 is not allowed; give 1 or more"),
        ("LowGPUUtilization:threshold_p95=101", "threshold_p95=101 is not allowed; give from 0 to 100"),
        ("Confusion:min_diag=1.5", "Confusion:min_diag=1.5 is not allowed; give from 0 to 1"),
        ("VanishingGradient:threshold=nan", "VanishingGradient:threshold=nan is not a finite number"),
        ("StalledTraining:threshold=inf", "StalledTraining:threshold=inf is not a finite number"),
        ("AllZero:tensor_regex=[", "AllZero:tensor_regex='[' is no regular expression: unterminated character set"),
        ("StepOutlier:mode=training", "StepOutlier:mode='training' is not one of 'train', 'validation', None"),
        (
            "SaturatedActivation:threshold_tanh_min=10",
            "SaturatedActivation:threshold_tanh_min=10 is above threshold_tanh_max=9.4999",
        ),
        ("LossNotDecreasing:num_steps=0,Overfit:patience=-1", "give 1 or more; Overfit:patience=-1"),
        ("OverallSystemUsage:x=1", "it has none"),
    ],
)
def test_a_wrong_rule_is_refused_by_name_with_what_is_known(text, told):
    with pytest.raises(HyperparameterError) as caught:
        parse_rules(text)
    assert told in str(caught.value)


def test_defaults_and_what_may_be_negative_are_allowed():
    for name, rule in RULES.items():
        mistakes = [one for one in bounds.problems(name, asdict(rule())) if "must be told" not in one]
        assert mistakes == [], name
    (rule,) = parse_rules("SaturatedActivation:threshold_sigmoid_max=-1")
    assert asdict(rule)["threshold_sigmoid_max"] == -1
    (rule,) = parse_rules("StepOutlier:mode=train")
    assert asdict(rule)["mode"] == "train"


def test_every_bound_is_that_of_a_parameter():
    known = {name for rule in RULES.values() for name in rule.__dataclass_fields__}
    paired = {f"{rule}:{name}" for rule, made in RULES.items() for name in made.__dataclass_fields__}
    assert set(bounds._RANGES) <= known | paired


def test_every_mistake_is_named_at_once():
    with pytest.raises(HyperparameterError, match=r"'One'.*'Two'"):
        parse_rules("One,Overfit,Two")


def test_the_rules_that_apply_depend_on_the_job():
    plain = {name_of(rule) for rule in default_rules(pretrained=True, gpus=0)}
    assert "PoorWeightInitialization" not in plain
    assert "LowGPUUtilization" not in plain
    assert {"Overfit", "VanishingGradient", "ClassImbalance", "StalledTraining", "OverallSystemUsage"} <= plain
    assert "PoorWeightInitialization" in {name_of(rule) for rule in default_rules(pretrained=False, gpus=0)}
    one, two = ({name_of(rule) for rule in default_rules(pretrained=True, gpus=gpus)} for gpus in (1, 2))
    assert "LowGPUUtilization" in one
    assert two - one == {"LoadBalancing"}


def test_stop_on_takes_rules_that_are_on_and_no_others():
    rules = parse_rules("Overfit,StalledTraining")
    assert parse_names("StalledTrainingRule, Overfit", rules) == ("StalledTraining", "Overfit")
    with pytest.raises(HyperparameterError, match="stop-on names Overtraining"):
        parse_names("Overtraining", rules)


def test_what_is_needed_is_the_sum_of_the_rules_needs():
    assert needs_of(parse_rules("Overfit,ClassImbalance")) == {Need.LOSSES, Need.ANSWERS}


def test_a_rule_that_fails_itself_costs_no_other_verdict():
    class Broken(Overfit):
        def judge(self, evidence):
            raise ZeroDivisionError("oops")

    first, second = evaluate((Broken(), Overtraining()), Evidence())
    assert (first.status, second.status) == (Status.ERROR, Status.NOT_ENOUGH_DATA)
    assert "ZeroDivisionError: oops" in first.evidence


@pytest.mark.parametrize("name", sorted(RULES))
def test_no_rule_raises_on_an_empty_job(name):
    verdict = RULES[name]().judge(Evidence())
    assert verdict.status is Status.NOT_ENOUGH_DATA
    assert verdict.evidence
    assert verdict.rule == name
