from __future__ import annotations

import pytest
from local_test.simulator import instance_types
from local_test.simulator.instance_types import UnknownInstanceTypeError

GIB = 1024**3


@pytest.mark.parametrize(
    ("name", "vcpus", "gib"),
    # https://aws.amazon.com/ec2/instance-types
    [
        ("ml.t2.medium", 2, 4),
        ("ml.m5.large", 2, 8),
        ("ml.m5.4xlarge", 16, 64),
        ("ml.c6i.xlarge", 4, 8),
        ("ml.c5.4xlarge", 16, 32),
        ("ml.r5.large", 2, 16),
        ("ml.g4dn.xlarge", 4, 16),
        ("ml.g5.12xlarge", 48, 192),
        ("ml.g5.24xlarge", 96, 384),
    ],
)
def test_rows(name: str, vcpus: int, gib: int) -> None:
    limits = instance_types.instance_type(name).limits
    assert (limits.cpus, limits.memory_bytes) == (vcpus, gib * GIB)


def test_an_unknown_type_names_its_neighbours() -> None:
    with pytest.raises(UnknownInstanceTypeError, match=r"'ml\.m5\.lage' is not in the table .* ml\.m5\.large"):
        instance_types.instance_type("ml.m5.lage")


def test_serverless_has_whole_gigabytes() -> None:
    assert instance_types.serverless(2).memory_bytes == 2 * GIB
    with pytest.raises(UnknownInstanceTypeError, match="1 to 6 GB"):
        instance_types.serverless(7)
