from __future__ import annotations

import gzip
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from local_test.simulator import pipes
from local_test.simulator.channels import RequestError, parse
from local_test.simulator.pipes import Feeder
from tests.streams import MAGIC

from dogbreed.training import recordio


@pytest.mark.parametrize("data", [b"", b"abc", b"12345678", MAGIC, b"abcd" + MAGIC + MAGIC + b"x", b"a" + MAGIC])
def test_records_are_read_back(data):
    stream = pipes.record(data) + pipes.record(b"next")
    assert len(stream) % 4 == 0
    assert [bytes(one) for one in recordio.read_records(io.BytesIO(stream))] == [data, b"next"]


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    folder = tmp_path / "objects"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.bin").write_bytes(str(number).encode() * 40_000)
    return folder


def read(pipe: Path) -> bytes:
    until(pipe.exists)
    return pipe.read_bytes()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_epoch_has_a_pipe_of_its_own(objects, tmp_path):
    feeder = Feeder(parse([f"train={objects}", "mode=Pipe"]), tmp_path / "data")
    whole = b"".join(file.read_bytes() for file in sorted(objects.iterdir()))
    try:
        assert (tmp_path / "data" / "train_0").is_fifo()
        assert not (tmp_path / "data" / "train_1").exists()
        assert read(tmp_path / "data" / "train_0") == whole
        assert read(tmp_path / "data" / "train_1") == whole
    finally:
        feeder.close()
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("wrapper", ["None", "RecordIO"])
def test_compressed_objects_come_decompressed(tmp_path, wrapper):
    folder = tmp_path / "objects"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.gz").write_bytes(gzip.compress(name.encode() * 3_000_000))
    words = [f"train={folder}", "mode=Pipe", "compression=Gzip", f"wrapper={wrapper}"]
    feeder = Feeder(parse(words), tmp_path / "data")
    try:
        found = read(tmp_path / "data" / "train_0")
    finally:
        feeder.close()
    if wrapper == "RecordIO":
        found = b"".join(bytes(one) for one in recordio.read_records(io.BytesIO(found)))
    assert found == b"a" * 3_000_000 + b"b" * 3_000_000


@pytest.mark.parametrize(
    "content",
    [b"plain", gzip.compress(b"abc", mtime=0)[:-4], b"\x1f\x8b\x08\x00" + bytes(20), b"\xff" * 9],
    ids=["no archive", "cut off", "a broken stream", "other bytes"],
)
def test_an_object_that_cannot_be_decompressed_is_named(tmp_path, content):
    folder = tmp_path / "objects"
    folder.mkdir()
    (folder / "a.gz").write_bytes(gzip.compress(b"whole"))
    (folder / "b.gz").write_bytes(content)
    with pytest.raises(RequestError, match=r"b\.gz cannot be decompressed .* every object is a whole \.gz file"):
        Feeder(parse([f"train={folder}", "mode=Pipe", "compression=Gzip"]), tmp_path / "data")


def test_a_reader_that_leaves_early_gets_the_next_epoch(objects, tmp_path):
    feeder = Feeder(parse([f"train={objects}", "mode=Pipe", "wrapper=RecordIO"]), tmp_path / "data")
    try:
        with (tmp_path / "data" / "train_0").open("rb") as stream:
            assert bytes(next(iter(recordio.read_records(stream)))) == (objects / "0.bin").read_bytes()
        records = list(recordio.read_records(io.BytesIO(read(tmp_path / "data" / "train_1"))))
        assert [bytes(one)[:1] for one in records] == [b"0", b"1", b"2", b"3", b"4", b"5"]
    finally:
        feeder.close()


def test_an_end_in_the_middle_of_a_stream(objects, tmp_path):
    feeder = Feeder(parse([f"train={objects}", "mode=Pipe"]), tmp_path / "data")
    with (tmp_path / "data" / "train_0").open("rb") as stream:
        assert stream.read(1) == b"0"
        feeder.close()


def test_shares_and_orders(objects, tmp_path):
    words = [f"train={objects}", "mode=Pipe", "wrapper=RecordIO", "distribution=ShardedByS3Key", "shuffle=3"]
    orders = []
    feeder = Feeder(parse(words), tmp_path / "data", 1, 2)
    try:
        for epoch in range(8):
            stream = io.BytesIO(read(tmp_path / "data" / f"train_{epoch}"))
            orders.append([bytes(one)[:1].decode() for one in recordio.read_records(stream)])
    finally:
        feeder.close()
    assert {tuple(sorted(order)) for order in orders} == {("1", "3", "5")}
    assert len({tuple(order) for order in orders}) > 1


def manifest(folder: Path, *lines: object) -> Path:
    file = folder / "list.manifest"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


def test_a_manifest_gives_its_attributes_in_turn(objects, tmp_path):
    file = manifest(
        tmp_path,
        {"breed": 7, "source-ref": "s3://bucket/any/objects/1.bin"},
        {"source-ref": "objects/2.bin", "breed": "akita"},
    )
    words = [f"train={file}", "mode=Pipe", "wrapper=RecordIO", "attributes=source-ref,breed"]
    feeder = Feeder(parse(words), tmp_path / "data")
    try:
        stream = io.BytesIO(read(tmp_path / "data" / "train_0"))
        found = [bytes(one) for one in recordio.read_records(stream)]
    finally:
        feeder.close()
    assert found == [b"1" * 40_000, b"7", b"2" * 40_000, b"akita"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"source-ref": "objects/1.bin"}, "has no attribute breed"),
        ({"source-ref": "objects/9.bin", "breed": 1}, r"there is no file .*9\.bin"),
    ],
)
def test_a_manifest_that_cannot_be_streamed_is_refused(objects, tmp_path, line, sentence):
    words = [f"train={manifest(tmp_path, line)}", "mode=Pipe", "wrapper=RecordIO", "attributes=source-ref,breed"]
    with pytest.raises(RequestError, match=sentence):
        Feeder(parse(words), tmp_path / "data")
