"""How a transform job sends its objects: asked for by the job, else by the container, else the platform's defaults.

Sources: AWS docs your-algorithms-batch-code (the order, /execution-parameters, the container's variables), boto3 API
model CreateTransformJob and ModelClientConfig (limits).

Knows values; neither files nor requests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

DEFAULT_TIMEOUT_S = 600
LONGEST_TIMEOUT_S = 3600
MOST_RETRIES = 3

_MOST_MB = 100
_MIB = 1024 * 1024


class ParametersError(ValueError):
    """Parameters that no job can have; the message says which and what is allowed."""


class Strategy(StrEnum):
    """How many records one request carries. The values are those of the container's side."""

    MULTI = "MULTI_RECORD"
    SINGLE = "SINGLE_RECORD"


class Split(StrEnum):
    """What a record of an object is."""

    NONE = "None"
    LINE = "Line"


class Assemble(StrEnum):
    """What stands between the answers of one object."""

    NONE = "None"
    LINE = "Line"


@dataclass(frozen=True)
class Asked:
    """What the job or the container asks for; None where it does not.

    Args:
        strategy: records in a request.
        at_once: requests under way at one instance.
        payload_mb: of one request; 0 is no limit.
    """

    strategy: Strategy | None = None
    at_once: int | None = None
    payload_mb: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the container; those that the user did not ask for are not set."""
        given = {
            "SAGEMAKER_MAX_PAYLOAD_IN_MB": self.payload_mb,
            "SAGEMAKER_BATCH_STRATEGY": self.strategy,
            "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": self.at_once,
        }
        return {"SAGEMAKER_BATCH": "true"} | {name: str(value) for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Parameters:
    """What holds for a job.

    Args:
        strategy: records in a request.
        at_once: requests under way at one instance.
        payload_mb: of one request; 0 is no limit.
    """

    strategy: Strategy
    at_once: int
    payload_mb: int

    @property
    def payload_bytes(self) -> int | None:
        """Of one request; None is no limit."""
        return self.payload_mb * _MIB or None


DEFAULTS = Parameters(Strategy.MULTI, 1, 6)


def settle(job: Asked, container: Asked) -> Parameters:
    """What holds, by the platform's order.

    Raises:
        ParametersError: more than the platform allows.
    """
    parameters = Parameters(
        job.strategy or container.strategy or DEFAULTS.strategy,
        # 0 is as good as not given (boto3 API model CreateTransformJob).
        job.at_once or container.at_once or DEFAULTS.at_once,
        _first(job.payload_mb, container.payload_mb, DEFAULTS.payload_mb),
    )
    if parameters.payload_mb > _MOST_MB:
        raise ParametersError(f"MaxPayloadInMB is {parameters.payload_mb}; at most {_MOST_MB}, or 0 for no limit")
    if parameters.at_once * parameters.payload_mb > _MOST_MB:
        raise ParametersError(
            f"MaxConcurrentTransforms {parameters.at_once} x MaxPayloadInMB {parameters.payload_mb} is more than the "
            f"{_MOST_MB} MB that SageMaker allows; make one of them smaller"
        )
    return parameters


def read(status: int, body: bytes) -> Asked:
    """What GET /execution-parameters answered.

    Raises:
        ParametersError: 200, and yet not the document that the platform reads.
    """
    if status != 200:
        return Asked()
    try:
        found = json.loads(body)
    except ValueError as error:
        raise ParametersError(f"/execution-parameters is not JSON: {body[:100]!r}") from error
    if not isinstance(found, dict):
        raise ParametersError(f"/execution-parameters is not an object: {body[:100]!r}")
    strategy = _value(found, "BatchStrategy", lambda value: isinstance(value, str) and value in list(Strategy))
    return Asked(
        None if strategy is None else Strategy(str(strategy)),
        _whole(found, "MaxConcurrentTransforms"),
        _whole(found, "MaxPayloadInMB"),
    )


def _whole(found: Mapping[str, object], name: str) -> int | None:
    value = _value(found, name, lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0)
    return value if isinstance(value, int) else None


def _value(found: Mapping[str, object], name: str, allowed: Callable[[object], bool]) -> object:
    value = found.get(name)
    if value is not None and not allowed(value):
        raise ParametersError(f"/execution-parameters: {name} is {value!r}, which the platform does not know")
    return value


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)
