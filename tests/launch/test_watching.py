"""`logs`, `status` and `stop`: what is said of jobs and endpoints, and what costs money."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from tests.launch.conftest import BUCKET, IMAGE, ROLE
from tests.launch.scripted import Scripted, problems, refusal

from scripts.launcher import costs
from scripts.launcher.plan import Call

START = datetime(2026, 11, 20, 20, 31, tzinfo=UTC)
NO_LOG = refusal("ResourceNotFoundException", "The specified log group does not exist.")
FAILED = {
    "TrainingJobName": "dogs-1",
    "TrainingJobStatus": "Failed",
    "FailureReason": "AlgorithmError: lr='fast' is not allowed, exit code: 1",
}
NOTHING = {
    "ListTrainingJobs": {"TrainingJobSummaries": []},
    "ListHyperParameterTuningJobs": {"HyperParameterTuningJobSummaries": []},
    "ListTransformJobs": {"TransformJobSummaries": []},
    "ListEndpoints": {"Endpoints": []},
}


def put_log(client, group, stream, *messages):
    logs = client("logs")
    logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName=stream)
    now = int(datetime.now(UTC).timestamp() * 1000)
    events = [{"timestamp": now + number, "message": message} for number, message in enumerate(messages)]
    logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)


def create_job(client, name="dogs-1"):
    client("sagemaker").create_training_job(
        TrainingJobName=name,
        RoleArn=ROLE,
        AlgorithmSpecification={"TrainingImage": IMAGE, "TrainingInputMode": "File"},
        HyperParameters={"model": "resnet18"},
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/dogbreed/jobs"},
        ResourceConfig={"InstanceType": "ml.g5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 50},
        StoppingCondition={"MaxRuntimeInSeconds": 3600},
    )


def create_endpoint(client, name="dogs"):
    sagemaker = client("sagemaker")
    sagemaker.create_model(
        ModelName="dogs-model", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": IMAGE, "ModelDataUrl": "s3://b/m"}
    )
    sagemaker.create_endpoint_config(
        EndpointConfigName="dogs-config",
        ProductionVariants=[
            {
                "VariantName": "main",
                "ModelName": "dogs-model",
                "InitialInstanceCount": 1,
                "InstanceType": "ml.g4dn.xlarge",
            }
        ],
    )
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName="dogs-config")


def test_logs_of_a_job_are_printed_in_order(launch, mock_aws):
    create_job(mock_aws)
    put_log(mock_aws, "/aws/sagemaker/TrainingJobs", "dogs-1/algo-1-17", "one", "two")
    ended = launch("logs", "dogs-1")
    assert ended.code == 0
    assert ended.out.splitlines() == ["dogs-1: Completed", "one", "two"]


def test_logs_of_another_job_with_the_same_beginning_stay_out(launch, mock_aws):
    create_job(mock_aws, "dogs")
    put_log(mock_aws, "/aws/sagemaker/TrainingJobs", "dogs-2/algo-1-17", "not mine")
    assert "not mine" not in launch("logs", "dogs").out


@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_logs_of_an_endpoint(launch, mock_aws, follow):
    put_log(mock_aws, "/aws/sagemaker/Endpoints/dogs", "main/i-0123", "listening on port 8080")

    def interrupt(seconds):
        raise KeyboardInterrupt

    launch.on_sleep = interrupt
    ended = launch("logs", "dogs", "--kind", "endpoint", *follow)
    assert ended.code == (130 if follow else 0)
    assert ended.out == "listening on port 8080\n"


def test_no_log_at_all_is_said(launch, mock_aws):
    ended = launch("logs", "nobody", "--kind", "endpoint")
    assert ended.code == 1
    assert "no log of nobody in /aws/sagemaker/Endpoints/nobody" in ended.err


def test_of_a_failed_job_the_first_line_is_why(launch):
    launch.aws = Scripted(
        DescribeTrainingJob=FAILED,
        DescribeLogStreams={"logStreams": [{"logStreamName": "dogs-1/algo-1-17"}]},
        GetLogEvents=[
            {"events": [{"message": "loading\n"}], "nextForwardToken": "f/1"},
            {"events": [], "nextForwardToken": "f/1"},
        ],
    )
    ended = launch("logs", "dogs-1")
    assert ended.code == 1
    assert ended.out.splitlines() == [f"dogs-1 failed: {FAILED['FailureReason']}", "loading"]


def test_following_goes_on_until_the_job_ends(launch):
    running = {"TrainingJobName": "dogs-1", "TrainingJobStatus": "InProgress", "SecondaryStatus": "Training"}
    launch.aws = Scripted(
        DescribeTrainingJob=[running, running, {**running, "TrainingJobStatus": "Completed"}], DescribeLogStreams=NO_LOG
    )
    assert launch("logs", "dogs-1", "--follow").code == 0
    assert len(launch.aws.asked("DescribeTrainingJob")) == 3


def test_ctrl_c_while_following_leaves_the_job(launch):
    running = {"TrainingJobName": "dogs-1", "TrainingJobStatus": "InProgress", "SecondaryStatus": "Training"}
    launch.aws = Scripted(DescribeTrainingJob=running, DescribeLogStreams=NO_LOG)

    def interrupt(seconds):
        raise KeyboardInterrupt

    launch.on_sleep = interrupt
    ended = launch("logs", "dogs-1", "--follow")
    assert ended.code == 130
    assert "dogs-1 goes on" in ended.err
    assert "`launch.py stop dogs-1` ends it" in ended.err


def test_a_job_that_does_not_exist_is_one_sentence(launch, mock_aws):
    ended = launch("logs", "nobody")
    assert ended.code == 1
    assert ended.err.startswith("launch.py logs: DescribeTrainingJob: nobody does not exist in this region and account")


def test_status_lists_jobs_endpoints_and_costs(launch, mock_aws):
    create_job(mock_aws)
    create_endpoint(mock_aws)
    ended = launch("status")
    assert ended.code == 0
    jobs, endpoints, money = ended.out.split("\n\n")
    assert jobs.splitlines()[1].split()[:2] == ["dogs-1", "Completed"]
    assert endpoints.splitlines()[1].split()[:2] == ["dogs", "InService"]
    assert money.splitlines()[0].split("  ")[0] == "COSTING MONEY"
    assert "endpoint" in money.splitlines()[1]
    assert "1 x ml.g4dn.xlarge" in money.splitlines()[1]
    assert money.splitlines()[1].endswith("launch.py delete dogs")
    assert len(money.splitlines()) == 2  # the job has ended, and costs nothing


def test_an_empty_account_costs_nothing(launch, mock_aws):
    ended = launch("status")
    assert ended.out.split("\n\n")[:2] == ["no training jobs", "no endpoints"]
    assert "nothing is costing money" in ended.out


def test_everything_that_is_billed_by_the_hour_is_listed():
    job = {"TrainingJobName": "running-1", "TrainingJobStatus": "InProgress", "CreationTime": START}
    pool = {
        "TrainingJobName": "warm-1",
        "TrainingJobStatus": "Completed",
        "CreationTime": START,
        "TrainingEndTime": START,
        "WarmPoolStatus": {"Status": "Available"},
    }
    used_pool = pool | {"TrainingJobName": "warm-2", "WarmPoolStatus": {"Status": "Terminated"}}
    resources = {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2, "KeepAlivePeriodInSeconds": 600}
    config = {
        "ProductionVariants": [
            {"VariantName": "main", "InitialInstanceCount": 1, "InstanceType": "ml.c7i.xlarge"},
            {"VariantName": "small", "ServerlessConfig": {"MemorySizeInMB": 4096, "MaxConcurrency": 5}},
        ]
    }
    endpoints = [
        {"EndpointName": "serving", "EndpointStatus": "Updating", "CreationTime": START},
        {"EndpointName": "broken", "EndpointStatus": "Failed", "CreationTime": START},
    ]
    aws = Scripted(
        ListTrainingJobs=lambda **asked: {
            "TrainingJobSummaries": [job] if asked.get("StatusEquals") else [pool, used_pool]
        },
        DescribeTrainingJob={"ResourceConfig": resources},
        ListHyperParameterTuningJobs={
            "HyperParameterTuningJobSummaries": [
                {
                    "HyperParameterTuningJobName": "search-1",
                    "HyperParameterTuningJobStatus": "InProgress",
                    "CreationTime": START,
                }
            ]
        },
        ListTransformJobs={
            "TransformJobSummaries": [
                {"TransformJobName": "batch-1", "TransformJobStatus": "InProgress", "CreationTime": START}
            ]
        },
        DescribeTransformJob={"TransformResources": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1}},
        ListEndpoints={"Endpoints": endpoints},
        DescribeEndpoint={
            "EndpointConfigName": "config",
            "ProductionVariants": [{"VariantName": "main", "CurrentInstanceCount": 3}],
        },
        DescribeEndpointConfig=config,
    )
    found = [(one.kind, one.name, one.instances) for one in costs.running(aws)]
    assert found == [
        ("training job", "running-1", "2 x ml.g5.xlarge"),
        ("warm pool", "warm-1", "2 x ml.g5.xlarge"),
        ("tuning job", "search-1", "its training jobs"),
        ("transform job", "batch-1", "1 x ml.m5.xlarge"),
        ("endpoint", "serving", "3 x ml.c7i.xlarge, serverless, by request"),
    ]


def test_status_of_one_job(launch, mock_aws):
    create_job(mock_aws)
    ended = launch("status", "dogs-1")
    assert ended.out.splitlines()[0] == "dogs-1: Completed"
    assert "2 x ml.g5.xlarge for at most 60 min" in ended.out
    assert "  model=resnet18" in ended.out
    assert f"model: s3://{BUCKET}/dogbreed/jobs/dogs-1/output/model.tar.gz" in ended.out


def test_status_of_a_failed_job_starts_with_why(launch):
    launch.aws = Scripted(DescribeTrainingJob=FAILED)
    assert launch("status", "dogs-1").out.splitlines()[0] == f"dogs-1 failed: {FAILED['FailureReason']}"


def test_status_of_an_endpoint(launch, mock_aws):
    create_endpoint(mock_aws)
    ended = launch("status", "dogs")
    assert ended.out.splitlines()[0] == "dogs: InService"
    assert "1 x ml.g4dn.xlarge since" in ended.out
    assert "`launch.py delete dogs` ends it" in ended.out


def test_status_of_what_does_not_exist(launch, mock_aws):
    ended = launch("status", "nobody")
    assert ended.code == 1
    assert "nobody is no training job, tuning job or endpoint in eu-west-1" in ended.err


def test_how_long_jobs_took(launch):
    job = {
        "TrainingJobName": "dogs-1",
        "TrainingJobStatus": "Completed",
        "CreationTime": START,
        "TrainingEndTime": START + timedelta(minutes=12),
    }
    launch.aws = Scripted(
        **NOTHING | {"ListTrainingJobs": lambda **asked: {"TrainingJobSummaries": [job] if "SortBy" in asked else []}}
    )
    assert launch("status").out.splitlines()[1] == "dogs-1        Completed  2026-11-20 20:31  12 min"


def test_stop_sends_one_request(launch):
    launch.aws = Scripted(StopTrainingJob={})
    ended = launch("stop", "dogs-1")
    assert ended.code == 0
    assert launch.aws.asked("StopTrainingJob") == [{"TrainingJobName": "dogs-1"}]
    assert "`launch.py logs dogs-1` shows how it ends" in ended.err


@pytest.mark.parametrize(
    "argv",
    [
        ("status",),
        ("status", "dogs-1"),
        ("stop", "dogs-1"),
        ("logs", "dogs-1"),
        ("logs", "dogs-1", "--kind", "transform"),
        ("logs", "dogs", "--kind", "endpoint"),
        ("report", "dogs-1"),
    ],
)
def test_the_dry_run_prints_requests_that_the_service_takes(launch, argv):
    launch.aws = Scripted()  # any request fails the test
    ended = launch(*argv, "--dry-run")
    calls = json.loads(ended.out)
    assert calls
    assert [problems(Call(**call)) for call in calls] == [[]] * len(calls)
