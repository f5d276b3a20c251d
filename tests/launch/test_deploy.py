"""`launch.py deploy`: the requests of every mode, and what is made of AWS's answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.launch.conftest import IMAGE, ROLE, Launch
from tests.launch.scripted import Scripted, problems, refusal

from scripts.launcher.plan import Call

MODEL = ("--model-data", "s3://bucket/model.tar.gz")
AMI = "al2023-ami-sagemaker-inference-gpu-4-1"
MISSING = refusal("ValidationException", 'Could not find endpoint "arn:aws:sagemaker:eu-west-1:1:endpoint/dogs".')

Answered = dict[str, Any]


def planned(launch: Launch, *argv: str) -> list[Call]:
    """The plan of a dry run, every request of which the service would take."""
    ended = launch("deploy", "dogs", *argv, "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    calls = [Call(**call) for call in json.loads(ended.out)]
    # What only AWS knows is no S3 URI yet.
    assert [problem for call in calls for problem in problems(call) if "${" not in problem] == []
    return calls


def parameters(calls: list[Call], operation: str) -> dict[str, Any]:
    (found,) = (call.parameters for call in calls if call.operation == operation)
    return dict(found)


def variant(calls: list[Call]) -> dict[str, Any]:
    (found,) = parameters(calls, "CreateEndpointConfig")["ProductionVariants"]
    return dict(found)


def described(status: str = "InService", config: str = "old", instances: int = 4, **more: object) -> Answered:
    one = {"VariantName": "AllTraffic", "DesiredInstanceCount": instances}
    return {"EndpointStatus": status, "EndpointConfigName": config, "ProductionVariants": [one], **more}


def updated(launch: Launch, *states: Answered, **answers: Any) -> Scripted:
    """Puts an AWS with an endpoint behind the command line; ``states`` follow the first look at it.

    The configuration `new` stands for the one that the command makes.
    """
    left = [described(), *states]
    made: list[str] = []

    def describe_endpoint(**_: str) -> Answered:
        state = left.pop(0) if len(left) > 1 else left[0]
        return {**state, "EndpointConfigName": made[-1]} if state["EndpointConfigName"] == "new" else state

    script = Scripted(
        DescribeEndpoint=describe_endpoint,
        DescribeEndpointConfig={"ProductionVariants": [{"VariantName": "AllTraffic", "InstanceType": "ml.g5.xlarge"}]},
        DescribeScalableTargets={"ScalableTargets": []},
        CreateModel={},
        CreateEndpointConfig=lambda EndpointConfigName, **_: made.append(EndpointConfigName) or {},
        UpdateEndpoint={},
        DeregisterScalableTarget={},
        RegisterScalableTarget={},
        PutScalingPolicy={},
    )
    script.answers |= {name: [answer] for name, answer in answers.items()}
    launch.aws = script
    return script


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("--instance-type", "ml.g5.xlarge", "--instance-count", "3"),
        ("--serverless", "--memory", "6144", "--max-concurrency", "200"),
        ("--async", "s3://bucket/answers", "--autoscale", "0:2", "--async-concurrency", "4"),
        (
            *("--async", "s3://bucket/answers/", "--kms-key", "alias/dogs"),
            *("--success-topic", "arn:aws:sns:eu-west-1:111122223333:good"),
            *("--error-topic", "arn:aws:sns:eu-west-1:111122223333:bad"),
        ),
        ("--autoscale", "2:8", "--target-invocations", "700"),
        ("--data-capture", "10", "--data-capture-to", "s3://bucket/capture", "--kms-key", "1234abcd"),
        (
            "--subnets",
            "subnet-1",
            "subnet-2",
            "--security-groups",
            "sg-1",
            "--network-isolation",
            "--tags",
            "team=dogs",
        ),
        (
            "--env",
            "SAGEMAKER_MAX_PAYLOAD_IN_MB=20",
            "OTHER=a=b",
            "--startup-timeout",
            "60",
            "--download-timeout",
            "3600",
        ),
        (
            "--update",
            "--instance-count",
            "40",
            "--batch-percent",
            "5",
            "--bake",
            "3600",
            "--alarm",
            "a",
            "--alarm",
            "b",
        ),
        ("--update", "--serverless"),
        ("--update", "--async", "s3://bucket/answers"),
    ],
)
def test_every_mode_makes_requests_that_the_service_takes(launch: Launch, argv: tuple[str, ...]) -> None:
    calls = planned(launch, *MODEL, *argv)
    wanted = "UpdateEndpoint" if "--update" in argv else "CreateEndpoint"
    assert [call.operation for call in calls][:3] == ["CreateModel", "CreateEndpointConfig", wanted]


def test_a_new_endpoint_runs_the_model_on_one_cpu_instance(launch: Launch) -> None:
    calls = planned(launch, *MODEL)
    model, config = parameters(calls, "CreateModel"), parameters(calls, "CreateEndpointConfig")
    assert model["PrimaryContainer"] == {"Image": IMAGE, "ModelDataUrl": "s3://bucket/model.tar.gz"}
    assert model["ExecutionRoleArn"] == ROLE
    assert model["ModelName"] == variant(calls)["ModelName"]
    assert config["EndpointConfigName"] == parameters(calls, "CreateEndpoint")["EndpointConfigName"]
    assert (variant(calls)["InstanceType"], variant(calls)["InitialInstanceCount"]) == ("ml.c5.xlarge", 1)


def test_names_of_versions_carry_the_time(launch: Launch) -> None:
    config = parameters(planned(launch, *MODEL), "CreateEndpointConfig")["EndpointConfigName"]
    name, date, time, milliseconds = config.split("-")
    assert (name, len(date), len(time), len(milliseconds)) == ("dogs", 8, 6, 3)


@pytest.mark.parametrize(
    ("instance_type", "ami"),
    [
        *((f"ml.{size}", AMI) for size in ("g4dn.xlarge", "g5.12xlarge", "g6e.xlarge", "p4d.24xlarge")),
        *((f"ml.{size}", None) for size in ("c7i.xlarge", "m5d.large", "t2.medium")),
    ],
)
def test_gpus_get_the_driver_that_the_image_needs(launch: Launch, instance_type: str, ami: str | None) -> None:
    assert variant(planned(launch, *MODEL, "--instance-type", instance_type)).get("InferenceAmiVersion") == ami


def test_serverless_has_no_instances(launch: Launch) -> None:
    found = variant(planned(launch, *MODEL, "--serverless"))
    assert found["ServerlessConfig"] == {"MemorySizeInMB": 4096, "MaxConcurrency": 5}
    assert not {"InstanceType", "InitialInstanceCount", "InferenceAmiVersion"} & set(found)


def test_the_model_of_a_job_stands_in_the_plan_by_name(launch: Launch) -> None:
    calls = planned(launch, "--job", "some-job")
    assert calls[0].parameters == {"TrainingJobName": "some-job"}
    url = parameters(calls, "CreateModel")["PrimaryContainer"]["ModelDataUrl"]
    assert url == "${DescribeTrainingJob.ModelArtifacts.S3ModelArtifacts}"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--instance-type", "c7i.xlarge"), "not one of SageMaker's"),
        (("--instance-type", "ml.m8g.large"), "ARM"),
        (("--instance-type", "ml.inf2.xlarge"), "accelerators"),
        (("--instance-type", "ml.p3.2xlarge"), "too old for CUDA 13"),
        (("--autoscale", "4"), "not MIN:MAX"),
        (("--autoscale", "0:4"), "with --async 0"),
        (("--autoscale", "4:2"), "not allowed"),
        (("--autoscale", "2:4", "--instance-count", "5"), "outside --autoscale"),
        (("--autoscale", "1:4", "--no-wait"), "leave out --no-wait"),
        (("--serverless", "--instance-type", "ml.g5.xlarge", "--data-capture", "5"), "--instance-type, --data-capture"),
        (("--serverless", "--memory", "3000"), "--memory 3000 is not one of 1024, 2048"),
        (("--serverless", "--max-concurrency", "201"), "give 1 to 200"),
        (("--startup-timeout", "30"), "give 60 to 3600"),
        (("--batch-percent", "60"), "give 5 to 50"),
        (("--success-topic", "arn:aws:sns:eu-west-1:1:a"), "need --async"),
        (("--subnets", "subnet-1"), "go together"),
        (("--serverless", "--async", "s3://bucket/answers"), "not allowed with"),
        (("--async", "bucket/answers"), "not an S3 URI"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(
    launch: Launch, argv: tuple[str, ...], message: str
) -> None:
    ended = launch("deploy", "dogs", *MODEL, *argv)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


@pytest.mark.parametrize("name", ["dogs_1", "-dogs", "d" * 44])
def test_a_name_leaves_room_for_the_time(launch: Launch, name: str) -> None:
    assert launch("deploy", *MODEL, "--", name).code == 2
    assert launch("deploy", "d" * 43, *MODEL, "--dry-run").code == 0


def test_model_data_must_be_the_archive(launch: Launch) -> None:
    ended = launch("deploy", "dogs", "--model-data", "s3://bucket/job/output/")
    assert ended.code == 2
    assert "must name the model.tar.gz" in ended.err


def test_an_endpoint_is_made_and_scaled_in_the_mock(launch: Launch, mock_aws: Callable[[str], Any]) -> None:
    argv = ("--instance-type", "ml.g4dn.xlarge", "--autoscale", "1:4", "--data-capture", "20", "--tags", "team=dogs")
    ended = launch("deploy", "dogs", *MODEL, *argv)
    assert ended.code == 0, ended.err
    assert "cost: 4 x ml.g4dn.xlarge until it is deleted; autoscaling goes down to 1" in ended.err
    assert ended.out.splitlines()[-1] == "it costs money until: launch.py delete dogs"
    endpoint = mock_aws("sagemaker").describe_endpoint(EndpointName="dogs")
    config = mock_aws("sagemaker").describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    assert config["ProductionVariants"][0]["InstanceType"] == "ml.g4dn.xlarge"
    assert config["DataCaptureConfig"]["InitialSamplingPercentage"] == 20
    scaling = mock_aws("application-autoscaling")
    (target,) = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert (target["ResourceId"], target["MinCapacity"], target["MaxCapacity"]) == ("endpoint/dogs/variant/main", 1, 4)
    (policy,) = scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 200.0


def test_the_model_of_a_job_is_looked_up(launch: Launch) -> None:
    launch.aws = Scripted(
        DescribeEndpoint=[MISSING, described(config="old")],
        DescribeTrainingJob={
            "TrainingJobName": "job",
            "TrainingJobStatus": "Completed",
            "ModelArtifacts": {"S3ModelArtifacts": "s3://bucket/jobs/job/output/model.tar.gz"},
        },
        CreateModel={},
        CreateEndpointConfig={},
        CreateEndpoint={},
    )
    ended = launch("deploy", "dogs", "--job", "job", "--no-wait")
    assert ended.code == 0
    assert ended.out.splitlines()[-1] == "it costs money until: launch.py delete dogs"
    (model,) = launch.aws.asked("CreateModel")
    assert model["PrimaryContainer"]["ModelDataUrl"] == "s3://bucket/jobs/job/output/model.tar.gz"


@pytest.mark.parametrize(
    ("job", "first_line"),
    [
        ({"TrainingJobStatus": "Failed", "FailureReason": "lr='fast' is not a number"}, "lr='fast' is not a number"),
        ({"TrainingJobStatus": "InProgress"}, "is InProgress and has left no model yet"),
    ],
)
def test_a_job_without_a_model_makes_nothing(launch: Launch, job: Answered, first_line: str) -> None:
    script = Scripted(DescribeEndpoint=MISSING, DescribeTrainingJob={"TrainingJobName": "job", **job})
    launch.aws = script
    ended = launch("deploy", "dogs", "--job", "job")
    assert ended.code == 1
    assert first_line in ended.err
    assert {call.operation for call in script.calls} == {"DescribeEndpoint", "DescribeTrainingJob"}


def test_an_update_rolls_and_keeps_what_was_not_asked_to_change(launch: Launch) -> None:
    script = updated(launch, described("Updating"), described("Updating"), described(config="new"))
    ended = launch("deploy", "dogs", *MODEL, "--alarm", "dogs-5xx", "dogs-latency")
    assert ended.code == 0, ended.err
    assert len(launch.slept) == 2
    (update,) = script.asked("UpdateEndpoint")
    assert update["DeploymentConfig"] == {
        "RollingUpdatePolicy": {
            "MaximumBatchSize": {"Type": "INSTANCE_COUNT", "Value": 1},
            "WaitIntervalInSeconds": 120,
            "MaximumExecutionTimeoutInSeconds": 4 * (1800 + 120),
        },
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "dogs-5xx"}, {"AlarmName": "dogs-latency"}]},
    }
    assert update["RetainAllVariantProperties"] is True
    (config,) = script.asked("CreateEndpointConfig")
    # A rolling update demands the old variant's name.
    assert config["ProductionVariants"][0]["VariantName"] == "AllTraffic"
    assert config["ProductionVariants"][0]["InstanceType"] == "ml.g5.xlarge"
    assert script.asked("CreateEndpoint") == []


def test_a_number_of_instances_that_is_given_replaces_the_present_one(launch: Launch) -> None:
    script = updated(launch, described(config="new"))
    assert launch("deploy", "dogs", *MODEL, "--instance-count", "2").code == 0
    (update,) = script.asked("UpdateEndpoint")
    assert "RetainAllVariantProperties" not in update
    (config,) = script.asked("CreateEndpointConfig")
    assert config["ProductionVariants"][0]["InitialInstanceCount"] == 2


@pytest.mark.parametrize(
    ("instances", "percent", "batch"), [(2, 50, 1), (3, 50, 1), (4, 50, 2), (30, 5, 2), (100, 25, 25)]
)
def test_a_batch_is_within_the_limits_of_rolling_updates(
    launch: Launch, instances: int, percent: int, batch: int
) -> None:
    argv = ("--update", "--instance-count", str(instances), "--batch-percent", str(percent))
    deployment = parameters(planned(launch, *MODEL, *argv), "UpdateEndpoint")["DeploymentConfig"]
    assert deployment["RollingUpdatePolicy"]["MaximumBatchSize"]["Value"] == batch
    assert 0.05 <= batch / instances <= 0.5


@pytest.mark.parametrize("argv", [("--instance-count", "1"), ("--serverless",)])
def test_what_cannot_be_divided_is_replaced_as_a_whole(launch: Launch, argv: tuple[str, ...]) -> None:
    calls = planned(launch, *MODEL, "--update", *argv, "--alarm", "a")
    deployment = parameters(calls, "UpdateEndpoint")["DeploymentConfig"]
    assert deployment["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]["Type"] == "ALL_AT_ONCE"
    assert deployment["AutoRollbackConfiguration"] == {"Alarms": [{"AlarmName": "a"}]}


@pytest.mark.parametrize("seen", [(), (described("Updating"), described("RollingBack"))])
def test_a_rollback_is_a_failure_that_says_why_first(launch: Launch, seen: tuple[Answered, ...]) -> None:
    updated(launch, *seen, described(FailureReason="alarm dogs-5xx rang"))
    ended = launch("deploy", "dogs", *MODEL, "--alarm", "dogs-5xx")
    assert (ended.code, ended.out) == (1, "")
    failure = ended.err[ended.err.index("launch.py deploy:") :].splitlines()
    assert failure[0] == "launch.py deploy: alarm dogs-5xx rang"
    assert "rolled back; dogs serves old as before" in failure[1]
    assert failure[-1] == "it costs money until: launch.py delete dogs"


def test_a_description_that_lags_is_no_rollback(launch: Launch) -> None:
    updated(launch, described(), described("Updating"), described(config="new"))
    assert launch("deploy", "dogs", *MODEL).code == 0


def test_an_endpoint_that_fails_says_why_first(launch: Launch) -> None:
    launch.aws = Scripted(
        DescribeEndpoint=[MISSING, described("Creating"), described("Failed", FailureReason="no good /ping")],
        CreateModel={},
        CreateEndpointConfig={},
        CreateEndpoint={},
    )
    ended = launch("deploy", "dogs", *MODEL)
    assert ended.code == 1
    assert "endpoint dogs: Creating, 0:00" in ended.err
    failure = ended.err[ended.err.index("launch.py deploy:") :].splitlines()
    assert failure[0] == "launch.py deploy: no good /ping"
    assert "launch.py logs dogs --kind endpoint" in ended.err
    assert failure[-1] == "it costs money until: launch.py delete dogs"


def test_interrupting_says_that_the_endpoint_goes_on(launch: Launch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    updated(launch, described("Updating"))
    launch.on_sleep = interrupt
    ended = launch("deploy", "dogs", *MODEL)
    assert ended.code == 130
    assert "dogs goes on without being watched; it costs money until: launch.py delete dogs" in ended.err


@pytest.mark.parametrize(("status", "way"), [("Failed", "launch.py delete dogs"), ("Updating", "wait until it is")])
def test_only_an_endpoint_in_service_is_updated(launch: Launch, status: str, way: str) -> None:
    script = updated(launch, DescribeEndpoint=described(status))
    ended = launch("deploy", "dogs", *MODEL)
    assert ended.code == 1
    assert way in ended.err
    assert script.asked("CreateModel") == []


def test_update_of_nothing_is_refused(launch: Launch) -> None:
    launch.aws = Scripted(DescribeEndpoint=MISSING)
    ended = launch("deploy", "dogs", *MODEL, "--update")
    assert (ended.code, "no endpoint dogs to update" in ended.err) == (2, True)


TARGETS = {"ScalableTargets": [{"ResourceId": "endpoint/dogs/variant/AllTraffic"}]}


def test_another_instance_type_of_an_autoscaled_endpoint_needs_new_bounds(launch: Launch) -> None:
    script = updated(launch, described(config="new"), DescribeScalableTargets=TARGETS)
    ended = launch("deploy", "dogs", *MODEL, "--instance-type", "ml.g6.xlarge")
    assert ended.code == 2
    assert "ml.g5.xlarge to ml.g6.xlarge: give --autoscale" in ended.err
    assert script.asked("CreateModel") == []
    script = updated(launch, described(config="new"), DescribeScalableTargets=TARGETS)
    assert launch("deploy", "dogs", *MODEL, "--instance-type", "ml.g6.xlarge", "--autoscale", "1:4").code == 0
    order = [call.operation for call in script.calls]
    assert order.index("DeregisterScalableTarget") < order.index("UpdateEndpoint") < order.index("PutScalingPolicy")
    (target,) = script.asked("RegisterScalableTarget")
    assert target["ResourceId"] == "endpoint/dogs/variant/AllTraffic"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ProductionVariants": [{"ServerlessConfig": {}}]}, "dogs is serverless: give --serverless"),
        ({"ProductionVariants": [{"InstanceType": "ml.g5.xlarge"}], "AsyncInferenceConfig": {}}, "give --async"),
    ],
)
def test_the_kind_of_an_endpoint_does_not_change_by_omission(launch: Launch, config: Answered, message: str) -> None:
    updated(launch, described(config="new"), DescribeEndpointConfig=config)
    ended = launch("deploy", "dogs", *MODEL)
    assert (ended.code, message in ended.err) == (2, True)


def test_variants_of_other_tools_are_left_alone(launch: Launch) -> None:
    two = [{"VariantName": "a"}, {"VariantName": "b"}]
    script = updated(launch, DescribeEndpoint={**described(), "ProductionVariants": two})
    ended = launch("deploy", "dogs", *MODEL)
    assert (ended.code, "variants a, b" in ended.err) == (1, True)
    assert script.asked("CreateModel") == []
