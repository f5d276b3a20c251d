"""`launch.py transform`: the job's request, the wait, and the count of answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.launch.conftest import BUCKET, Launch
from tests.launch.scripted import Scripted, problems

from scripts.launcher.plan import Call

PLACES = ("s3://bucket/photos", "s3://bucket/answers/")
MODEL = ("--model", "dogs-model")


def planned(launch: Launch, *argv: str) -> list[Call]:
    ended = launch("transform", *PLACES, *argv, "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    calls = [Call(**call) for call in json.loads(ended.out)]
    assert [problem for call in calls for problem in problems(call) if "${" not in problem] == []
    return calls


@pytest.mark.parametrize(
    ("argv", "operations"),
    [
        (MODEL, ["CreateTransformJob"]),
        (("--model-data", "s3://bucket/model.tar.gz"), ["CreateModel", "CreateTransformJob"]),
        (("--job", "job"), ["DescribeTrainingJob", "CreateModel", "CreateTransformJob"]),
        ((*MODEL, "--kms-key", "alias/dogs", "--tags", "team=dogs", "--instance-count", "100"), ["CreateTransformJob"]),
        ((*MODEL, "--max-concurrent", "5", "--max-payload", "20", "--timeout", "3600"), ["CreateTransformJob"]),
    ],
)
def test_every_way_makes_requests_that_the_service_takes(
    launch: Launch, argv: tuple[str, ...], operations: list[str]
) -> None:
    assert [call.operation for call in planned(launch, *argv)] == operations


def test_one_object_is_one_request(launch: Launch) -> None:
    job = planned(launch, *MODEL, "--content-type", "image/png")[-1].parameters
    source = job["TransformInput"]
    assert (source["SplitType"], source["ContentType"]) == ("None", "image/png")
    assert source["DataSource"]["S3DataSource"] == {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/photos/"}
    assert job["TransformOutput"]["S3OutputPath"] == "s3://bucket/answers"
    # Without --max-concurrent the platform asks the container, by /execution-parameters.
    assert not {"MaxConcurrentTransforms", "BatchStrategy"} & set(job)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--max-payload", "101"), "give 1 to 100"),
        (("--max-payload", "30", "--max-concurrent", "4"), "with this payload give at most 3"),
        (("--retries", "4"), "give 0 to 3"),
        (("--instance-count", "101"), "give 1 to 100"),
        (("--instance-type", "ml.g5.xlarge"), "driver that batch transform has is 535"),
    ],
)
def test_what_the_service_would_refuse_is_refused_here(launch: Launch, argv: tuple[str, ...], message: str) -> None:
    ended = launch("transform", *PLACES, *MODEL, *argv)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


def listing(*keys: str) -> dict[str, Any]:
    return {"Contents": [{"Key": key} for key in keys]}


def transforming(*states: dict[str, Any], answers: tuple[str, ...] = ()) -> Scripted:
    """An AWS with three images, of which some have been answered."""
    keys = {
        "photos/": listing("photos/", "photos/a.jpg", "photos/in/b.jpg", "photos/c.jpg"),
        "answers/": listing(*(f"answers/{name}.out" for name in answers)),
    }
    return Scripted(
        ListObjectsV2=lambda Prefix, **_: keys[Prefix],
        DescribeTransformJob=list(states),
        CreateTransformJob={},
        CreateModel={},
        DeleteModel={},
    )


COMPLETED = {"TransformJobStatus": "Completed"}
RUNNING = {"TransformJobStatus": "InProgress"}


def test_a_whole_batch_is_reported(launch: Launch) -> None:
    script = transforming(RUNNING, RUNNING, COMPLETED, answers=("a.jpg", "in/b.jpg", "c.jpg"))
    launch.aws = script
    ended = launch("transform", *PLACES, "--model-data", "s3://bucket/model.tar.gz")
    assert (ended.code, ended.out) == (0, "s3://bucket/answers/\n")
    assert "cost: 1 x ml.c5.xlarge until 3 objects are done" in ended.err
    assert "InProgress, 3 of 3" in ended.err
    assert "3 of 3 objects were answered" in ended.err
    assert len(launch.slept) == 2
    (made,), (deleted,) = script.asked("CreateModel"), script.asked("DeleteModel")
    assert made["ModelName"] == deleted["ModelName"]


@pytest.mark.parametrize("argv", [MODEL, ("--model-data", "s3://bucket/model.tar.gz", "--keep-model")])
def test_a_model_that_is_to_stay_stays(launch: Launch, argv: tuple[str, ...]) -> None:
    script = transforming(COMPLETED, answers=("a.jpg", "in/b.jpg", "c.jpg"))
    launch.aws = script
    assert launch("transform", *PLACES, *argv).code == 0
    assert script.asked("DeleteModel") == []


def test_what_was_not_answered_is_named_and_a_failure(launch: Launch) -> None:
    launch.aws = transforming(COMPLETED, answers=("a.jpg",))
    ended = launch("transform", *PLACES, *MODEL)
    assert ended.code == 1
    assert "1 of 3 objects were answered; no answer for in/b.jpg, c.jpg" in ended.err


def test_a_failed_job_says_why_first(launch: Launch) -> None:
    script = transforming({"TransformJobStatus": "Failed", "FailureReason": "bad data"}, answers=("a.jpg",))
    launch.aws = script
    ended = launch("transform", *PLACES, "--model-data", "s3://bucket/model.tar.gz")
    assert (ended.code, ended.out) == (1, "")
    failure = ended.err[ended.err.index("launch.py transform:") :].splitlines()
    assert failure[0] == "launch.py transform: bad data"
    assert "1 of 3 objects were answered" in failure[1]
    assert len(script.asked("DeleteModel")) == 1


def test_strays_are_named_before_anything_starts(launch: Launch) -> None:
    script = transforming(COMPLETED)
    script.answers["ListObjectsV2"] = [listing("photos/a.jpg", "photos/.DS_Store")]
    launch.aws = script
    ended = launch("transform", *PLACES, *MODEL)
    assert "1 of 2 objects do not look like images and may fail: .DS_Store" in ended.err


def test_an_empty_prefix_starts_nothing(launch: Launch) -> None:
    script = Scripted(ListObjectsV2={})
    launch.aws = script
    ended = launch("transform", *PLACES, *MODEL)
    assert (ended.code, "no object under s3://bucket/photos" in ended.err) == (2, True)


def test_interrupting_says_how_to_stop_the_job(launch: Launch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    launch.aws = transforming(RUNNING)
    launch.on_sleep = interrupt
    ended = launch("transform", *PLACES, *MODEL)
    assert ended.code == 130
    assert "to stop it: aws sagemaker stop-transform-job --transform-job-name dogbreed-transform-" in ended.err


def test_without_waiting_the_job_and_its_model_stay(launch: Launch) -> None:
    script = transforming(RUNNING)
    launch.aws = script
    ended = launch("transform", *PLACES, "--model-data", "s3://bucket/model.tar.gz", "--no-wait")
    assert (ended.code, launch.slept) == (0, [])
    assert "stop-transform-job" in ended.out
    assert script.asked("DeleteModel") == []


def test_end_to_end_in_the_mock(launch: Launch, mock_aws: Callable[[str], Any]) -> None:
    s3 = mock_aws("s3")
    for index in range(3):
        s3.put_object(Bucket=BUCKET, Key=f"photos/{index}.jpg", Body=b"-")
        s3.put_object(Bucket=BUCKET, Key=f"photos-old/{index}.jpg", Body=b"-")
        s3.put_object(Bucket=BUCKET, Key=f"answers/{index}.jpg.out", Body=b"{}")
    argv = ("--model-data", f"s3://{BUCKET}/model.tar.gz")
    ended = launch("transform", f"s3://{BUCKET}/photos", f"s3://{BUCKET}/answers", *argv)
    assert ended.code == 0, ended.err
    assert "3 of 3 objects were answered" in ended.err
    (job,) = mock_aws("sagemaker").list_transform_jobs()["TransformJobSummaries"]
    assert job["TransformJobName"].startswith("dogbreed-transform-")
    assert mock_aws("sagemaker").list_models()["Models"] == []
