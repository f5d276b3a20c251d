"""Posts to a route of an API Gateway, signed with the caller's AWS credentials or with a token.

Knows no command. The signature is AWS Signature Version 4, by botocore, for the service execute-api.
"""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from scripts.launcher.aws import explain
from scripts.launcher.errors import LaunchError
from scripts.launcher.plan import Call

# API Gateway ends every request after 30 s.
_TIMEOUT_S = 35


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer."""

    status: int
    body: bytes
    elapsed_s: float


def post(url: str, body: bytes, content_type: str, *, region: str, token: str | None = None) -> Answer:
    """Sends the body and waits for the answer, whatever its status.

    Args:
        url: https, with its query.
        body: as it goes over the wire.
        content_type: of the body.
        region: of the API.
        token: a JSON web token; None signs with AWS credentials.

    Raises:
        ServiceError: there are no credentials to sign with.
        LaunchError: there was no answer.
    """
    headers = {"Content-Type": content_type, "Accept": "application/json"}
    signed = {**headers, "Authorization": f"Bearer {token}"} if token else _signed(url, body, headers, region)
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    began = time.monotonic()
    try:
        connection.request("POST", f"{parts.path}?{parts.query}" if parts.query else parts.path, body, signed)
        response = connection.getresponse()
        return Answer(response.status, response.read(), time.monotonic() - began)
    except (OSError, http.client.HTTPException) as error:
        raise LaunchError(f"no answer from {parts.scheme}://{parts.netloc}: check the network ({error!r})") from error
    finally:
        connection.close()


def _signed(url: str, body: bytes, headers: dict[str, str], region: str) -> dict[str, str]:
    import boto3
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.exceptions import BotoCoreError, NoCredentialsError

    try:
        credentials = boto3.Session().get_credentials()
        if credentials is None:
            raise NoCredentialsError
        request = AWSRequest("POST", url, data=body, headers=headers)
        SigV4Auth(credentials.get_frozen_credentials(), "execute-api", region).add_auth(request)
    except BotoCoreError as error:
        raise explain(error, Call("execute-api", "Invoke", {})) from error
    return dict(request.headers.items())
