"""Which headers cross the platform: of a request to the container, of an answer to the client.

All others are stripped (AWS docs: your-algorithms-inference-code). The names on the client's side are those of boto3's
API model; two of its three operations call the same thing by other names, since theirs belong to the operation's own
answer.

Knows names and values; neither sockets nor endpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
INFERENCE_ID = "X-Amzn-SageMaker-Inference-Id"
SESSION_ID = "X-Amzn-SageMaker-Session-Id"
NEW_SESSION_ID = "X-Amzn-SageMaker-New-Session-Id"
CLOSED_SESSION_ID = "X-Amzn-SageMaker-Closed-Session-Id"
TARGET_MODEL = "X-Amzn-SageMaker-Target-Model"
TARGET_VARIANT = "X-Amzn-SageMaker-Target-Variant"
COMPONENT = "X-Amzn-SageMaker-Inference-Component"
CONTAINER = "X-Amzn-SageMaker-Target-Container-Hostname"
INPUT_LOCATION = "X-Amzn-SageMaker-InputLocation"
INVOCATION_TIMEOUT = "X-Amzn-SageMaker-InvocationTimeoutSeconds"
REQUEST_TTL = "X-Amzn-SageMaker-RequestTTLSeconds"
OUTPUT_EXTENSION = "X-Amzn-SageMaker-S3OutputPathExtension"
FILENAME = "X-Amzn-SageMaker-Filename"
VARIANT = "x-Amzn-Invoked-Production-Variant"
CONTENT_TYPE = "X-Amzn-SageMaker-Content-Type"
ACCEPT = "X-Amzn-SageMaker-Accept"

NEW_SESSION = "NEW_SESSION"
"""Session id of a client that has none yet."""

_ATTRIBUTES_CHARACTERS = 1024
_PASSED_IN = (CUSTOM_ATTRIBUTES, INFERENCE_ID, SESSION_ID, TARGET_MODEL)
_PASSED_OUT = (CUSTOM_ATTRIBUTES, NEW_SESSION_ID, CLOSED_SESSION_ID)
# Of a request whose client named none: what the service's own HTTP client says of bytes.
_UNKNOWN_TYPE = "application/octet-stream"


class Operation(StrEnum):
    """The last part of the path of InvokeEndpoint and its two relatives."""

    INVOKE = "invocations"
    STREAM = "invocations-response-stream"
    ASYNC = "async-invocations"


class HeaderError(ValueError):
    """A header's value is not what the API allows; the message says which."""


def to_container(operation: Operation, given: Mapping[str, str]) -> dict[str, str]:
    """What the container sees of a client's headers.

    Args:
        operation: that the client called.
        given: its headers, names in lower case.

    Raises:
        HeaderError: the custom attributes are too long, or hold what is not visible ASCII.
    """
    content_type = CONTENT_TYPE if operation is Operation.ASYNC else "Content-Type"
    accept = "Accept" if operation is Operation.INVOKE else ACCEPT
    passed = {"Content-Type": given.get(content_type.lower(), _UNKNOWN_TYPE)}
    if accept.lower() in given:
        passed["Accept"] = given[accept.lower()]
    passed |= {name: given[name.lower()] for name in _PASSED_IN if name.lower() in given}
    attributes = passed.get(CUSTOM_ATTRIBUTES, "")
    if len(attributes) > _ATTRIBUTES_CHARACTERS:
        raise HeaderError(
            f"CustomAttributes has {len(attributes)} characters; at most {_ATTRIBUTES_CHARACTERS} are passed on"
        )
    if not (attributes.isascii() and attributes.isprintable()):
        raise HeaderError(f"CustomAttributes holds other characters than visible ASCII: {attributes[:100]!r}")
    return passed


def to_client(operation: Operation, answered: Mapping[str, str], variant: str) -> dict[str, str]:
    """What the client sees of a container's headers.

    Args:
        operation: that the client called.
        answered: the container's headers, names in lower case.
        variant: that answered.
    """
    content_type = "Content-Type" if operation is Operation.INVOKE else CONTENT_TYPE
    passed = {content_type: answered["content-type"]} if "content-type" in answered else {}
    passed |= {name: answered[name.lower()] for name in _PASSED_OUT if name.lower() in answered}
    return {**passed, VARIANT: variant}
