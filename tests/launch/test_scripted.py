"""The check of requests against the service's model can fail, and where botocore's own would not."""

import pytest
from tests.launch.scripted import Scripted, problems

from scripts.launcher.plan import Call

RIGHT = {"TrainingJobName": "dogs-1", "RoleArn": "arn:aws:iam::111122223333:role/x", "OutputDataConfig": {}}


def create(**more):
    output = {"S3OutputPath": "s3://bucket/jobs"}
    return Call("sagemaker", "CreateTrainingJob", RIGHT | {"OutputDataConfig": output} | more)


def test_a_right_request_has_no_problems():
    assert problems(create()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"OutputDataConfig": {}},
        {"Unknown": 1},
        {"TrainingJobName": "dogs_1"},
        {"TrainingJobName": "d" * 64},
        {"ResourceConfig": {"InstanceType": "ml.g5.huge", "InstanceCount": 1}},
        {"ResourceConfig": {"KeepAlivePeriodInSeconds": 21601}},
        {"HyperParameters": {"lr": 0.1}},
        {"HyperParameters": {"x": "y" * 2501}},
        {"InputDataConfig": []},
        {"StoppingCondition": {"MaxRuntimeInSeconds": 0}},
    ],
    ids=lambda wrong: str(wrong)[:50],
)
def test_a_wrong_one_has(wrong):
    assert problems(create(**wrong))


def test_a_script_refuses_a_wrong_request_and_one_that_nobody_expected():
    with pytest.raises(AssertionError):
        Scripted(CreateTrainingJob={}).call(create(TrainingJobName="dogs_1"))
    with pytest.raises(AssertionError, match="was not expected"):
        Scripted().call(create())
