"""`launch.py train --managed-debugger`: what it asks of AWS's own Debugger, and what it refuses."""

import inspect
import json
from importlib.metadata import distribution
from pathlib import Path

import pytest
from tests.launch.conftest import BUCKET, REGION
from tests.launch.scripted import Scripted
from tests.launch.test_train import DATA, request

from scripts.launcher import debugger

OUTPUTS = f"s3://{BUCKET}/dogbreed/jobs"
IMAGE = f"929884845733.dkr.ecr.{REGION}.amazonaws.com/sagemaker-debugger-rules:latest"
# Of AWS's rules, those that do not concern an image classifier.
ELSEWHERE = {
    "CheckInputImages",
    "CreateXgboostReport",
    "FeatureImportanceOverweight",
    "NLPSequenceRatio",
    "SimilarAcrossRuns",
    "TreeDepth",
}


def collections(found):
    configured = found["DebugHookConfig"]["CollectionConfigurations"]
    return {one["CollectionName"]: one["CollectionParameters"] for one in configured}


def rules(found, kind="Debug"):
    configured = found.get(f"{kind}RuleConfigurations", [])
    return {one["RuleConfigurationName"]: one["RuleParameters"] for one in configured}


def test_nothing_of_it_is_asked_for_by_default(launch):
    found = request(launch)
    assert not [name for name in found if "Debug" in name or "Profiler" in name or "TensorBoard" in name]


def test_without_names_two_rules_on_losses_and_the_profilers_report(launch):
    found = request(launch, "--managed-debugger")
    assert collections(found) == {"losses": {"train.save_interval": "10", "eval.save_interval": "1"}}
    assert rules(found) == {name: {"rule_to_invoke": name} for name in ("LossNotDecreasing", "Overfit")}
    assert rules(found, "Profiler") == {"ProfilerReport": {"rule_to_invoke": "ProfilerReport"}}
    assert found["DebugHookConfig"]["S3OutputPath"] == OUTPUTS
    assert found["ProfilerConfig"] == {"S3OutputPath": OUTPUTS, "ProfilingIntervalInMilliseconds": 500}
    images = {one["RuleEvaluatorImage"] for kind in ("Debug", "Profiler") for one in found[f"{kind}RuleConfigurations"]}
    assert images == {IMAGE}


def test_named_rules_carry_their_parameters_as_text_and_save_what_they_look_at(launch):
    found = request(
        launch,
        *("--managed-debugger", "Overfit:patience=2;ratio_threshold=0.2", "VanishingGradient", "StalledTraining"),
        *("PoorWeightInitialization", "AllZero:tensor_regex=fc", "UnchangedTensor:collection_names=weights own"),
        *("LowGPUUtilization:threshold_p95=60",),
    )
    assert rules(found)["Overfit"] == {"rule_to_invoke": "Overfit", "patience": "2", "ratio_threshold": "0.2"}
    assert rules(found)["StalledTrainingRule"] == {"rule_to_invoke": "StalledTrainingRule"}
    assert rules(found, "Profiler") == {
        "LowGPUUtilization": {"rule_to_invoke": "LowGPUUtilization", "threshold_p95": "60"}
    }
    assert collections(found) == {
        "losses": {
            "train.save_interval": "10",
            "eval.save_interval": "1",
            "train.save_steps": "0,1,2,3,4,5,6,7,8,9",
        },
        "gradients": {"train.save_interval": "100", "train.save_steps": "0,1,2,3,4,5,6,7,8,9"},
        "relu_input": {
            "include_regex": ".*relu_input",
            "train.save_interval": "500",
            "train.save_steps": "0,1,2,3,4,5,6,7,8,9",
        },
        "AllZero_selection": {"include_regex": "fc", "train.save_interval": "100"},
        "weights": {"train.save_interval": "100"},
        "own": {"train.save_interval": "100"},
    }


def test_rules_on_the_machine_alone_need_no_hook(launch):
    found = request(launch, "--managed-debugger", "CPUBottleneck", "ProfilerReport:CPUBottleneck_threshold=60")
    assert "DebugHookConfig" not in found
    assert rules(found) == {}
    assert rules(found, "Profiler")["ProfilerReport"]["CPUBottleneck_threshold"] == "60"


@pytest.mark.parametrize("name", debugger.RULES)
def test_every_rule_makes_a_request_that_the_service_takes(launch, name):
    told = ":collection_names=weights" if debugger.RULES[name].selects else ""
    found = request(launch, "--managed-debugger", f"{name}{told}")
    assert name in rules(found) | rules(found, "Profiler")


def test_the_image_of_a_chinese_region_is_in_its_own_domain():
    (rule,) = debugger.request_parts(["Overfit"], region="cn-north-1", outputs=OUTPUTS)["DebugRuleConfigurations"]
    assert rule["RuleEvaluatorImage"] == (
        "618459771430.dkr.ecr.cn-north-1.amazonaws.com.cn/sagemaker-debugger-rules:latest"
    )


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["Overfitting"], "rule 'Overfitting' is unknown; did you mean Overfit? known are LossNotDecreasing,"),
        (["Overfit:patienc=2"], "Overfit has no parameter 'patienc'; did you mean patience? known are tensor_regex,"),
        (["Overfit:patience"], "Overfit:patience has no value; write patience=VALUE"),
        (["AllZero"], "AllZero must be told what to look at: AllZero:collection_names=weights"),
        (["Overfit", "Overfit:patience=2"], "a rule is given twice; give it once"),
        (["--region", "mx-central-1"], "in mx-central-1 is not known here; known are af-south-1"),
    ],
)
def test_a_mistake_costs_nothing(launch, argv, says):
    launch.aws = Scripted()  # any request fails the test
    ended = launch("train", *DATA, "--managed-debugger", *argv)
    assert ended.code == 2
    assert says in ended.err
    assert ended.err.count("\n") == 1


def test_the_registries_are_those_of_the_installed_sdk():
    file = distribution("sagemaker-core").locate_file("sagemaker/core/image_uri_config/debugger.json")
    table = json.loads(Path(str(file)).read_text(encoding="utf-8"))
    assert table["versions"]["latest"]["registries"] == debugger.REGISTRIES


def test_names_and_collections_are_those_of_the_installed_sdk():
    package = "smdebug_rulesconfig/debugger_rules/rule_config_jsons/ruleConfigs.json"
    file = distribution("smdebug-rulesconfig").locate_file(package)
    theirs = json.loads(Path(str(file)).read_text(encoding="utf-8"))
    ours = {name: rule for name, rule in debugger.RULES.items() if not rule.profiler}
    assert set(theirs) - set(ours) == ELSEWHERE
    assert set(ours) <= set(theirs)
    for name, rule in ours.items():
        added = {one["CollectionName"]: one for one in theirs[name].get("CollectionConfigurations", [])}
        assert set(added) <= set(rule.collections), f"{name} looks at what is not saved"
        for collection, given in added.items():
            regex = given["CollectionParameters"].get("include_regex")
            assert rule.collections[collection].get("include_regex") == regex


def test_the_profilers_rules_and_parameters_are_those_of_the_installed_sdk():
    from smdebug_rulesconfig.profiler_rules import rules as theirs

    for name, rule in debugger.RULES.items():
        if rule.profiler and name != "ProfilerReport":
            taken = inspect.signature(getattr(theirs, name).__init__).parameters
            assert set(rule.parameters) == set(taken) - {"self"}, name
