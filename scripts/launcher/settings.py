"""Where things are in the account: role, bucket, region, image, prefix. From the arguments, else the environment.

A command declares the ones it uses with `add_arguments` and reads them as attributes of `Settings`; one that is
missing or malformed is one sentence that names both the argument and the variable. Nothing is asked of AWS here.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from scripts.launcher.errors import SettingError


@dataclass(frozen=True, slots=True)
class _Declaration:
    """One setting: the environment variables that may hold it, in order, and what it must look like."""

    variables: tuple[str, ...]
    pattern: str
    example: str
    help: str
    default: str | None = None


_DECLARATIONS: Mapping[str, _Declaration] = {
    "role": _Declaration(
        ("DOGBREED_ROLE",),
        r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+",
        "arn:aws:iam::111122223333:role/dogbreed",
        "ARN of the role that SageMaker works under",
    ),
    "bucket": _Declaration(
        ("DOGBREED_BUCKET",),
        r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
        "my-bucket",
        "S3 bucket for data and results, the name alone",
    ),
    "image": _Declaration(
        ("DOGBREED_IMAGE",),
        r"[\w.-]+(:\d+)?/[\w./-]+(:[\w.-]+)?(@sha256:[0-9a-f]{64})?",
        "111122223333.dkr.ecr.eu-west-1.amazonaws.com/dogbreed:TAG",
        "the pushed image, with its tag or digest",
    ),
    "prefix": _Declaration(
        ("DOGBREED_PREFIX",), r"[\w!.*'()/-]*", "dogbreed", "where in the bucket everything goes", default="dogbreed"
    ),
    "region": _Declaration(("AWS_REGION", "AWS_DEFAULT_REGION"), r"[a-z]{2,}(-[a-z]+)+-\d+", "eu-west-1", "AWS region"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What was given, and the time.

    Attributes:
        given: setting -> text, only the ones that were given.
        now: when the command was started, UTC; names are made of it.
    """

    given: Mapping[str, str]
    now: datetime

    @property
    def role(self) -> str:
        """ARN of the execution role. This and the others raise `SettingError` when missing or malformed."""
        return self._need("role")

    @property
    def bucket(self) -> str:
        """Name of the bucket, without s3://."""
        return self._need("bucket")

    @property
    def image(self) -> str:
        """URI of the image in its registry."""
        return self._need("image")

    @property
    def prefix(self) -> str:
        """Key prefix, without slashes at its ends; may be empty."""
        return self._need("prefix").strip("/")

    @property
    def region(self) -> str:
        """AWS region."""
        return self._need("region")

    def s3_uri(self, *parts: str) -> str:
        """`s3://BUCKET/PREFIX/part/part`, without a slash at its end."""
        return "s3://" + "/".join(part for part in (self.bucket, self.prefix, *parts) if part)

    def unique_name(self, base: str) -> str:
        """A name that no job had before: ``base`` and the UTC time, as `dogbreed-20261120-203105-042`."""
        return f"{base}-{self.now:%Y%m%d-%H%M%S}-{self.now.microsecond // 1000:03d}"

    def _need(self, name: str) -> str:
        declared = _DECLARATIONS[name]
        value = self.given.get(name, declared.default)
        where = f"--{name} or {' or '.join(declared.variables)}"
        if value is None:
            raise SettingError(f"no {name}: give {where} ({declared.help}), for example {declared.example}")
        if not re.fullmatch(declared.pattern, value):
            raise SettingError(f"{name}={value!r} is not {declared.help}; give {where}, for example {declared.example}")
        return value


def add_arguments(parser: argparse.ArgumentParser, *names: str) -> None:
    """Declares the settings that a command uses; `region` is declared for every command by the command line."""
    group = parser.add_argument_group("settings", "each may be given by the variable instead")
    for name in names:
        declared = _DECLARATIONS[name]
        default = f"; default {declared.default}" if declared.default else ""
        group.add_argument(
            f"--{name}", metavar=name.upper(), help=f"{declared.help} ({', '.join(declared.variables)}{default})"
        )


def read_settings(
    arguments: argparse.Namespace,
    environ: Mapping[str, str],
    *,
    now: datetime | None = None,
    configured_region: str | None = None,
) -> Settings:
    """Takes each setting from the arguments, else from its first variable that is not empty.

    Args:
        arguments: as parsed; those that the command does not declare count as not given.
        environ: environment variables.
        now: UTC; default the present.
        configured_region: what the AWS configuration file says, the last resort for the region.
    """
    given = {"region": configured_region} if configured_region else {}
    for name, declared in _DECLARATIONS.items():
        values = [getattr(arguments, name, None), *(environ.get(variable) for variable in declared.variables)]
        value = next((value for value in values if value), None)
        if value is not None:
            given[name] = value
    if "bucket" in given:
        given["bucket"] = given["bucket"].removeprefix("s3://").rstrip("/")
    return Settings(given, now or datetime.now(UTC))
