from __future__ import annotations

import json
import logging
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import OptMl
from tests.streams import feed, im2rec, record

from dogbreed.environment import TrainingEnvironment, read_training_environment
from dogbreed.errors import ConfigurationError, DataError
from dogbreed.training import piped
from dogbreed.training.distributed import ALONE
from dogbreed.training.lists import Label, find_manifest, read_list

Rows = list[tuple[bytes, Label]]
NEVER = lambda: False  # noqa: E731
PHOTO = b"\xff\xd8\xff\xe0 photo"
PNG = b"\x89PNG\r\n\x1a\n drawing"


def described(opt_ml: OptMl, **channels: dict[str, str]) -> TrainingEnvironment:
    """The environment of a job with these channels in Pipe mode, wrapped unless they say otherwise."""
    defaults = {"TrainingInputMode": "Pipe", "RecordWrapperType": "RecordIO"}
    opt_ml.write("inputdataconfig.json", {name: {**defaults, **more} for name, more in channels.items()})
    return read_training_environment({"DOGBREED_CACHE_DIR": str(opt_ml.root / "cache")}, root=opt_ml.root)


@pytest.fixture
def read(opt_ml: OptMl) -> Callable[..., Rows]:
    """Streams these bytes as the channel `train`, and gives what arrived."""

    def read(*stream: bytes, **more: str) -> Rows:
        environment = described(opt_ml, train=more)
        writer = feed(opt_ml.data / "train_0", stream)
        with piped.as_folders(environment, ALONE, NEVER, reserve_bytes=0) as found:
            channel = found.channels["train"]
            assert not channel.piped
            manifest = find_manifest(channel.path)
            assert manifest is not None
            rows = [(one.path.read_bytes(), one.label) for one in read_list(manifest, channel.path)]
        assert not channel.path.exists()
        writer.join(10)
        return rows

    return read


METADATA = json.dumps({"class-name": "Beagle", "confidence": 0.9}).encode()


@pytest.mark.parametrize(
    ("group", "label"),
    [
        ([PHOTO, b"3"], Label(3, None)),
        ([PHOTO, b'"3"'], Label(3, None)),
        ([b"3", PHOTO], Label(3, None)),
        ([PHOTO, b"Beagle"], Label(None, "Beagle")),
        ([PHOTO, b"BMW"], Label(None, "BMW")),
        ([PHOTO, b'"Beagle"'], Label(None, "Beagle")),
        ([PHOTO, b"3", METADATA], Label(3, "Beagle")),
        ([METADATA, b"3", PHOTO], Label(3, "Beagle")),
        ([b"3", PHOTO, METADATA], Label(3, "Beagle")),
        ([PHOTO, METADATA], Label(None, "Beagle")),
    ],
)
@pytest.mark.parametrize("times", [1, 3])
def test_the_attributes_of_a_manifest_come_in_any_order(
    read: Callable[..., Rows], group: list[bytes], label: Label, times: int
) -> None:
    assert read(*(record(one) for one in group * times)) == [(PHOTO, label)] * times


def test_the_stream_of_the_documentation(read: Callable[..., Rows]) -> None:
    assert read(record(PHOTO), record(b"1"), record(PNG), record(b"0")) == [
        (PHOTO, Label(1, None)),
        (PNG, Label(0, None)),
    ]


def test_records_of_im2rec_bring_their_labels(read: Callable[..., Rows]) -> None:
    stream = im2rec(PHOTO, 2.0) + im2rec(b"no photo", 0.0) + im2rec(PNG, 1.0)
    assert read(stream, RecordWrapperType="None") == [
        (PHOTO, Label(2, None)),
        (b"no photo", Label(0, None)),
        (PNG, Label(1, None)),
    ]


@pytest.mark.parametrize("broken", [b"", b"\0" * 50, b"\xff\xd8", b"7"])
def test_an_image_that_is_none_keeps_its_place_and_label(read: Callable[..., Rows], broken: bytes) -> None:
    good = record(PHOTO) + record(b"1")
    assert read(good, good, record(broken), record(b"0"), good)[2] == (broken, Label(0, None))


def test_images_are_called_by_their_place_and_content(opt_ml: OptMl) -> None:
    environment = described(opt_ml, train={})
    feed(opt_ml.data / "train_0", [record(part) for part in (PHOTO, b"1", PNG, b"0", PHOTO, b"1")])
    with piped.as_folders(environment, ALONE, NEVER, reserve_bytes=0) as found:
        names = sorted(
            str(path.relative_to(found.channels["train"].path))
            for path in found.channels["train"].path.rglob("*.[jp]*g")
        )
    assert [name.split("-")[0] for name in names] == ["00000/0000000", "00000/0000001", "00000/0000002"]
    assert [Path(name).suffix for name in names] == [".jpg", ".png", ".jpg"]
    digests = [Path(name).stem.split("-")[1] for name in names]
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (b"", r"channel 'train': the stream is empty; its S3 URI must name a manifest with images"),
        (PHOTO, r"channel 'train': the stream is not RecordIO: record 1 begins with the bytes ff d8 ff e0"),
        (record(PHOTO) + record(b"1")[:-1], r"channel 'train': the stream was cut off: it ends in record 2"),
        (record(PHOTO) + record(b"1") + record(PHOTO), "cut off: the last image has 1 records instead of 2"),
        (record(PHOTO), r"it comes without a label, because in Pipe mode .* or the same data in File or FastFile mode"),
        (record(PHOTO) * 2, r"AugmentedManifestFile, AttributeNames such as source-ref and class"),
        (record(b"1") + record(PHOTO) * 2, "the records are not images with labels in turn"),
        (record(b"1"), "the records are not images with labels in turn; AttributeNames must name source-ref"),
        (record(b"1") * 40, "the records are not images with labels in turn"),
        (record(record(PHOTO)), "a record holds RecordIO itself; leave RecordWrapperType out"),
        (record(PHOTO) + record(b"1") + record(b"2"), r"image 1: there are 2 labels; give each image one"),
        ((record(PHOTO) + record(b"1")) * 2 + record(PHOTO) * 2, r"image 3: a record of 10 bytes stands where a label"),
        (
            (record(PHOTO) + record(b"1")) * 2 + record(PHOTO) + record(b"\xfe"),
            r"image 3: a record of 1 bytes that are",
        ),
        (
            (record(PHOTO) + record(b"1")) * 2 + record(PHOTO) + record(b"\n"),
            r"the label '\\n' is neither JSON nor a name",
        ),
        ((record(PHOTO) + record(b"1")) * 2 + record(PHOTO) + record(b"[" * 60_000), "a label is nested too deeply"),
        (record(PHOTO) + record(b"[0, 1]"), r"image 1: the label \[0, 1\] is neither a whole number"),
        (im2rec(PHOTO, 1.0, 2.0), r"image 1: there are 2 labels"),
        (im2rec(PHOTO, 0.5), r"image 1: the label 0\.5 is neither a whole number"),
        (im2rec(PHOTO, 0.0) + record(b"short"), "the stream is not RecordIO: 5 bytes are too few"),
    ],
)
def test_a_stream_that_cannot_be_used_is_one_sentence(
    read: Callable[..., Rows], opt_ml: OptMl, stream: bytes, complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint) as raised:
        read(stream)
    assert "\n" not in str(raised.value)
    assert not list((opt_ml.root / "cache" / "piped").iterdir())


def test_what_is_not_wrapped_is_told_how_to_be(read: Callable[..., Rows]) -> None:
    with pytest.raises(DataError, match="set RecordWrapperType=RecordIO where the data is not RecordIO already"):
        read(PHOTO, RecordWrapperType="None")


def test_a_disk_that_is_too_small(opt_ml: OptMl) -> None:
    environment = described(opt_ml, train={})
    feed(opt_ml.data / "train_0", [record(PHOTO), record(b"1")] * 2)
    with (
        pytest.raises(DataError, match=r"after 0 images .* GB are free in .*raise VolumeSizeInGB, .* FastFile mode"),
        piped.as_folders(environment, ALONE, NEVER, reserve_bytes=shutil.disk_usage(opt_ml.root).total),
    ):
        raise AssertionError
    assert not list((opt_ml.root / "cache" / "piped").iterdir())


@pytest.mark.parametrize("name", ["pretrained", "model", "train_lst"])
def test_channels_that_are_files_cannot_be_pipes(opt_ml: OptMl, name: str) -> None:
    environment = described(opt_ml, train={}, **{name: {}})
    with (
        pytest.raises(ConfigurationError, match=rf"channel '{name}' comes in Pipe mode.* InputMode=File"),
        piped.as_folders(environment, ALONE, NEVER),
    ):
        raise AssertionError


def test_without_pipes_nothing_changes(opt_ml: OptMl) -> None:
    environment = described(opt_ml, train={"TrainingInputMode": "File"})
    with piped.as_folders(environment, ALONE, NEVER) as found:
        assert found is environment
    assert not (opt_ml.root / "cache").exists()


@pytest.mark.parametrize("there", ["nothing", "a pipe", "a pipe with a writer"])
def test_a_stop_is_seen_while_nothing_comes_and_the_log_says_what_is_waited_for(
    opt_ml: OptMl, caplog: pytest.LogCaptureFixture, there: str
) -> None:
    environment = described(opt_ml, train={})
    if there != "nothing":
        os.mkfifo(opt_ml.data / "train_0")
    writer = os.open(opt_ml.data / "train_0", os.O_RDWR) if "writer" in there else None

    def told_twice() -> bool:
        return len([entry for entry in caplog.records if entry.levelno == logging.WARNING]) == 2

    with (
        caplog.at_level(logging.INFO),
        pytest.raises(piped.StoppedEarlyError, match="there is no model"),
        piped.as_folders(environment, ALONE, told_twice, patience_s=0),
    ):
        raise AssertionError
    state = "does not exist" if there == "nothing" else "has no writer, or one that writes nothing"
    assert f"train_0 {state} (0.0 MB so far); still waiting for the platform" in caplog.text
    assert not list((opt_ml.root / "cache" / "piped").iterdir())
    if writer is not None:
        os.close(writer)


def test_a_stop_is_seen_while_data_comes(opt_ml: OptMl) -> None:
    environment = described(opt_ml, train={})
    with (opt_ml.data / "train_0").open("wb") as endless:  # a file may stand in the place of a pipe
        endless.write((record(PHOTO * 100_000) + record(b"1")) * 10)
    asked = iter(range(5))
    with (
        pytest.raises(piped.StoppedEarlyError),
        piped.as_folders(environment, ALONE, lambda: next(asked, None) is None, reserve_bytes=0),
    ):
        raise AssertionError


def test_what_lost_jobs_left_is_removed_and_what_runs_stays(opt_ml: OptMl) -> None:
    parent = opt_ml.root / "cache" / "piped"
    for name in ("lost", "begun"):
        (parent / name).mkdir(parents=True)
        (parent / name / ".lock").touch()
    long_ago = time.time() - 1000
    os.utime(parent / "lost" / ".lock", (long_ago, long_ago))
    environment = described(opt_ml, train={})
    for opening in ("outer", "inner"):
        feed(opt_ml.data / f"{opening}_0", [record(PHOTO), record(b"1")])
    environment = described(opt_ml, outer={})
    with piped.as_folders(environment, ALONE, NEVER, reserve_bytes=0) as outer:
        lock = outer.channels["outer"].path.parent / ".lock"
        os.utime(lock, (long_ago, long_ago))
        with piped.as_folders(described(opt_ml, inner={}), ALONE, NEVER, reserve_bytes=0):
            assert lock.exists()
        assert sorted(folder.name for folder in parent.iterdir()) == sorted(["begun", lock.parent.name])


def test_a_cache_folder_that_cannot_be_made(opt_ml: OptMl) -> None:
    (opt_ml.root / "cache").touch()
    with (
        pytest.raises(DataError, match=r"cannot be stored in .*piped: .*DOGBREED_CACHE_DIR"),
        piped.as_folders(described(opt_ml, train={}), ALONE, NEVER),
    ):
        raise AssertionError


def test_labels_of_im2rec_are_little_endian_floats() -> None:
    assert im2rec(b"", 1.0)[8:16] == struct.pack("<If", 0, 1.0)
