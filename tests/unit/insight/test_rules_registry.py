from dataclasses import asdict

import pytest

from dogbreed.errors import HyperparameterError
from dogbreed.insight.evidence import Evidence
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
        ("OverallSystemUsage:x=1", "it has none"),
    ],
)
def test_a_wrong_rule_is_refused_by_name_with_what_is_known(text, told):
    with pytest.raises(HyperparameterError) as caught:
        parse_rules(text)
    assert told in str(caught.value)


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
