"""The one place that talks to AWS: executes calls, and turns what goes wrong into one sentence.

boto3 finds credentials, profile and `AWS_ENDPOINT_URL` by itself. Retries are botocore's, in adaptive mode: the
standard one, which also slows down when the service throttles. Knows no command; `connect` is given to the command
line, so that a test may put something else in its place.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from scripts.launcher.errors import ServiceError
from scripts.launcher.plan import Call

T = TypeVar("T")

_ATTEMPTS = 5
_CONNECT_TIMEOUT_S = 10
_POOL_CONNECTIONS = 32

_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden"}
_BAD_CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_THROTTLED = {
    "RequestLimitExceeded",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "TooManyRequestsException",
}
_TAKEN = {
    "ResourceInUse",
    "ResourceInUseException",
    "ResourceAlreadyExistsException",
    "EntityAlreadyExists",
    "RepositoryAlreadyExistsException",
    "BucketAlreadyOwnedByYou",
    "BucketAlreadyExists",
}
_MISSING = {
    "404",
    "NoSuchBucket",
    "NoSuchKey",
    "NoSuchEntity",
    "ObjectNotFoundException",
    "RepositoryNotFoundException",
    "ResourceNotFound",
    "ResourceNotFoundException",
}


class Aws:
    """Executes calls with one client per service.

    Args:
        make_client: service name -> boto3 client, or anything that has its methods.

    Every method raises `ServiceError`. Safe to use from several threads, as boto3's clients are.
    """

    def __init__(self, make_client: Callable[[str], Any]) -> None:
        self._make_client = make_client
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()

    def client(self, service: str) -> Any:  # noqa: ANN401  boto3 makes its clients' classes at run time
        """The client of a service, for what a plain call cannot do; mind that its errors are botocore's."""
        with self._lock:
            if service not in self._clients:
                self._clients[service] = self._make_client(service)
            return self._clients[service]

    def call(self, call: Call) -> dict[str, Any]:
        """Sends one request and returns the answer."""
        from botocore import xform_name

        def send() -> dict[str, Any]:
            answer: dict[str, Any] = getattr(self.client(call.service), xform_name(call.operation))(
                **_opened(call.parameters)
            )
            return answer

        return self.explained(call, send)

    def pages(self, call: Call, *, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Sends a listing request until its last page; ``limit`` is a number of items over all pages."""
        from botocore import xform_name

        def start() -> Iterator[dict[str, Any]]:
            paginator = self.client(call.service).get_paginator(xform_name(call.operation))
            return iter(paginator.paginate(**call.parameters, PaginationConfig={"MaxItems": limit}))

        pages = self.explained(call, start)
        while (page := self.explained(call, lambda: next(pages, None))) is not None:
            yield page

    def explained(self, call: Call, action: Callable[[], T]) -> T:
        """Runs ``action``, which does by other means what ``call`` says, with this class's errors."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return action()
        except (BotoCoreError, ClientError, Boto3Error) as error:
            raise explain(error, call) from error


def connect(region: str, environ: Mapping[str, str] = os.environ) -> Aws:
    """Talks to AWS in ``region``, or to what AWS_ENDPOINT_URL names. Makes no connection yet."""
    import boto3
    from botocore.config import Config

    # AWS_MAX_ATTEMPTS is botocore's own variable, and an explicit value here would hide it.
    attempts = {} if environ.get("AWS_MAX_ATTEMPTS") else {"total_max_attempts": _ATTEMPTS}
    config = Config(
        retries={"mode": "adaptive", **attempts},
        connect_timeout=_CONNECT_TIMEOUT_S,
        max_pool_connections=_POOL_CONNECTIONS,
        user_agent_extra="dogbreed-launch",
    )
    sessions: list[Any] = []

    def make_client(service: str) -> Any:  # noqa: ANN401  as above
        # Made at the first call, because a profile that does not exist is reported by the session already.
        if not sessions:
            sessions.append(boto3.Session(region_name=region))
        return sessions[0].client(service, config=config)

    return Aws(make_client)


def configured_region() -> str | None:
    """The region of the AWS configuration file's profile, or None; asks nobody."""
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        region = botocore.session.Session().get_config_variable("region")
    except BotoCoreError:
        return None
    return str(region) if region else None


def explain(error: Exception, call: Call) -> ServiceError:
    """One sentence for what botocore or AWS reported about ``call``."""
    from botocore import exceptions as botocore

    if isinstance(error, botocore.ClientError):
        return _explain_answer(error.response, call)
    name = type(error).__name__
    unreached = isinstance(
        error, botocore.HTTPClientError | botocore.ConnectionError | botocore.EndpointConnectionError
    )
    text = _one_line(str(error))
    if isinstance(error, botocore.NoCredentialsError | botocore.PartialCredentialsError) or "Credential" in name:
        message = (
            f"no AWS credentials for {call.action}: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            f"or run `aws configure` ({text})"
        )
    elif "SSO" in name or "Token" in name:
        message = f"the AWS login has run out: run `aws sso login` ({text})"
    elif isinstance(error, botocore.ProfileNotFound):
        message = f"AWS_PROFILE names a profile that ~/.aws/config does not hold ({text})"
    elif isinstance(error, botocore.NoRegionError):
        message = "no region: give --region or AWS_REGION, for example eu-west-1"
    elif isinstance(error, botocore.ParamValidationError):
        message = f"{call.operation} would be refused: {text}"
    elif unreached:
        message = f"{call.service} cannot be reached: check the network, --region and AWS_ENDPOINT_URL ({text})"
    else:
        message = f"{call.operation}: {text}"
    return ServiceError(message, code=name, passing=unreached)


def _explain_answer(response: Mapping[str, Any], call: Call) -> ServiceError:
    code = str(response.get("Error", {}).get("Code", ""))
    text = _one_line(str(response.get("Error", {}).get("Message", "")))
    not_found = code in _MISSING or (code == "ValidationException" and _says_missing(text))
    taken = code in _TAKEN or (code == "ValidationException" and "already exist" in text)
    if code in _DENIED:
        # Only the message tells that it was the role that may not be passed on.
        action = "iam:PassRole" if "iam:PassRole" in text else call.action
        message = f"not allowed: your credentials lack {action}; ask for a policy that grants it ({text})"
    elif code in _BAD_CREDENTIALS:
        message = f"AWS does not accept the credentials, which are wrong or have run out: log in again ({text})"
    elif code in _THROTTLED:
        message = f"AWS throttles {call.operation}, and went on doing so: wait a minute and try again ({text})"
    elif code == "ResourceLimitExceeded":
        message = (
            f"{call.operation}: the account's quota is used up; delete what runs, take another instance type, or ask "
            f"for more under Service Quotas ({text})"
        )
    elif "assume" in text.lower() and "role" in text.lower():
        message = (
            f"SageMaker cannot take on the role: it must exist and trust sagemaker.amazonaws.com; give another by "
            f"--role or DOGBREED_ROLE ({text})"
        )
    elif taken:
        message = f"{call.operation}: that name exists already; give another by --name ({text})"
    elif not_found:
        message = f"{call.operation}: {_named(call)} does not exist in this region and account ({text or code})"
    else:
        message = f"{call.operation} was refused, {code or 'no code'}: {text or 'without a message'}"
    passing = code in _THROTTLED or int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) >= 500
    return ServiceError(message, code=code, not_found=not_found, name_taken=taken, passing=passing)


def _says_missing(text: str) -> bool:
    """SageMaker's Describe and Delete answer ValidationException for what does not exist."""
    return any(words in text for words in ("Could not find", "could not find", "not found", "does not exist"))


def _named(call: Call) -> str:
    """What a call is about, for a message: the values of its names and keys."""
    names = [
        str(value)
        for key, value in call.parameters.items()
        if isinstance(value, str) and (key in ("Bucket", "Key") or key.lower().endswith(("name", "nameprefix")))
    ]
    return "/".join(names) or "what it names"


def _opened(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the content of the files that they name."""
    return {key: value.read_bytes() if isinstance(value, Path) else value for key, value in parameters.items()}


def _one_line(text: str) -> str:
    return " ".join(text.split())
