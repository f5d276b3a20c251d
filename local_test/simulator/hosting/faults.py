"""The errors of InvokeEndpoint, as the service words and wraps them.

Statuses and fields are those of boto3's API model of sagemaker-runtime (2017-05-13). A payload over the limit has no
shape there: the service answers 413 without an error type, which boto calls by its status.

Knows words and bytes; neither servers nor instances.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

MESSAGE_CHARACTERS = 2048
"""Of the container's own words in a ModelError (API model, shape Message)."""

ACCOUNT = "000000000000"
REGION = "us-east-1"

TIMED_OUT = (
    "Your invocation timed out while waiting for a response from container primary. Review the latency metrics for "
    "each container in Amazon CloudWatch, resolve the issue, and try again."
)


@dataclass(eq=False)
class Fault(Exception):
    """An answer of the service that is no success.

    Args:
        status: of HTTP.
        kind: the error's name, as boto tells it; empty for one without.
        message: for the client.
        fields: beside the message.
        reason: for this tool's log, where it knows more than the service would tell.
    """

    status: int
    kind: str
    message: str
    fields: Mapping[str, object] = field(default_factory=dict)
    reason: str = ""

    def __str__(self) -> str:
        """For the log."""
        return self.reason or self.message

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        named = {"x-amzn-ErrorType": self.kind} if self.kind else {}
        return {"Content-Type": "application/json", **named}

    @property
    def body(self) -> bytes:
        """Of the answer."""
        return json.dumps({"Message": self.message[:MESSAGE_CHARACTERS], **self.fields}).encode()


def validation(message: str) -> Fault:
    """The request cannot be meant so."""
    return Fault(400, "ValidationError", message)


def no_endpoint(name: str) -> Fault:
    """Another name than the one that is served."""
    return validation(f"Endpoint {name} of account {ACCOUNT} not found.")


def too_large(limit_bytes: int) -> Fault:
    """The body is over the limit; the container never sees it."""
    return Fault(413, "", f"HTTP content length exceeded {limit_bytes} bytes.")


def unavailable(reason: str) -> Fault:
    """No instance is in service."""
    return Fault(503, "ServiceUnavailable", "The service is currently unavailable.", reason=reason)


def throttled() -> Fault:
    """Every worker of a serverless endpoint is busy."""
    return Fault(429, "ThrottlingException", "Rate exceeded", reason="every instance is busy")


def model_not_ready(name: str) -> Fault:
    """A model of many is still being loaded."""
    return Fault(
        429, "ModelNotReadyException", f"Model {name} is not ready for inference: it is still being loaded. Try again."
    )


def provisioning() -> Fault:
    """A serverless endpoint has no instance ready."""
    return Fault(
        429, "ModelNotReadyException", "The endpoint's resources are still being provisioned. Wait and try again."
    )


def no_answer(request_id: str, reason: str) -> Fault:
    """The container broke the connection."""
    message = (
        "An exception occurred while sending request to model. Please contact customer support regarding request "
        f"{request_id}."
    )
    return Fault(500, "InternalFailure", message, reason=reason)


def timed_out(log_stream: str) -> Fault:
    """The container did not answer in time: the service's own words, and a status that no container has."""
    return model_error(0, TIMED_OUT, log_stream)


def model_error(status: int, text: str, log_stream: str) -> Fault:
    """The container answered, and not with success.

    Args:
        status: the container's.
        text: what it sent.
        log_stream: ARN of the instance's log.
    """
    side = "client" if 400 <= status < 500 else "server"
    cut = text[:MESSAGE_CHARACTERS]
    message = (
        f'Received {side} error ({status}) from primary with message "{cut}". See the log stream {log_stream} for '
        "more information."
    )
    fields = {"OriginalStatusCode": status, "OriginalMessage": cut, "LogStreamArn": log_stream}
    return Fault(424, "ModelError", message, fields)


def log_stream(endpoint: str, variant: str, instance: str) -> str:
    """ARN of an instance's log, of an account that nobody has."""
    return (
        f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/sagemaker/Endpoints/{endpoint}:log-stream:{variant}/{instance}"
    )
