"""What boto makes of the errors is the contract test's subject; here are the bytes."""

from __future__ import annotations

import json

import pytest
from local_test.simulator.hosting import faults
from local_test.simulator.hosting.faults import Fault

STREAM = faults.log_stream("dogs", "AllTraffic", "i-0001")


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        (faults.no_endpoint("cats"), 400, "ValidationError"),
        (faults.model_error(400, "no image", STREAM), 424, "ModelError"),
        (faults.timed_out(STREAM), 424, "ModelError"),
        (faults.model_not_ready("a"), 429, "ModelNotReadyException"),
        (faults.throttled(), 429, "ThrottlingException"),
        (faults.no_answer("id", "reset"), 500, "InternalFailure"),
        (faults.unavailable("none"), 503, "ServiceUnavailable"),
    ],
)
def test_each_error_has_the_status_and_name_of_the_api_model(fault: Fault, status: int, kind: str) -> None:
    assert (fault.status, fault.headers["x-amzn-ErrorType"]) == (status, kind)
    assert json.loads(fault.body)["Message"]


def test_a_model_error_wraps_the_containers_words_and_cuts_them() -> None:
    body = json.loads(faults.model_error(503, "x" * 5000, STREAM).body)
    assert body["OriginalStatusCode"] == 503
    assert body["OriginalMessage"] == "x" * 2048
    assert body["Message"].startswith('Received server error (503) from primary with message "xxx')
    assert len(body["Message"]) == 2048
    assert body["LogStreamArn"] == STREAM
    assert "client error (415)" in faults.model_error(415, "", STREAM).message


def test_an_answer_that_never_came_has_no_status_of_the_container() -> None:
    body = json.loads(faults.timed_out(STREAM).body)
    assert body["OriginalStatusCode"] == 0
    assert body["OriginalMessage"].startswith("Your invocation timed out")


def test_a_large_payload_has_no_name() -> None:
    fault = faults.too_large(100)
    assert fault.status == 413
    assert "x-amzn-ErrorType" not in fault.headers
    assert json.loads(fault.body) == {"Message": "HTTP content length exceeded 100 bytes."}


def test_the_log_tells_more_than_the_client_hears() -> None:
    fault = faults.no_answer("id", "the connection was reset")
    assert str(fault) == "the connection was reset"
    assert "reset" not in json.loads(fault.body)["Message"]
