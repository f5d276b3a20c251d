"""Events as API Gateway sends them (payload format 2.0), and Lambda's context."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

BOUNDARY = "----boundary1f2e"


@dataclass(frozen=True)
class Context:
    """Lambda's context, with as much time as is said."""

    remaining_ms: int = 28000
    aws_request_id: str = "6bc28136-xmpl-4365-b021-0ce6b2e64ab0"

    def get_remaining_time_in_millis(self) -> int:
        return self.remaining_ms


def event(
    body: bytes | str = b"",
    content_type: str | None = "image/jpeg",
    *,
    method: str = "POST",
    query: dict[str, str] | None = None,
) -> dict[str, Any]:
    """One request; bytes arrive in base64 and text as it is, as API Gateway does it by the Content-Type.

    The members are those of the developer guide's example (http-api-develop-integrations-lambda).
    """
    encoded = isinstance(body, bytes)
    headers = {
        "accept": "*/*",
        "content-length": str(len(body)),
        "host": "id.execute-api.eu-west-1.amazonaws.com",
        "user-agent": "curl/8.9.1",
        "x-amzn-trace-id": "Root=1-5e6722a7-cc56xmpl46db7ae02d4da47e",
        "x-forwarded-for": "205.255.255.176",
    } | ({} if content_type is None else {"content-type": content_type})
    found: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "POST /classify",
        "rawPath": "/classify",
        "rawQueryString": urlencode(query or {}),
        "headers": headers,
        "requestContext": {
            "accountId": "111122223333",
            "apiId": "id",
            "authorizer": {
                "iam": {"accessKey": "AKIA", "accountId": "111122223333", "userArn": "arn:aws:iam::1:user/a"}
            },
            "domainName": "id.execute-api.eu-west-1.amazonaws.com",
            "domainPrefix": "id",
            "http": {
                "method": method,
                "path": "/classify",
                "protocol": "HTTP/1.1",
                "sourceIp": "205.255.255.176",
                "userAgent": "curl/8.9.1",
            },
            "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": "POST /classify",
            "stage": "$default",
            "time": "10/Mar/2026:05:16:23 +0000",
            "timeEpoch": 1583817383220,
        },
        "body": base64.b64encode(body).decode() if isinstance(body, bytes) else body,
        "isBase64Encoded": encoded,
    }
    # Both are left out where there is nothing.
    if query:
        found["queryStringParameters"] = query
    if not body:
        del found["body"]
    return found


def as_json(images: list[bytes | object]) -> dict[str, Any]:
    """A batch as JSON; what is not bytes stands in it as it is."""
    items = [base64.b64encode(image).decode() if isinstance(image, bytes) else image for image in images]
    return event(json.dumps({"images": items}), "application/json; charset=utf-8")


def form(parts: list[tuple[str, bytes]]) -> bytes:
    """Parts with their headers as curl and browsers write them."""
    written = [f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + content + b"\r\n" for head, content in parts]
    return b"".join(written) + f"--{BOUNDARY}--\r\n".encode()


def file_part(content: bytes, name: str = "a.jpg", media_type: str | None = "image/jpeg") -> tuple[str, bytes]:
    head = f'Content-Disposition: form-data; name="image"; filename="{name}"'
    return head + (f"\r\nContent-Type: {media_type}" if media_type else ""), content


def as_form(images: list[bytes]) -> dict[str, Any]:
    """A batch as form data."""
    return event(form([file_part(image) for image in images]), f"multipart/form-data; boundary={BOUNDARY}")


def answer(response: dict[str, Any]) -> Any:
    """The document of a response, after checking what API Gateway needs of it."""
    assert set(response) == {"statusCode", "headers", "body", "isBase64Encoded"}
    assert response["headers"]["content-type"] == "application/json"
    assert response["isBase64Encoded"] is False
    return json.loads(response["body"])
