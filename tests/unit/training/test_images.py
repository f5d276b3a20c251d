"""The store is nothing but a memory: with it, without it, damaged or on a full disk, the pixels are the same."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from dogbreed.preprocessing import CorruptImageError, PreprocessSpec, decode, resize_shorter
from dogbreed.training import images
from dogbreed.training.crops import RandomCrop
from dogbreed.training.data import make_loader
from dogbreed.training.images import ReducedImages
from dogbreed.training.sources import Sample, find_splits

SIDE = 40


@pytest.fixture
def samples(drawn_data: Path, tmp_path: Path) -> tuple[Sample, ...]:
    """18 images with a shorter side of 48, in a folder that may be changed."""
    copied = shutil.copytree(drawn_data / "train", tmp_path / "train")
    return find_splits({"train": Path(copied)}, validation_fraction=0.34, seed=0).train


def reduced(samples: tuple[Sample, ...], folder: Path | None, **more: int) -> ReducedImages:
    return ReducedImages(samples, SIDE, folder, **{"reserve_bytes": 0, **more})


def read_all(source: ReducedImages, samples: tuple[Sample, ...]) -> list[torch.Tensor]:
    found = [source.read(position) for position in range(len(samples))]
    source.end_epoch()
    return found


def assert_right(found: list[torch.Tensor], samples: tuple[Sample, ...]) -> None:
    for image, sample in zip(found, samples, strict=True):
        assert torch.equal(image, resize_shorter(decode(sample.path), SIDE))


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called no file can be decoded: what is read comes from the store."""

    def fail(path: Path) -> None:
        raise CorruptImageError(f"{path} is read once more")

    return lambda: monkeypatch.setattr(images, "decode", fail)


def test_the_second_epoch_comes_from_the_store(
    samples: tuple[Sample, ...], tmp_path: Path, spoil: Callable[[], None]
) -> None:
    source = reduced(samples, tmp_path / "made" / "when missing")
    first = read_all(source, samples)
    assert_right(first, samples)
    spoil()
    second = read_all(source, samples)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert source.stored == len(samples)


def test_another_process_finds_the_store(
    samples: tuple[Sample, ...], tmp_path: Path, spoil: Callable[[], None]
) -> None:
    first = read_all(reduced(samples, tmp_path), samples)
    spoil()
    second = read_all(reduced(samples, tmp_path), samples)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_without_a_folder_nothing_is_kept(samples: tuple[Sample, ...], spoil: Callable[[], None]) -> None:
    source = reduced(samples, None)
    assert_right(read_all(source, samples), samples)
    spoil()
    with pytest.raises(CorruptImageError):
        source.read(0)


def test_small_images_stay_as_they_are(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    source = ReducedImages(samples, 1000, tmp_path, reserve_bytes=0)
    for _ in range(2):
        for image, sample in zip(read_all(source, samples), samples, strict=True):
            assert torch.equal(image, decode(sample.path))


def test_the_centre_view_is_that_of_the_original(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    spec = PreprocessSpec(size_px=32, resize_px=SIDE)
    source = reduced(samples, tmp_path)
    for _ in range(2):
        for image, sample in zip(read_all(source, samples), samples, strict=True):
            assert torch.equal(spec.centre_view(image), spec.centre_view(decode(sample.path)))


def test_what_is_written_to_an_image_does_not_reach_the_store(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    source = reduced(samples, tmp_path)
    read_all(source, samples)
    source.read(0).zero_()
    assert_right([reduced(samples, tmp_path).read(0)], samples[:1])


@pytest.mark.parametrize("change", ["name", "size of a file", "content of a file", "order", "side"])
def test_a_store_belongs_to_everything_it_depends_on(samples: tuple[Sample, ...], tmp_path: Path, change: str) -> None:
    read_all(reduced(samples, tmp_path), samples)
    side = SIDE
    if change == "name":
        moved = samples[0].path.rename(samples[0].path.with_name("other.jpg"))
        samples = (Sample(moved, samples[0].index), *samples[1:])
    elif change == "size of a file":
        with samples[0].path.open("ab") as stream:
            stream.write(b" ")
    elif change == "content of a file":
        samples[0].path.write_bytes(samples[0].path.read_bytes()[:-1] + b"x")
    elif change == "order":
        samples = samples[::-1]
    else:
        side = SIDE - 1
    assert ReducedImages(samples, side, tmp_path, reserve_bytes=0).stored == 0


class Damaged(NamedTuple):
    pixels: Path
    index: Path


@pytest.fixture
def segment(samples: tuple[Sample, ...], tmp_path: Path) -> Damaged:
    read_all(reduced(samples, tmp_path / "store"), samples)
    (index,) = (tmp_path / "store").glob("*.npy")
    return Damaged(index.with_suffix(".u8"), index)


def change_index(file: Path, row: int, column: int, value: int) -> None:
    index = np.load(file)
    index[row, column] = value
    np.save(file, index)


@pytest.mark.parametrize(
    "damage",
    [
        "flipped",
        "truncated",
        "empty",
        "no pixels",
        "half an index",
        "swapped",
        "outside",
        "negative",
        "overflow",
        "turned",
        "foreign",
    ],
)
def test_a_damaged_store_is_never_trusted(
    samples: tuple[Sample, ...],
    tmp_path: Path,
    segment: Damaged,
    damage: str,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[], None],
) -> None:
    data = segment.pixels.read_bytes()
    if damage == "flipped":
        segment.pixels.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif damage == "truncated":
        segment.pixels.write_bytes(data[:-1])
    elif damage == "empty":
        segment.pixels.write_bytes(b"")
    elif damage == "no pixels":
        segment.pixels.unlink()
    elif damage == "half an index":
        segment.index.write_bytes(segment.index.read_bytes()[:-50])
    elif damage == "swapped":
        index = np.load(segment.index)
        index[[0, 1], 0] = index[[1, 0], 0]
        np.save(segment.index, index)
    elif damage == "outside":
        change_index(segment.index, 3, 1, len(data))
    elif damage == "negative":
        change_index(segment.index, 3, 0, -1)
    elif damage == "overflow":
        change_index(segment.index, 3, 2, 2**62)
    elif damage == "turned":
        index = np.load(segment.index)
        index[:, [2, 3]] = index[:, [3, 2]]
        np.save(segment.index, index)
    else:
        np.save(segment.index, np.array([["pickle"]]))
    source = reduced(samples, tmp_path / "store")
    with caplog.at_level(logging.WARNING):
        assert_right(read_all(source, samples), samples)
    assert "decoded again" in caplog.text
    assert not segment.index.exists()
    assert not segment.pixels.exists()
    spoil()
    assert len(read_all(reduced(samples, tmp_path / "store"), samples)) == len(samples), "it is written again"


def test_a_full_disk_costs_a_warning(
    samples: tuple[Sample, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = reduced(samples, tmp_path)
    add = images._Writer.add

    def fills_up(writer: images._Writer, position: int, pixels: object, checksum: int) -> None:
        if writer.size > 20_000:
            raise OSError(28, "No space left on device")
        add(writer, position, pixels, checksum)  # type: ignore[arg-type]

    monkeypatch.setattr(images._Writer, "add", fills_up)
    for _ in range(2):
        assert_right(read_all(source, samples), samples)
    assert caplog.text.count("No space left on device") == 1
    assert 0 < source.stored < len(samples), "what fitted is used"
    assert not list(tmp_path.glob(".*"))


def test_a_reserve_is_left_on_the_disk(
    samples: tuple[Sample, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = reduced(samples, tmp_path, reserve_bytes=shutil.disk_usage(tmp_path).total)
    for _ in range(2):
        assert_right(read_all(source, samples), samples)
    assert source.stored == 0
    assert caplog.text.count("are left free") == 1


def test_a_folder_that_cannot_be_written_costs_a_warning(
    samples: tuple[Sample, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_right(read_all(reduced(samples, tmp_path / "file" / "folder"), samples), samples)
    assert caplog.text.count("not stored") == 1


def test_a_store_grows_in_segments_that_are_used_at_once(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    source = reduced(samples, tmp_path, segment_bytes=10_000)
    for position in range(len(samples) - 1):
        source.read(position)
    assert source.stored > 0
    assert len(list(tmp_path.glob("*.npy"))) > 1
    assert_right(read_all(source, samples), samples)
    assert_right(read_all(source, samples), samples)


def test_ranks_fill_one_store_together(samples: tuple[Sample, ...], tmp_path: Path, spoil: Callable[[], None]) -> None:
    ranks = [reduced(samples, tmp_path) for _ in range(2)]
    right = [resize_shorter(decode(sample.path), SIDE) for sample in samples]
    for rank, source in enumerate(ranks):
        for position in range(rank, len(samples), 2):
            source.read(position)
    for source in ranks:
        source.end_epoch()
    ranks[0].end_epoch()  # the first one had ended before the second
    spoil()
    for source in ranks:
        assert all(torch.equal(source.read(position), image) for position, image in enumerate(right))


def test_threads_fill_and_read_one_store(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    source = reduced(samples, tmp_path, segment_bytes=10_000)
    right = [resize_shorter(decode(sample.path), SIDE) for sample in samples]
    wrong = []

    def work() -> None:
        for position, image in enumerate(right):
            if not torch.equal(source.read(position), image):
                wrong.append(position)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    source.end_epoch()
    assert wrong == []
    assert_right(read_all(source, samples), samples)


def test_an_unreadable_image_is_not_stored(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    samples[2].path.write_bytes(b"no image")
    source = reduced(samples, tmp_path)
    for _ in range(2):
        with pytest.raises(CorruptImageError):
            source.read(2)
    source.read(0)
    source.end_epoch()
    assert source.stored == 1


def test_a_loader_gives_the_same_batches_with_and_without_a_store(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    def epoch(source: ReducedImages, number: int) -> torch.Tensor:
        loader = make_loader(
            samples,
            RandomCrop(32, smallest=0.35),
            batch_size=5,
            workers=2,
            seed=0,
            shuffle=True,
            pin=False,
            images=source,
        )
        return torch.cat([batch.images for batch in loader.epoch(number)])

    without, stored = reduced(samples, None), reduced(samples, tmp_path)
    for number in (1, 2, 3):
        assert torch.equal(epoch(without, number), epoch(stored, number))
    assert stored.stored == len(samples)


def test_an_epoch_that_is_left_early_keeps_what_it_has_read(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    source = reduced(samples, tmp_path)
    view = PreprocessSpec(32, SIDE).centre_view
    loader = make_loader(samples, view, batch_size=2, workers=0, seed=0, shuffle=False, pin=False, images=source)
    epoch = loader.epoch(1)
    next(epoch)
    epoch.close()  # type: ignore[attr-defined]
    assert reduced(samples, tmp_path).stored == 2
