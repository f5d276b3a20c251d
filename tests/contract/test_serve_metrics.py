"""What a real server counts and logs, over several workers."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from tests.contract.serving import save_bundle
from tests.server_process import Server, is_ready


def counts(server: Server) -> dict[tuple[str, ...], float]:
    """Name and label values -> value."""
    answer = server.send("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def test_every_worker_answers_for_all_and_a_killed_one_takes_no_counts_along(
    starting: Callable[..., Server], tmp_path: Path, jpeg: bytes
) -> None:
    save_bundle(tmp_path)
    server = starting(SAGEMAKER_MODEL_SERVER_WORKERS="2")
    server.wait_for_log("ready after")
    server.wait(is_ready)

    def ask(times: int) -> int:
        answers = [server.send("POST", "/invocations", jpeg, Content_Type="image/jpeg") for _ in range(times)]
        return sum(answer.status == 200 for answer in answers)

    done = ask(20)
    found = counts(server)
    assert found["dogbreed_requests_total", "/invocations", "200"] == done > 0
    assert found["dogbreed_running_requests",] == 0
    (info,) = [labels for labels in found if labels[0] == "dogbreed_model_info"]
    assert info[1:4] == ("tiny", "7", "cpu")
    assert info[4] in ("openvino-fp32", "torch-fp32"), "a bundle without a record is served in float32"
    os.kill(int(re.search(r"Booting worker with pid: (\d+)", server.log).group(1)), signal.SIGKILL)
    server.wait_for_log("was sent SIGKILL")
    done += ask(20)
    assert counts(server)["dogbreed_requests_total", "/invocations", "200"] == done
    assert server.stop() == 0


def test_the_log_is_json_when_asked_and_cloudwatch_finds_its_metrics_in_it(
    starting: Callable[..., Server], tmp_path: Path, jpeg: bytes
) -> None:
    save_bundle(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    server = starting(  # with a folder for counts that is not there yet
        DOGBREED_LOG_FORMAT="json",
        DOGBREED_EMF_NAMESPACE="dogs",
        PROMETHEUS_MULTIPROC_DIR=str(scratch / "metrics"),
    )
    server.wait(is_ready)
    server.send("POST", "/invocations", jpeg, X_Request_Id="mine", X_Amzn_SageMaker_Inference_Id="seven")
    server.wait_for_log('"_aws"')
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log.splitlines()]
    (invocation,) = [line for line in lines if "ms" in line]
    (metric,) = [line for line in lines if "_aws" in line]
    assert (invocation["status"], invocation["request_id"], invocation["inference_id"]) == (200, "mine", "seven")
    assert (metric["Status"], metric["RequestId"], metric["Invocations"]) == (200, "mine", 1)
    assert list(scratch.iterdir()) == []


def test_a_folder_for_counts_that_a_user_has_named_keeps_what_else_is_in_it(
    starting: Callable[..., Server], tmp_path: Path
) -> None:
    save_bundle(tmp_path)
    folder = tmp_path / "named"
    (folder / "below").mkdir(parents=True)
    others = [folder / "thesis.txt", folder / "below" / "counter_9.db"]
    for file in others:
        file.write_bytes(b"")
    server = starting(PROMETHEUS_MULTIPROC_DIR=str(folder), SAGEMAKER_MODEL_SERVER_WORKERS="2")
    server.wait(is_ready)
    assert counts(server)["dogbreed_requests_total", "/ping", "200"] > 0
    assert len(list(folder.glob("*.db"))) > 2
    assert server.stop() == 0
    assert sorted(file for file in folder.rglob("*") if file.is_file()) == sorted(others)
