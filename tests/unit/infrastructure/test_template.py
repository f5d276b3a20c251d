"""The CloudFormation template: nothing is open, and the role may do no more than it must. `make lint` runs cfn-lint."""

import fnmatch
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cfnlint.decode
import pytest

TEMPLATE = Path(__file__).parents[3] / "infrastructure" / "dogbreed.yaml"
# IAM knows no resource for these; PutMetricData is held to a namespace instead.
NEED_ANY_RESOURCE = {"ecr:GetAuthorizationToken", "cloudwatch:PutMetricData"}


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    found, complaints = cfnlint.decode.decode(str(TEMPLATE))
    assert not complaints
    return json.loads(json.dumps(found))


@pytest.fixture(scope="module")
def resources(template) -> dict[str, dict[str, Any]]:
    return {name: resource.get("Properties", {}) for name, resource in template["Resources"].items()}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def role_statements(resources: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for policy in resources["Role"]["Policies"]:
        yield from policy["PolicyDocument"]["Statement"]


def test_no_statement_of_the_role_is_for_everything_but_the_two_that_must(resources):
    open_to_all = [
        action
        for statement in role_statements(resources)
        if "*" in as_list(statement["Resource"])
        for action in as_list(statement["Action"])
    ]
    assert set(open_to_all) == NEED_ANY_RESOURCE
    assert all(statement["Effect"] == "Allow" for statement in role_statements(resources))


def test_metrics_are_held_to_the_namespace_of_sagemaker(resources):
    (statement,) = [found for found in role_statements(resources) if found["Action"] == "cloudwatch:PutMetricData"]
    assert statement["Condition"] == {"StringLike": {"cloudwatch:namespace": "/aws/sagemaker/*"}}
    assert fnmatch.fnmatch("/aws/sagemaker/TrainingJobs", "/aws/sagemaker/*")


def test_no_action_is_a_pattern(resources):
    actions = [action for statement in role_statements(resources) for action in as_list(statement["Action"])]
    assert [action for action in actions if "*" in action] == []
    assert len(actions) == len(set(actions))


@pytest.mark.parametrize(
    "action",
    [
        *("s3:GetObject", "s3:PutObject", "s3:ListBucket"),
        *("ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"),
        *("logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"),
        *sorted(NEED_ANY_RESOURCE),
    ],
)
def test_the_role_may_do_what_sagemaker_lists_for_a_job(resources, action):
    allowed = [found for statement in role_statements(resources) for found in as_list(statement["Action"])]
    assert action in allowed


def test_only_sagemaker_of_this_account_takes_the_role(resources):
    (statement,) = resources["Role"]["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}


def test_the_bucket_is_encrypted_and_closed_to_the_public(resources):
    assert set(resources["Bucket"]["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(resources["Bucket"]["PublicAccessBlockConfiguration"]) == 4
    (rule,) = resources["Bucket"]["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert rule["ServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}


def test_the_bucket_refuses_whoever_comes_without_tls(resources):
    (statement,) = resources["BucketPolicy"]["PolicyDocument"]["Statement"]
    assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "s3:*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert statement["Resource"] == [{"Fn::GetAtt": ["Bucket", "Arn"]}, {"Fn::Sub": "${Bucket.Arn}/*"}]


@pytest.mark.parametrize("name", ["Bucket", "Repository"])
def test_data_and_images_outlive_the_stack(template, name):
    assert template["Resources"][name]["DeletionPolicy"] == "Retain"
    assert template["Resources"][name]["UpdateReplacePolicy"] == "Retain"


def test_the_repository_scans_and_keeps_the_newest_images(template, resources):
    assert resources["Repository"]["ImageScanningConfiguration"] == {"ScanOnPush": True}
    text = resources["Repository"]["LifecyclePolicy"]["LifecyclePolicyText"]["Fn::Sub"]
    kept = template["Parameters"]["KeepImages"]["Default"]
    (rule,) = json.loads(text.replace("${KeepImages}", str(kept)))["rules"]
    assert rule["selection"] == {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": 30}
    assert rule["action"] == {"type": "expire"}


def test_the_outputs_are_named_like_the_variables_of_the_scripts(template):
    named = {output["Description"] for output in template["Outputs"].values()}
    assert named == {"DOGBREED_ROLE", "DOGBREED_BUCKET", "DOGBREED_REPOSITORY", "AWS_ACCOUNT_ID", "AWS_REGION"}
