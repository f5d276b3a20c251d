"""The local platform's transform jobs: this project's server on photos, and the little subject that misbehaves."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from local_test.simulator.batch import job
from local_test.simulator.batch.job import Plan, Result, Transform
from local_test.simulator.batch.parameters import Asked, Assemble, Split, Strategy
from local_test.simulator.hosting.events import Events
from local_test.simulator.hosting.fleet import Fleet
from local_test.simulator.hosting.launching import Launch
from PIL import Image
from tests.contract.local_platform import HEALTH, PATIENCE_S, little, model
from tests.contract.serving import save_bundle

REPOSITORY = Path(__file__).resolve().parents[2]


def photo(size: int = 80) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (size, size), (200, 10, 30)).save(content, "JPEG")
    return content.getvalue()


def transform(folder: Path, *, environment: Mapping[str, str] | None = None, **options: Any) -> Result:
    """Runs a job of the little subject on ``folder/in``."""
    options = {"name": "night", "content_type": "text/plain", "pause_s": 0.01, "answer_s": 60.0} | options
    plan = Plan(source=folder / "in", output=folder / "out", **options)
    launch = Launch(
        little(folder), folder / "job", model(folder), environment={**(environment or {}), **plan.asked.environment}
    )
    (folder / "job").mkdir()
    events = Events(folder / "events.jsonl")
    fleet = Fleet(launch, count=1, rules=HEALTH, events=events)
    fleet.open()
    try:
        assert fleet.wait_until_in_service(threading.Event())
        return Transform(plan, fleet, instances=1, events=events).run(threading.Event())
    finally:
        fleet.close()


def objects(folder: Path, **contents: bytes) -> None:
    for name, content in contents.items():
        file = folder / "in" / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def outputs(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder / "out").as_posix() for path in (folder / "out").rglob("*") if path.is_file())


def command(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`python -m local_test transform night` in a folder, with its `in`."""
    line = [sys.executable, "-m", "local_test", "transform", "night", "--input", "in", "--output", "out", *options]
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'container'}"}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)


def job_file(folder: Path) -> Any:
    return json.loads((folder / "build" / "platform" / "transform-jobs" / "night" / job.JOB).read_text())


def test_this_projects_server_answers_for_what_is_no_photo_too(tmp_path: Path) -> None:
    """In batch it answers 200 with an entry that holds the error, so that one bad file does not fail the job."""
    save_bundle(tmp_path)
    objects(tmp_path, good=photo(), **{"more__good": photo(60), "broken": b"no image", ".DS_Store": b"stray"})
    options = ["--content-type", "image/jpeg", "--env", "DOGBREED_HOST=127.0.0.1", "--max-concurrent", "2"]
    done = command(tmp_path, "--process", "--model", "model", *options)
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path) == [".DS_Store.out", "broken.out", "good.out", "more/good.out"]
    assert json.loads((tmp_path / "out" / "good.out").read_text())["predictions"][0]["top_k"]
    assert "unreadable_image" in (tmp_path / "out" / "broken.out").read_text()
    written = job_file(tmp_path)
    assert (written["TransformJobStatus"], written["MaxConcurrentTransforms"]) == ("Completed", 2)
    # As its /execution-parameters says.
    assert (written["BatchStrategy"], written["MaxPayloadInMB"]) == ("SingleRecord", 25)
    assert "Completed: 4 of 4 objects" in done.stdout


def test_an_object_that_is_refused_has_no_answer_and_fails_the_job(tmp_path: Path) -> None:
    little(tmp_path)
    objects(tmp_path, good=b"x", **{"more__good": b"y", "broken": b"no"})
    (tmp_path / "model").mkdir()
    options = ["--content-type", "a/b", "--env", "REFUSED=no"]
    done = command(tmp_path, "--process", "programs", "--model", "model", *options)
    assert done.returncode == 1, done.stderr
    assert outputs(tmp_path) == ["good.out", "more/good.out"]
    written = job_file(tmp_path)
    assert written["TransformJobStatus"] == "Failed"
    assert written["FailureReason"] == "ClientError: 1 of 3 objects failed"
    rows = {row["key"]: row for row in written["Objects"]}
    assert list(rows) == ["broken", "good", "more/good"]
    assert (rows["broken"]["error"], rows["broken"]["retries"]) == ("400 bad", 0)
    assert "Failed: 2 of 3 objects" in done.stdout


def test_the_container_is_asked_how_and_told_only_what_the_job_asked(tmp_path: Path) -> None:
    objects(tmp_path, a=b"x")
    offered = json.dumps({"MaxConcurrentTransforms": 3, "BatchStrategy": "SINGLE_RECORD", "MaxPayloadInMB": 2})
    result = transform(tmp_path, environment={"PARAMETERS": offered}, asked=Asked(payload_mb=1), accept="text/csv")
    held = result.parameters
    assert (held.strategy, held.at_once, held.payload_mb) == (Strategy.SINGLE, 3, 1)
    seen = json.loads((tmp_path / "out" / "a.out").read_text())
    assert seen["headers"]["Content-Type"] == "text/plain"
    assert seen["headers"]["Accept"] == "text/csv"
    variables = {name for name in seen["environment"] if name.startswith(("SAGEMAKER_BATCH", "SAGEMAKER_MAX"))}
    assert variables == {"SAGEMAKER_BATCH", "SAGEMAKER_MAX_PAYLOAD_IN_MB"}


def test_lines_become_records_and_answers_an_object_again(tmp_path: Path) -> None:
    objects(tmp_path, lines=b"a\nb\nc\n", empty=b"")
    environment = {"ECHO": "1"}
    single = transform(
        tmp_path,
        environment=environment,
        asked=Asked(Strategy.SINGLE, 2),
        split=Split.LINE,
        assemble=Assemble.LINE,
    )
    assert single.status == "Completed"
    assert (tmp_path / "out" / "lines.out").read_bytes() == b"a\n\nb\n\nc\n\n"
    assert (tmp_path / "out" / "empty.out").read_bytes() == b""
    assert [(one.key, one.requests) for one in single.objects] == [("empty", 0), ("lines", 3)]


def test_several_lines_in_one_request(tmp_path: Path) -> None:
    objects(tmp_path, lines=b"a\nb\nc\n")
    several = transform(tmp_path, environment={"ECHO": "1"}, split=Split.LINE)
    assert several.objects[0].requests == 1
    assert (tmp_path / "out" / "lines.out").read_bytes() == b"a\nb\nc\n"


@pytest.mark.parametrize(("status", "retries", "succeeds"), [(503, 3, True), (503, 0, False), (400, 3, False)])
def test_only_the_servers_faults_are_retried(tmp_path: Path, status: int, retries: int, succeeds: bool) -> None:
    objects(tmp_path, a=b"a-mark", b=b"b-mark")
    result = transform(tmp_path, environment={"FAIL_FIRST": str(status)}, retries=retries)
    assert [one.error is None for one in result.objects] == [succeeds, succeeds]
    assert [one.retries for one in result.objects] == [int(succeeds)] * 2
    assert outputs(tmp_path) == (["a.out", "b.out"] if succeeds else [])


def test_an_object_that_kills_the_container_fails_alone(tmp_path: Path) -> None:
    objects(tmp_path, a=b"x", b=b"kill", c=b"x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.out").write_text("of an earlier job")
    result = transform(tmp_path, environment={"KILLED_BY": "kill"}, retries=1)
    assert result.status == "Failed"
    assert outputs(tmp_path) == ["a.out", "c.out"]
    assert (result.objects[1].retries, result.objects[1].requests) == (1, 1)
    assert "exit code 9" in (tmp_path / "events.jsonl").read_text()


def test_what_is_too_large_and_what_takes_too_long(tmp_path: Path) -> None:
    objects(tmp_path, large=bytes(1024 * 1024 + 1), slow=b"sleep", small=b"x")
    result = transform(tmp_path, environment={"SLOW": "sleep"}, asked=Asked(payload_mb=1), answer_s=1.0, retries=0)
    errors = {one.key: one.error or "" for one in result.objects}
    assert "more than MaxPayloadInMB 1" in errors["large"]
    assert "no whole answer within 1 s" in errors["slow"]
    assert outputs(tmp_path) == ["small.out"]


def test_without_a_limit_objects_go_in_chunks(tmp_path: Path) -> None:
    objects(tmp_path, large=bytes(3 * 1024 * 1024))
    assert transform(tmp_path, asked=Asked(payload_mb=0)).status == "Completed"
    seen = json.loads((tmp_path / "out" / "large.out").read_text())
    assert seen["bytes"] == 3 * 1024 * 1024
    assert seen["headers"]["Transfer-Encoding"] == "chunked"


def test_a_folder_without_objects(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    result = transform(tmp_path)
    assert (result.status, result.reason) == ("Failed", f"ClientError: no objects below {tmp_path / 'in'}")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--output", "in/answers"], "lies in --input"),
        (["--retries", "4"], "--retries 4 is not of 0 to 3"),
        (["--timeout", "4000"], "--timeout 4000 is not of 1 to 3600 seconds"),
        (["--max-concurrent", "20", "--max-payload", "6"], "MaxConcurrentTransforms 20 x MaxPayloadInMB 6"),
        (["--instance-type", "ml.m5.huge"], "'ml.m5.huge' is not in the table"),
        (["--env", "oops"], "--env 'oops' is not NAME=VALUE"),
        (["--model", "absent"], "there is no model at absent"),
    ],
)
def test_a_users_mistake_is_one_sentence(tmp_path: Path, options: list[str], told: str) -> None:
    little(tmp_path)
    objects(tmp_path, a=b"x")
    done = command(tmp_path, "--process", "programs", "--model", "in", "--content-type", "a/b", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
