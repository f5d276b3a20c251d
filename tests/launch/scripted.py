"""Clients that answer what a test wrote down, and refuse a request that the service would refuse.

Stands where boto3's clients stand. `problems(call)` holds a request against botocore's model of the service: names,
types and required members as botocore itself does, and also the lengths, ranges, patterns and enumerations, which
botocore leaves to the service.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import botocore.session
from botocore import xform_name
from botocore.exceptions import ClientError
from botocore.model import Shape
from botocore.validate import ParamValidator

from scripts.launcher.aws import Aws
from scripts.launcher.plan import Call

_SESSION = botocore.session.Session()
Answer = Mapping[str, Any] | Exception | Callable[..., Any]


class Scripted(Aws):
    """An AWS whose every operation has its answers written down; the last of them is given for ever.

    Args:
        answers: operation -> one answer, or a list of them. An exception is raised; a function is called with the
            parameters.

    Attributes:
        calls: what was asked, in order.
    """

    def __init__(self, **answers: Answer | list[Answer]) -> None:
        super().__init__(lambda service: _Client(service, self))
        self.answers = {name: list(one) if isinstance(one, list) else [one] for name, one in answers.items()}
        self.calls: list[Call] = []

    def asked(self, operation: str) -> list[Mapping[str, Any]]:
        """The parameters of every call of an operation."""
        return [call.parameters for call in self.calls if call.operation == operation]

    def answer(self, call: Call) -> Any:
        assert problems(call) == []
        self.calls.append(call)
        assert call.operation in self.answers, f"{call} was not expected"
        left = self.answers[call.operation]
        one = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(one, BaseException):
            raise one
        return one(**call.parameters) if callable(one) else one


class _Client:
    def __init__(self, service: str, script: Scripted) -> None:
        self._service = service
        self._script = script
        self._operations = {xform_name(name): name for name in _SESSION.get_service_model(service).operation_names}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            operation = self._operations[name]
        except KeyError:
            raise AttributeError(name) from None
        return lambda **parameters: self._script.answer(Call(self._service, operation, parameters))

    def get_paginator(self, name: str) -> _Paginator:
        return _Paginator(getattr(self, name))


class _Paginator:
    """One page, whatever it says."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def paginate(self, PaginationConfig: object = None, **parameters: Any) -> Iterator[Any]:
        yield self._method(**parameters)


def refusal(code: str, message: str, status: int = 400) -> ClientError:
    """What boto3 raises when AWS refuses."""
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Operation"
    )


def problems(call: Call) -> list[str]:
    """What the service would not take in a request; empty when it is right."""
    shape = _SESSION.get_service_model(call.service).operation_model(call.operation).input_shape
    report = ParamValidator().validate(_content(call.parameters), shape)
    found = [report.generate_report()] if report.has_errors() else []
    return found + (list(_finer(call.parameters, shape, call.operation)) if shape else [])


def _content(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A file to be sent is bytes to the model, whatever holds it."""
    return {key: b"" if key == "Body" else value for key, value in parameters.items()}


def _finer(value: Any, shape: Shape, where: str) -> Iterator[str]:
    if shape.type_name == "structure":
        for name, member in value.items():
            if name in shape.members:
                yield from _finer(member, shape.members[name], f"{where}.{name}")
    elif shape.type_name == "list":
        yield from _bounds(len(value), shape, where)
        for index, member in enumerate(value):
            yield from _finer(member, shape.member, f"{where}[{index}]")
    elif shape.type_name == "map":
        yield from _bounds(len(value), shape, where)
        for name, member in value.items():
            yield from _finer(name, shape.key, f"{where} key")
            yield from _finer(member, shape.value, f"{where}[{name}]")
    elif shape.type_name == "string" and isinstance(value, str):
        yield from _bounds(len(value), shape, where)
        pattern, choices = shape.metadata.get("pattern"), shape.metadata.get("enum")
        if choices and value not in choices:
            yield f"{where}: {value!r} is none of {choices[:5]}..."
        if pattern and not re.fullmatch(_as_python(pattern), value):
            yield f"{where}: {value!r} does not match {pattern}"
    elif isinstance(value, int | float) and not isinstance(value, bool | datetime):
        yield from _bounds(value, shape, where)


def _bounds(number: float, shape: Shape, where: str) -> Iterator[str]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if (low is not None and number < low) or (high is not None and number > high):
        yield f"{where}: {number} is not within {low} and {high}"


_CLASSES = {
    r"\p{L}\p{Z}\p{N}": r"\w\s",
    r"\p{L}": r"\w",
    r"\p{N}": r"\d",
    r"[\p{Print}]": r"[\x20-\x7e]",
    r"\p{Print}": r"[\x20-\x7e]",
    r"\p{ASCII}": r"[\x00-\x7f]",
    r"\uD800\uDC00-\uDBFF\uDFFF": r"\U00010000-\U0010FFFF",
    r"\z": r"\Z",
}


def _as_python(pattern: str) -> str:
    """The models' patterns are Java's: of what they use, only these are spelled otherwise here."""
    for java, python in _CLASSES.items():
        pattern = pattern.replace(java, python)
    return pattern
