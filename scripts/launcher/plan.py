"""Requests as plain values: what a command would send, before anything is sent.

Pure: knows no network, no boto3 and no command. A value in a plan is JSON, a date, or a `Path` where the request
carries a file's content.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Call:
    """One request to AWS.

    Attributes:
        service: as boto3 names it, `sagemaker`.
        operation: as the API names it, `CreateTrainingJob`.
        parameters: as boto3 takes them. A `Path` stands for the content of that file.
    """

    service: str
    operation: str
    parameters: Mapping[str, Any]

    @property
    def action(self) -> str:
        """The name that an IAM policy has for it, near enough to search for."""
        return f"{_IAM_SERVICES.get(self.service, self.service)}:{_IAM_ACTIONS.get(self.operation, self.operation)}"


def as_json(calls: Iterable[Call]) -> str:
    """The plan as an indented JSON array, for `--dry-run`."""
    described = [
        {"service": call.service, "operation": call.operation, "parameters": call.parameters} for call in calls
    ]
    return json.dumps(described, indent=2, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return {"content of": str(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a plan holds {value!r}, which JSON does not know")


# Where the policy's name is not the client's.
_IAM_SERVICES = {"sagemaker-runtime": "sagemaker"}
_IAM_ACTIONS = {"ListObjectsV2": "ListBucket", "HeadObject": "GetObject", "HeadBucket": "ListBucket"}
