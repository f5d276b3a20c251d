from __future__ import annotations

import pytest
from local_test.simulator.hosting import headers
from local_test.simulator.hosting.headers import HeaderError, Operation

CLIENT = {
    "content-type": "image/jpeg",
    "accept": "application/json",
    "authorization": "AWS4-HMAC-SHA256 secret",
    "cookie": "a=b",
    "x-forwarded-for": "1.2.3.4",
    "x-amzn-sagemaker-custom-attributes": "top_k=3",
    "x-amzn-sagemaker-inference-id": "one",
    "x-amzn-sagemaker-session-id": "NEW_SESSION",
    "x-amzn-sagemaker-target-model": "a.tar.gz",
    "x-amzn-sagemaker-target-variant": "AllTraffic",
}


def test_only_the_headers_of_the_interface_cross() -> None:
    assert headers.to_container(Operation.INVOKE, CLIENT) == {
        "Content-Type": "image/jpeg",
        "Accept": "application/json",
        "X-Amzn-SageMaker-Custom-Attributes": "top_k=3",
        "X-Amzn-SageMaker-Inference-Id": "one",
        "X-Amzn-SageMaker-Session-Id": "NEW_SESSION",
        "X-Amzn-SageMaker-Target-Model": "a.tar.gz",
    }


def test_a_missing_accept_stays_missing_and_a_type_is_always_there() -> None:
    assert headers.to_container(Operation.INVOKE, {}) == {"Content-Type": "application/octet-stream"}


@pytest.mark.parametrize(
    ("operation", "content_type", "accept"),
    [(Operation.STREAM, "image/jpeg", "text/csv"), (Operation.ASYNC, "image/png", "text/csv")],
)
def test_two_operations_have_names_of_their_own(operation: Operation, content_type: str, accept: str) -> None:
    given = CLIENT | {"x-amzn-sagemaker-content-type": "image/png", "x-amzn-sagemaker-accept": "text/csv"}
    passed = headers.to_container(operation, given)
    assert (passed["Content-Type"], passed["Accept"]) == (content_type, accept)


def test_custom_attributes_are_short_and_visible() -> None:
    name = "x-amzn-sagemaker-custom-attributes"
    assert headers.to_container(Operation.INVOKE, {name: "a" * 1024})
    with pytest.raises(HeaderError, match="1025 characters; at most 1024"):
        headers.to_container(Operation.INVOKE, {name: "a" * 1025})
    for bad in ("größe", "a\x00b"):
        with pytest.raises(HeaderError, match="visible ASCII"):
            headers.to_container(Operation.INVOKE, {name: bad})


def test_what_comes_back() -> None:
    answered = {
        "content-type": "application/json",
        "x-amzn-sagemaker-custom-attributes": "trace=1",
        "x-amzn-sagemaker-new-session-id": "s; Expires=2026-01-01T00:00:00Z",
        "x-internal": "secret",
        "server": "gunicorn",
    }
    assert headers.to_client(Operation.INVOKE, answered, "blue") == {
        "Content-Type": "application/json",
        "X-Amzn-SageMaker-Custom-Attributes": "trace=1",
        "X-Amzn-SageMaker-New-Session-Id": "s; Expires=2026-01-01T00:00:00Z",
        "x-Amzn-Invoked-Production-Variant": "blue",
    }
    assert headers.to_client(Operation.STREAM, answered, "blue")["X-Amzn-SageMaker-Content-Type"] == "application/json"
