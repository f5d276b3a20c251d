"""`launch.py delete`: what belongs to an endpoint goes, all else stays, and what costs is listed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.launch.conftest import Launch
from tests.launch.scripted import Scripted, refusal

MODEL = ("--model-data", "s3://bucket/model.tar.gz")
THEN = datetime(2026, 11, 20, 20, 31, tzinfo=UTC)


class Terminal(io.StringIO):
    """A person at the keyboard."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def deployed(launch: Launch, mock_aws: Callable[[str], Any]) -> Callable[[str], Any]:
    """Endpoints dogs, autoscaled and with an earlier version, and cats; clients of the mock."""
    for argv in (("dogs", "--autoscale", "1:2"), ("cats",), ("dogs-too",)):
        assert launch("deploy", *argv, *MODEL).code == 0
    sagemaker = mock_aws("sagemaker")
    old = "dogs-20200101-000000-000"
    sagemaker.create_model(ModelName=old, ExecutionRoleArn=launch.environ["DOGBREED_ROLE"])
    variant = {"VariantName": "main", "ModelName": old, "InstanceType": "ml.c5.xlarge", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName=old, ProductionVariants=[variant])
    return mock_aws


def names(client: Any) -> tuple[list[str], list[str], list[str]]:
    """Endpoints, configurations and models, each without its time."""
    return (
        sorted(one["EndpointName"] for one in client.list_endpoints()["Endpoints"]),
        sorted(one["EndpointConfigName"][:-20] for one in client.list_endpoint_configs()["EndpointConfigs"]),
        sorted(one["ModelName"][:-20] for one in client.list_models()["Models"]),
    )


def test_an_endpoint_goes_with_what_it_uses(launch: Launch, deployed: Callable[[str], Any]) -> None:
    ended = launch("delete", "dogs", "--yes")
    assert ended.code == 0, ended.err
    left = ["cats", "dogs", "dogs-too"]
    # The earlier version of dogs stays, to go back to.
    assert names(deployed("sagemaker")) == (["cats", "dogs-too"], left, left)
    assert (
        deployed("application-autoscaling").describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
        == []
    )
    assert (
        deployed("application-autoscaling").describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
        == []
    )
    assert [line.split(" dogs")[0] for line in ended.err.splitlines() if line.startswith("deleted")][2:] == [
        "deleted endpoint",
        "deleted configuration",
        "deleted model",
    ]


def test_all_configs_leaves_nothing_of_that_name(launch: Launch, deployed: Callable[[str], Any]) -> None:
    assert launch("delete", "dogs", "--all-configs", "--yes").code == 0
    assert names(deployed("sagemaker")) == (["cats", "dogs-too"], ["cats", "dogs-too"], ["cats", "dogs-too"])


def test_remains_are_deleted_when_the_endpoint_is_gone(launch: Launch, deployed: Callable[[str], Any]) -> None:
    deployed("sagemaker").delete_endpoint(EndpointName="dogs")
    assert launch("delete", "dogs", "--yes").code == 1
    assert launch("delete", "dogs", "--all-configs", "--yes").code == 0
    assert names(deployed("sagemaker"))[1] == ["cats", "dogs-too"]


def test_what_still_costs_is_listed(launch: Launch, deployed: Callable[[str], Any]) -> None:
    ended = launch("delete", "dogs", "--yes")
    assert "launch.py delete cats" in ended.out
    assert "1 x ml.c5.xlarge" in ended.out
    assert "launch.py delete dogs-too" in ended.out
    assert "launch.py delete dogs\n" not in ended.out


def test_an_unknown_name_is_told_what_there_is(launch: Launch, deployed: Callable[[str], Any]) -> None:
    ended = launch("delete", "birds", "--yes")
    assert ended.code == 1
    assert "nothing belongs to an endpoint birds here; endpoints here: " in ended.err
    assert "dogs-too" in ended.err


def test_without_anybody_to_ask_nothing_is_deleted(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    script = Scripted()
    launch.aws = script
    ended = launch("delete", "dogs")
    assert (ended.code, "give --yes" in ended.err) == (2, True)
    assert script.calls == []


@pytest.mark.parametrize(("typed", "code", "left"), [("y\n", 0, []), ("n\n", 1, ["dogs"]), ("\n", 1, ["dogs"])])
def test_a_person_is_asked_with_the_names(
    launch: Launch,
    mock_aws: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    code: int,
    left: list[str],
) -> None:
    launch("deploy", "dogs", *MODEL)
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    ended = launch("delete", "dogs")
    assert ended.code == code
    assert "  endpoint dogs\n  configuration dogs-20" in ended.err
    assert "delete these 3? [y/N] " in ended.err
    assert names(mock_aws("sagemaker"))[0] == left


def test_a_dry_run_shows_the_order(launch: Launch) -> None:
    ended = launch("delete", "dogs", "--dry-run")
    assert [call["operation"] for call in json.loads(ended.out)][-3:] == [
        "DeleteEndpoint",
        "DeleteEndpointConfig",
        "DeleteModel",
    ]


GONE = refusal("ValidationException", "Could not find endpoint")


def scripted(**answers: Any) -> Scripted:
    endpoint = {
        "EndpointName": "dogs",
        "EndpointStatus": "InService",
        "EndpointConfigName": "config",
        "ProductionVariants": [{"VariantName": "main"}],
    }
    return Scripted(
        **{
            "DescribeEndpoint": [endpoint, {**endpoint, "EndpointStatus": "Deleting"}, GONE],
            "DescribeEndpointConfig": {"ProductionVariants": [{"VariantName": "main", "ModelName": "model"}]},
            "DescribeScalableTargets": {"ScalableTargets": []},
            "DeleteEndpoint": {},
            "DeleteEndpointConfig": {},
            "DeleteModel": {},
            "ListTrainingJobs": {"TrainingJobSummaries": []},
            "ListHyperParameterTuningJobs": {"HyperParameterTuningJobSummaries": []},
            "ListTransformJobs": {"TransformJobSummaries": []},
            "ListEndpoints": {"Endpoints": []},
            **answers,
        }
    )


def test_the_configuration_outlives_the_endpoint(launch: Launch) -> None:
    script = scripted()
    launch.aws = script
    ended = launch("delete", "dogs", "--yes")
    assert ended.code == 0
    assert "endpoint dogs: Deleting, 0:00" in ended.err
    assert "nothing is costing money" in ended.out
    order = [call.operation for call in script.calls]
    # Described once before the deletion and twice after it, before the configuration goes.
    assert order.index("DeleteEndpointConfig") - order.index("DeleteEndpoint") == 3


def test_one_refusal_does_not_keep_the_rest(launch: Launch) -> None:
    script = scripted(DeleteEndpointConfig=refusal("AccessDeniedException", "no"))
    launch.aws = script
    ended = launch("delete", "dogs", "--yes")
    assert ended.code == 1
    assert "lack sagemaker:DeleteEndpointConfig" in ended.err
    assert script.asked("DeleteModel") == [{"ModelName": "model"}]
    assert "deleted configuration" not in ended.err


def test_what_somebody_else_deleted_meanwhile_is_no_failure(launch: Launch) -> None:
    launch.aws = scripted(DeleteModel=refusal("ValidationException", "Could not find model"))
    assert launch("delete", "dogs", "--yes").code == 0
