from __future__ import annotations

import json

import pytest
from local_test.simulator.batch import parameters
from local_test.simulator.batch.parameters import Asked, Parameters, ParametersError, Strategy

CONTAINER = Asked(Strategy.SINGLE, 4, 2)


def test_the_job_comes_before_the_container_and_both_before_the_defaults() -> None:
    assert parameters.settle(Asked(), Asked()) == Parameters(Strategy.MULTI, 1, 6)
    assert parameters.settle(Asked(), CONTAINER) == Parameters(Strategy.SINGLE, 4, 2)
    assert parameters.settle(Asked(Strategy.MULTI, 8, 3), CONTAINER) == Parameters(Strategy.MULTI, 8, 3)
    assert parameters.settle(Asked(at_once=8), CONTAINER) == Parameters(Strategy.SINGLE, 8, 2)


def test_zero_is_no_limit_of_a_payload_and_no_wish_for_requests() -> None:
    settled = parameters.settle(Asked(at_once=0, payload_mb=0), CONTAINER)
    assert (settled.at_once, settled.payload_mb, settled.payload_bytes) == (4, 0, None)


@pytest.mark.parametrize(
    "asked", [Asked(at_once=1, payload_mb=101), Asked(at_once=11, payload_mb=10), Asked(at_once=17)]
)
def test_more_than_100_mb_under_way_is_refused(asked: Asked) -> None:
    with pytest.raises(ParametersError, match="100"):
        parameters.settle(asked, Asked())


def test_only_what_the_user_gave_is_told_to_the_container() -> None:
    assert Asked().environment == {"SAGEMAKER_BATCH": "true"}
    assert Asked(Strategy.SINGLE, 2, 0).environment == {
        "SAGEMAKER_BATCH": "true",
        "SAGEMAKER_BATCH_STRATEGY": "SINGLE_RECORD",
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": "2",
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": "0",
    }


def test_the_containers_document() -> None:
    document = {"MaxConcurrentTransforms": 4, "BatchStrategy": "SINGLE_RECORD", "MaxPayloadInMB": 2, "Other": 1}
    assert parameters.read(200, json.dumps(document).encode()) == CONTAINER
    assert parameters.read(200, b"{}") == Asked()
    assert parameters.read(404, b"<html>") == Asked()


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'{"BatchStrategy": "MultiRecord"}',
        b'{"BatchStrategy": 1}',
        b'{"MaxPayloadInMB": "6"}',
        b'{"MaxConcurrentTransforms": -1}',
        b'{"MaxConcurrentTransforms": true}',
    ],
)
def test_a_document_that_the_platform_would_not_read_is_quoted(body: bytes) -> None:
    with pytest.raises(ParametersError, match="/execution-parameters"):
        parameters.read(200, body)
