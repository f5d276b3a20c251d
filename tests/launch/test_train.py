"""`launch.py train`: the request it makes, what it refuses before anything is started, and how it follows the job."""

import json
import re
from datetime import UTC, datetime

import pytest
from tests.launch.conftest import BUCKET, IMAGE, ROLE
from tests.launch.scripted import Scripted, problems, refusal

from dogbreed.logs import METRIC_REGEXES
from scripts.launcher.plan import Call

DATA = ("--data", f"s3://{BUCKET}/dogbreed/data/dogs")
NAME = ("--name", "dogs-1")


def request(launch, *argv):
    """The one request that the dry run prints; right by the model of the service."""
    ended = launch("train", *DATA, *NAME, *argv, "--dry-run")
    assert ended.code == 0, ended.err
    (call,) = json.loads(ended.out)
    assert problems(Call(**call)) == []
    return call["parameters"]


def description(status, secondary="", **more):
    return {
        "TrainingJobName": "dogs-1",
        "TrainingJobStatus": status,
        "SecondaryStatus": secondary or status,
        "ModelArtifacts": {"S3ModelArtifacts": f"s3://{BUCKET}/dogbreed/jobs/dogs-1/output/model.tar.gz"},
        "SecondaryStatusTransitions": [
            {
                "Status": secondary or status,
                "StatusMessage": f"It is {secondary or status}",
                "StartTime": datetime(2026, 11, 20, 20, 31, tzinfo=UTC),
            }
        ],
        **more,
    }


def streams(*names):
    return {"logStreams": [{"logStreamName": name} for name in names]}


def lines(token, *messages):
    return {"events": [{"message": message} for message in messages], "nextForwardToken": token}


NO_LOG = refusal("ResourceNotFoundException", "The specified log group does not exist.")


def test_the_plainest_request(launch):
    found = request(launch)
    assert found == {
        "TrainingJobName": "dogs-1",
        "RoleArn": ROLE,
        "AlgorithmSpecification": {
            "TrainingImage": IMAGE,
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": name, "Regex": regex} for name, regex in METRIC_REGEXES.items()],
            "EnableSageMakerMetricsTimeSeries": True,
        },
        "HyperParameters": {},
        "InputDataConfig": [
            {
                "ChannelName": "train",
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3Uri": f"s3://{BUCKET}/dogbreed/data/dogs/",
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
                "InputMode": "File",
            }
        ],
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/dogbreed/jobs"},
        "ResourceConfig": {"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50},
        "StoppingCondition": {"MaxRuntimeInSeconds": 4 * 3600},
    }


def test_a_request_with_everything_is_right(launch):
    found = request(
        launch,
        *("--channel", f"validation=s3://{BUCKET}/valid", "--weights", f"s3://{BUCKET}/w/resnet18.pth"),
        *("--hp", "model=resnet18", "batch_size=64", "--hp", "lr=0.01"),
        *("--instance-type", "ml.m5.xlarge", "--instance-count", "2", "--max-run", "90m", "--spot"),
        *("--input-mode", "FastFile", "--volume-gb", "100", "--kms-key", "1234abcd-12ab-34cd-56ef-1234567890ab"),
        *("--subnets", "subnet-0a", "subnet-0b", "--security-groups", "sg-0a", "--network-isolation"),
        *("--tags", "team=dogs", "cost-center=a=b", "--tensorboard", "--managed-debugger"),
    )
    assert found["HyperParameters"] == {"model": "resnet18", "batch-size": "64", "lr": "0.01"}
    assert [(one["ChannelName"], one["InputMode"]) for one in found["InputDataConfig"]] == [
        ("train", "FastFile"),
        ("validation", "FastFile"),
        ("pretrained", "File"),
    ]
    weights = found["InputDataConfig"][2]["DataSource"]["S3DataSource"]["S3Uri"]
    assert weights == f"s3://{BUCKET}/w/resnet18.pth"
    assert found["StoppingCondition"] == {"MaxRuntimeInSeconds": 5400, "MaxWaitTimeInSeconds": 10800}
    assert found["EnableManagedSpotTraining"] is True
    assert found["CheckpointConfig"] == {"S3Uri": f"s3://{BUCKET}/dogbreed/jobs/dogs-1/checkpoints"}
    assert found["VpcConfig"] == {"Subnets": ["subnet-0a", "subnet-0b"], "SecurityGroupIds": ["sg-0a"]}
    assert found["OutputDataConfig"]["KmsKeyId"] == found["ResourceConfig"]["VolumeKmsKeyId"]
    assert found["EnableNetworkIsolation"] is True
    assert found["TensorBoardOutputConfig"] == {"S3OutputPath": f"s3://{BUCKET}/dogbreed/jobs"}
    assert found["Tags"] == [{"Key": "team", "Value": "dogs"}, {"Key": "cost-center", "Value": "a=b"}]


def test_a_manifest_in_pipe_mode(launch):
    found = request(
        launch,
        *(
            "--data",
            f"s3://{BUCKET}/lists/train.manifest",
            "--channel",
            f"validation=s3://{BUCKET}/lists/valid.manifest",
        ),
        *("--weights", f"s3://{BUCKET}/w/resnet18.pth"),
        *("--input-mode", "Pipe", "--manifest-attributes", "source-ref", "breed", "breed-metadata"),
    )
    train_channel, validation, weights = found["InputDataConfig"]
    assert train_channel == {
        "ChannelName": "train",
        "DataSource": {
            "S3DataSource": {
                "S3DataType": "AugmentedManifestFile",
                "S3Uri": f"s3://{BUCKET}/lists/train.manifest",
                "S3DataDistributionType": "FullyReplicated",
                "AttributeNames": ["source-ref", "breed", "breed-metadata"],
            }
        },
        "InputMode": "Pipe",
        "RecordWrapperType": "RecordIO",
        "ContentType": "application/x-recordio",
    }
    assert validation["DataSource"]["S3DataSource"]["S3Uri"] == f"s3://{BUCKET}/lists/valid.manifest"
    assert weights["InputMode"] == "File"
    assert found["AlgorithmSpecification"]["TrainingInputMode"] == "Pipe"


@pytest.mark.parametrize(
    ("key", "uri"), [("records", "records/"), ("records/", "records/"), ("train.rec", "train.rec")]
)
def test_records_in_pipe_mode_are_streamed_as_they_are(launch, key, uri):
    (found,) = request(launch, "--data", f"s3://{BUCKET}/{key}", "--input-mode", "Pipe")["InputDataConfig"]
    assert found["DataSource"]["S3DataSource"]["S3DataType"] == "S3Prefix"
    assert found["DataSource"]["S3DataSource"]["S3Uri"] == f"s3://{BUCKET}/{uri}"
    assert "RecordWrapperType" not in found


@pytest.mark.parametrize("mode", ["File", "FastFile"])
def test_a_list_is_a_file_in_a_channel_of_its_own(launch, mode):
    lists = ("--channel", f"train_lst=s3://{BUCKET}/train.manifest", "--channel", f"validation_lst=s3://{BUCKET}/lists")
    found = request(launch, *lists, "--input-mode", mode)["InputDataConfig"]
    assert [(one["InputMode"], one["DataSource"]["S3DataSource"]["S3Uri"]) for one in found[1:]] == [
        ("File", f"s3://{BUCKET}/train.manifest"),
        ("File", f"s3://{BUCKET}/lists/"),
    ]


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--manifest-attributes", "source-ref", "class"], "in Pipe mode alone; add --input-mode Pipe, or leave the"),
        (
            ["--input-mode", "Pipe", "--manifest-attributes", "class"],
            "--manifest-attributes class: give the image, its",
        ),
        (["--input-mode", "Pipe", "--manifest-attributes", "a-ref", "b-ref"], "as source-ref class"),
        (["--input-mode", "Pipe", "--manifest-attributes", "source-ref", "a", "a"], "as source-ref class"),
        (["--input-mode", "Pipe", "--manifest-attributes", "source-ref"], "as source-ref class"),
        (["--local", "--input-mode", "Pipe"], "--input-mode Pipe is for the account"),
        (["--local", "--manifest-attributes", "x"], "--manifest-attributes is for the account"),
    ],
)
def test_attributes_that_cannot_be_used_are_refused(launch, argv, complaint):
    ended = launch("train", *DATA, *argv, "--dry-run")
    assert ended.code == 2
    assert complaint in ended.err


def test_a_folder_is_no_manifest(launch):
    data = ("--data", f"s3://{BUCKET}/dogs/", "--input-mode", "Pipe")
    ended = launch("train", *data, "--manifest-attributes", "source-ref", "class", "--dry-run")
    assert ended.code == 2
    assert f"--data: s3://{BUCKET}/dogs/ is a folder; with --manifest-attributes give the manifest" in ended.err


@pytest.mark.parametrize("instance_type", ["ml.g5.xlarge", "ml.g4dn.xlarge", "ml.p5.4xlarge", "ml.r5d.xlarge"])
def test_a_disk_that_encrypts_itself_is_given_no_key(launch, instance_type):
    found = request(launch, "--kms-key", "1234", "--instance-type", instance_type)
    assert "VolumeKmsKeyId" not in found["ResourceConfig"]
    assert found["OutputDataConfig"]["KmsKeyId"] == "1234"


@pytest.mark.parametrize("uri", ["s3://b-1/w", "s3://b-1/w/"])
def test_a_folder_of_weights_ends_with_a_slash(launch, uri):
    (_, weights) = request(launch, "--weights", uri)["InputDataConfig"]
    assert weights["DataSource"]["S3DataSource"]["S3Uri"] == "s3://b-1/w/"


def test_checkpoints_may_be_those_of_an_earlier_job(launch):
    found = request(launch, "--checkpoints", "s3://b-1/jobs/old/checkpoints")
    assert found["CheckpointConfig"] == {"S3Uri": "s3://b-1/jobs/old/checkpoints"}
    assert "EnableManagedSpotTraining" not in found


def test_a_warm_pool_keeps_its_instances(launch):
    assert request(launch, "--warm-pool", "10m")["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 600


def test_without_a_name_the_job_is_named_by_the_time(launch):
    ended = launch("train", *DATA, "--dry-run")
    (call,) = json.loads(ended.out)
    assert re.fullmatch(r"dogbreed-\d{8}-\d{6}-\d{3}", call["parameters"]["TrainingJobName"])


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--hp", "lr=fast"], "lr='fast' is not allowed; give a number from 1e-07 to 10"),
        (["--hp", "learning_rate=0.1"], "'learning_rate' is unknown"),
        (["--hp", "batch-size=8", "batch_size=16"], "hyperparameter batch_size is given twice"),
        (["--hp", "lr"], "'lr' is not name=value"),
        (["--spot", "--warm-pool", "60"], "--warm-pool and --spot exclude each other"),
        (["--warm-pool", "2h"], "give at most 3600 s"),
        (["--spot", "--max-run", "2h", "--max-wait", "2h"], "waiting includes running, so give more"),
        (["--max-wait", "2h"], "--max-wait is for --spot"),
        (["--max-run", "29d"], "28d"),
        (["--max-run", "soon"], "'soon' is not a duration; give 90m, 4h, 2d or seconds"),
        (["--max-run", "0"], "'0' is not a duration"),
        (["--subnets", "subnet-0a"], "--subnets and --security-groups go together"),
        (["--channel", f"train=s3://{BUCKET}/x"], "channel 'train' is given twice"),
        (["--channel", "a b=s3://bucket/x"], "channel 'a b'"),
        (["--channel", "validation=/home/x"], "'/home/x' is not an S3 URI"),
        (["--data", "photos"], "`launch.py upload` sends a folder and prints its URI"),
        (["--weights", "resnet18.pth"], "'resnet18.pth' is not an S3 URI"),
        (["--instance-type", "g5.xlarge"], "they look like ml.g5.xlarge"),
        (["--instance-count", "0"], "'0' is not a whole number"),
        (["--name", "dogs_1"], "'dogs_1' is not a name that SageMaker takes"),
        (["--managed-debugger", "--region", "mx-central-1"], "in mx-central-1 is not known here; known are af-south-1"),
        (["--role", "dogbreed"], "role='dogbreed' is not ARN"),
    ],
)
def test_a_mistake_costs_nothing(launch, argv, says):
    launch.aws = Scripted()  # any request fails the test
    ended = launch("train", *DATA, *argv)
    assert ended.code == 2
    assert says in ended.err
    assert "Traceback" not in ended.err


def test_data_is_needed(launch):
    ended = launch("train")
    assert ended.code == 2
    assert "give --data s3://bucket/key, which `launch.py upload FOLDER` prints" in ended.err


@pytest.mark.parametrize("name", ["role", "bucket", "image"])
def test_a_missing_setting_is_one_sentence(launch, name):
    del launch.environ[f"DOGBREED_{name.upper()}"]
    ended = launch("train", *DATA)
    assert ended.code == 2
    assert ended.err.startswith(f"launch.py train: no {name}: give --{name} or DOGBREED_{name.upper()}")
    assert ended.err.count("\n") == 1


def test_end_to_end_against_the_mock_aws(launch, mock_aws):
    logs = mock_aws("logs")
    logs.create_log_group(logGroupName="/aws/sagemaker/TrainingJobs")
    logs.create_log_stream(logGroupName="/aws/sagemaker/TrainingJobs", logStreamName="dogs-1/algo-1-1700000000")
    now = int(datetime.now(UTC).timestamp() * 1000)
    logs.put_log_events(
        logGroupName="/aws/sagemaker/TrainingJobs",
        logStreamName="dogs-1/algo-1-1700000000",
        logEvents=[{"timestamp": now, "message": "epoch=1; train_loss=0.5;"}],
    )
    ended = launch("train", *DATA, *NAME, "--hp", "model=resnet18")
    assert ended.code == 0
    assert ended.err.startswith("cost: 1 x ml.g4dn.xlarge for at most 4 h\nstarted dogs-1")
    assert ended.err.count("epoch=1; train_loss=0.5;") == 1
    assert ended.out == f"s3://{BUCKET}/dogbreed/jobs/dogs-1/output/model.tar.gz\n"
    job = mock_aws("sagemaker").describe_training_job(TrainingJobName="dogs-1")
    assert job["HyperParameters"] == {"model": "resnet18"}
    assert job["RoleArn"] == ROLE


def test_no_wait_prints_the_name(launch, mock_aws):
    ended = launch("train", *DATA, *NAME, "--no-wait")
    assert ended.out == "dogs-1\n"
    assert "`launch.py logs dogs-1 --follow`" in ended.err


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--spot"], "cost: 1 x ml.g4dn.xlarge for at most 4 h, at the spot price, over at most 8 h"),
        (
            ["--instance-count", "2", "--warm-pool", "10m"],
            "cost: 2 x ml.g4dn.xlarge for at most 4 h, and 10 min as a warm pool after it",
        ),
    ],
)
def test_the_cost_is_said_before_anything_is_started(launch, argv, line):
    launch.aws = Scripted(CreateTrainingJob=refusal("ResourceLimitExceeded", "limit is 0"))
    ended = launch("train", *DATA, *argv)
    assert ended.err.splitlines()[0] == line
    assert "quota" in ended.err.splitlines()[1]


def test_follows_status_log_and_metrics_to_the_end(launch):
    launch.aws = Scripted(
        CreateTrainingJob={},
        DescribeTrainingJob=[
            description("InProgress", "Starting"),
            description("InProgress", "Training"),
            description("InProgress", "Training"),
            description(
                "Completed",
                TrainingTimeInSeconds=1000,
                BillableTimeInSeconds=300,
                FinalMetricDataList=[{"MetricName": "test_accuracy", "Value": 0.9125}],
            ),
        ],
        DescribeLogStreams=[NO_LOG, streams("dogs-1/algo-1-1")],
        GetLogEvents=[
            lines("f/1", "loading"),
            lines("f/1"),
            lines("f/2", "epoch=1; train_loss=0.5;"),
            lines("f/2"),
            lines("f/2"),
            lines("f/3", "the last words"),
            lines("f/3"),
        ],
    )
    ended = launch("train", *DATA, *NAME, "--spot")
    assert ended.code == 0
    assert ended.err.splitlines()[2:] == [
        "20:31:00 Starting: It is Starting",
        "20:31:00 Training: It is Training",
        "loading",
        "epoch=1; train_loss=0.5;",
        "20:31:00 Completed: It is Completed",
        "the last words",
        "dogs-1: Completed",
        "trained for 17 min, billed for 5 min per instance, 70% saved by spot",
        "metrics: test_accuracy=0.9125",
        "`launch.py report dogs-1` fetches the report",
    ]
    # Each page is asked for with the token of the one before, never from the start again.
    tokens = [asked.get("nextToken") for asked in launch.aws.asked("GetLogEvents")]
    assert tokens == [None, "f/1", "f/1", "f/2", "f/2", "f/2", "f/3"]


def test_quiet_shows_metrics_and_status_alone(launch):
    launch.aws = Scripted(
        CreateTrainingJob={},
        DescribeTrainingJob=description("Completed"),
        DescribeLogStreams=streams("dogs-1/algo-1-1"),
        GetLogEvents=[lines("f/1", "loading", "epoch=1; train_loss=0.5;"), lines("f/1")],
    )
    ended = launch("train", *DATA, *NAME, "--quiet")
    assert "train_loss=0.5" in ended.err
    assert "loading" not in ended.err


def test_lines_of_several_hosts_carry_their_names(launch):
    launch.aws = Scripted(
        CreateTrainingJob={},
        DescribeTrainingJob=description("Completed"),
        DescribeLogStreams=streams("dogs-1/algo-1-17", "dogs-1/algo-2-17"),
        GetLogEvents=[lines("f/1", "hello"), lines("f/1"), lines("f/2", "hello"), lines("f/2")],
    )
    ended = launch("train", *DATA, *NAME)
    assert "[algo-1] hello\n[algo-2] hello\n" in ended.err


def test_a_failed_job_says_why_first(launch):
    reason = "AlgorithmError: channel 'train' holds no class folders, exit code: 1"
    launch.aws = Scripted(
        CreateTrainingJob={},
        DescribeTrainingJob=description("Failed", FailureReason=reason),
        DescribeLogStreams=NO_LOG,
    )
    ended = launch("train", *DATA, *NAME)
    assert ended.code == 1
    assert ended.out == ""
    assert f"launch.py train: dogs-1 failed: {reason}" in ended.err.splitlines()


def test_a_job_stopped_at_its_limit_still_has_a_model(launch):
    launch.aws = Scripted(
        CreateTrainingJob={},
        DescribeTrainingJob=description("Stopped", "MaxRuntimeExceeded"),
        DescribeLogStreams=NO_LOG,
    )
    ended = launch("train", *DATA, *NAME)
    assert ended.code == 0
    assert "stopped at --max-run" in ended.err
    assert ended.out.endswith("model.tar.gz\n")


def test_ctrl_c_while_following_leaves_the_job_and_says_how_to_stop_it(launch):
    launch.aws = Scripted(
        CreateTrainingJob={}, DescribeTrainingJob=description("InProgress", "Training"), DescribeLogStreams=NO_LOG
    )

    def interrupt(seconds):
        if len(launch.slept) == 3:
            raise KeyboardInterrupt

    launch.on_sleep = interrupt
    ended = launch("train", *DATA, *NAME)
    assert ended.code == 130
    assert ended.err.splitlines()[-1] == (
        "dogs-1 goes on, and goes on costing: `launch.py logs dogs-1 --follow` watches it again, "
        "`launch.py stop dogs-1` ends it"
    )
    assert launch.aws.asked("StopTrainingJob") == []


def test_a_name_that_exists_is_one_sentence(launch):
    message = "Training job names must be unique within an AWS account and region"
    launch.aws = Scripted(CreateTrainingJob=refusal("ResourceInUse", message))
    ended = launch("train", *DATA, *NAME)
    assert ended.code == 1
    assert "that name exists already; give another by --name" in ended.err


def test_a_minute_without_network_does_not_end_the_watching(launch):
    launch.aws = Scripted(
        CreateTrainingJob={},
        DescribeTrainingJob=[
            description("InProgress", "Training"),
            refusal("ThrottlingException", "Rate exceeded"),
            refusal("InternalFailure", "sorry", status=500),
            description("Completed"),
        ],
        DescribeLogStreams=NO_LOG,
    )
    ended = launch("train", *DATA, *NAME)
    assert ended.code == 0
    assert ended.err.count("trying again, the job goes on") == 2


def test_an_error_that_stays_ends_the_watching_and_not_the_job(launch):
    launch.aws = Scripted(
        CreateTrainingJob={}, DescribeTrainingJob=refusal("ThrottlingException", "Rate exceeded"), DescribeLogStreams={}
    )
    ended = launch("train", *DATA, *NAME)
    assert ended.code == 1
    assert "dogs-1 was started and may be running" in ended.err
    assert len(launch.slept) == 30
