from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_test.simulator.batch import records
from local_test.simulator.batch.parameters import Assemble, Parameters, Split, Strategy
from local_test.simulator.batch.records import TooLargeError

MIB = 1024 * 1024


def parameters(strategy: Strategy = Strategy.MULTI, payload_mb: int = 1) -> Parameters:
    return Parameters(strategy, 1, payload_mb)


def of(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("strategy", list(Strategy))
def test_without_a_split_an_object_is_one_body(tmp_path: Path, strategy: Strategy) -> None:
    file = of(tmp_path / "photo", b"a\nb\n")
    assert list(records.bodies(file, Split.NONE, parameters(strategy))) == [file]


def test_an_object_over_the_payload_is_refused_and_one_of_its_size_is_not(tmp_path: Path) -> None:
    file = of(tmp_path / "photo", bytes(MIB))
    assert list(records.bodies(file, Split.NONE, parameters())) == [file]
    of(file, bytes(MIB + 1))
    with pytest.raises(TooLargeError, match="the object has 1,048,577 bytes, more than MaxPayloadInMB 1"):
        list(records.bodies(file, Split.NONE, parameters()))
    assert list(records.bodies(file, Split.NONE, parameters(payload_mb=0))) == [file]


def test_a_single_record_is_a_line_with_its_end(tmp_path: Path) -> None:
    file = of(tmp_path / "lines", b"a\nbb\nlast")
    assert list(records.bodies(file, Split.LINE, parameters(Strategy.SINGLE))) == [b"a\n", b"bb\n", b"last"]


@given(st.lists(st.integers(1, 700_000), max_size=12))
def test_several_records_fill_a_payload_and_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    lines = [bytes([97 + number]) * size + b"\n" for number, size in enumerate(sizes)]
    file = of(tmp_path_factory.mktemp("lines") / "lines", b"".join(lines))
    bodies = [body for body in records.bodies(file, Split.LINE, parameters()) if isinstance(body, bytes)]
    assert b"".join(bodies) == file.read_bytes()
    assert all(len(body) <= MIB and body.endswith(b"\n") for body in bodies)
    # Two neighbours never fit into one: each body is as full as it can be with the line that follows.
    for body, following in itertools.pairwise(bodies):
        assert len(body) + len(following.split(b"\n")[0]) + 1 > MIB


def test_a_line_over_the_payload_is_named(tmp_path: Path) -> None:
    file = of(tmp_path / "lines", b"a\n" + bytes(MIB) + b"\n")
    with pytest.raises(TooLargeError, match="line 2 has 1,048,577 bytes"):
        list(records.bodies(file, Split.LINE, parameters()))


def test_assembling() -> None:
    assert records.assemble(b"{}", Assemble.LINE) == b"{}\n"
    assert records.assemble(b"{}", Assemble.NONE) == b"{}"
