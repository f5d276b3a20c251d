"""What an instance type gives a container: processors and memory.

The figures are AWS's own (https://aws.amazon.com/sagemaker/ai/pricing and the EC2 pages of the same families). A type
that is not in the table is refused rather than guessed.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from local_test.simulator.subjects import Limits

_GIB = 1024**3

# vCPU and GiB of one size; a family doubles both from size to size.
_SIZES = {"medium": 0.5, "large": 1, "xlarge": 2, "2xlarge": 4, "4xlarge": 8, "8xlarge": 16, "12xlarge": 24}
_SIZES |= {"16xlarge": 32, "24xlarge": 48}
# Of its size "large".
_FAMILIES = {
    "t2": (2, 8.0, ("medium", "large", "xlarge", "2xlarge")),
    "m5": (2, 8.0, ("large", "xlarge", "2xlarge", "4xlarge", "12xlarge", "24xlarge")),
    "m6i": (2, 8.0, ("large", "xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "24xlarge")),
    "m7i": (2, 8.0, ("large", "xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "24xlarge")),
    "c5": (2, 4.0, ("large", "xlarge", "2xlarge", "4xlarge")),
    "c6i": (2, 4.0, ("large", "xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "24xlarge")),
    "c7i": (2, 4.0, ("large", "xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "24xlarge")),
    "r5": (2, 16.0, ("large", "xlarge", "2xlarge", "4xlarge", "12xlarge", "24xlarge")),
    "g4dn": (2, 8.0, ("xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge")),
    "g5": (2, 8.0, ("xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "24xlarge")),
    "g6": (2, 8.0, ("xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "24xlarge")),
}
# The two of these families do not have half of a "large" as their "medium".
_MEDIUM_VCPUS = 2

SERVERLESS_GIB = (1, 2, 3, 4, 5, 6)
"""Memory that a serverless endpoint can be given (boto3 API model ProductionVariantServerlessConfig)."""


class UnknownInstanceTypeError(ValueError):
    """The table has no such type; the message names the nearest."""


@dataclass(frozen=True)
class InstanceType:
    """One row of the table.

    Args:
        name: ``ml.m5.large``.
        vcpus: as the kernel shows them.
        memory_gib: of the whole machine; the platform keeps a little of it for itself, which is not imitated.
    """

    name: str
    vcpus: int
    memory_gib: float

    @property
    def limits(self) -> Limits:
        """For the start of a subject."""
        return Limits(memory_bytes=int(self.memory_gib * _GIB), cpus=float(self.vcpus))


def instance_type(name: str) -> InstanceType:
    """The row of a name.

    Raises:
        UnknownInstanceTypeError: it has none.
    """
    table = {row.name: row for row in all_types()}
    if name not in table:
        near = [f"ml.{name}"] if f"ml.{name}" in table else difflib.get_close_matches(name, table, n=3, cutoff=0.5)
        near = near or ["ml.m5.large", "ml.c6i.xlarge"]
        raise UnknownInstanceTypeError(
            f"the instance type {name!r} is not in the table of this tool; give for example {' or '.join(near)}, "
            "or leave it out for no limits"
        )
    return table[name]


def all_types() -> list[InstanceType]:
    """Every row."""
    return [
        InstanceType(
            f"ml.{family}.{size}",
            _MEDIUM_VCPUS if size == "medium" else int(vcpus * _SIZES[size]),
            memory_gib * _SIZES[size],
        )
        for family, (vcpus, memory_gib, sizes) in _FAMILIES.items()
        for size in sizes
    ]


def serverless(memory_gib: int) -> Limits:
    """Of a serverless endpoint; processors grow with memory, up to six (AWS docs: serverless-endpoints).

    Raises:
        UnknownInstanceTypeError: there is no such size.
    """
    if memory_gib not in SERVERLESS_GIB:
        raise UnknownInstanceTypeError(f"a serverless endpoint has 1 to 6 GB of memory, in whole GB, not {memory_gib}")
    return Limits(memory_bytes=memory_gib * _GIB, cpus=float(memory_gib))
