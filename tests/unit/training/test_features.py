from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dogbreed.errors import HyperparameterError
from dogbreed.training.data import Batch, LeftOut
from dogbreed.training.distributed import ALONE, Team
from dogbreed.training.features import (
    STOPPED,
    FeatureBatches,
    FeatureStore,
    StoreKey,
    digest_weights,
    gather_store,
    open_store,
    remove_store,
    write_store,
)

KEY = StoreKey("samples", "tiny, head", "weights", "spec", "centre", "float32")
CPU = torch.device("cpu")


def outputs(view: int, count: int = 5) -> Tensor:
    return (torch.arange(count * 3).reshape(count, 3) + 100 * view).float()


def passing(view: int, *, lost: tuple[int, ...] = (), until: int = 5) -> Iterator[tuple[Tensor, Batch]]:
    """A view in batches of two, without the images at some positions; the classes are 0, 1, 2, 3, 4."""
    for start in range(0, until, 2):
        end = min(start + 2, 5)
        there = [position for position in range(start, end) if position not in lost]
        left_out = tuple(
            LeftOut(position, f"{position}.jpg (bad)") for position in range(start, end) if position in lost
        )
        yield outputs(view)[there], Batch(torch.empty(0), torch.tensor(there, dtype=torch.int64), left_out)


def write(folder: Path, views: int = 2, key: StoreKey = KEY) -> FeatureStore:
    store = write_store(folder, key, [lambda v=v: passing(v) for v in range(views)], 5)  # type: ignore[misc]
    assert store is not STOPPED
    return store


def test_what_is_stored_is_what_was_computed(tmp_path: Path) -> None:
    write(tmp_path / "made" / "when missing")
    store = open_store(tmp_path / "made" / "when missing", KEY)
    assert store is not None
    assert store.outputs.shape == (2, 5, 3)
    assert store.outputs.dtype == np.float16
    assert np.array_equal(store.outputs[1], outputs(1).numpy())
    assert store.indices.tolist() == [0, 1, 2, 3, 4]


def test_outputs_are_mapped_and_not_held(tmp_path: Path) -> None:
    assert isinstance(write(tmp_path).outputs, np.memmap)


@pytest.mark.parametrize("field", ["samples", "network", "weights", "preprocessing", "views", "arithmetic"])
def test_a_store_belongs_to_everything_it_depends_on(tmp_path: Path, field: str) -> None:
    write(tmp_path)
    assert open_store(tmp_path, replace(KEY, **{field: "another"})) is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "no description", "half a description", "foreign"])
def test_a_damaged_store_is_never_trusted(tmp_path: Path, damage: str) -> None:
    write(tmp_path)
    file = tmp_path / f"{KEY.digest}.f16"
    whole = file.read_bytes()
    outputs_bytes = 2 * 5 * 3 * 2
    foreign = json.dumps({"shape": "large"}).encode()
    file.write_bytes(
        {
            "truncated": whole[:-2],
            "flipped": b"\xff" + whole[1:],
            "empty": b"",
            "no description": whole[:outputs_bytes],
            "half a description": whole[: outputs_bytes + 20],
            "foreign": whole[:outputs_bytes] + foreign + struct.pack("<Q", len(foreign)),
        }[damage]
    )
    assert open_store(tmp_path, KEY) is None
    assert write(tmp_path).outputs.shape == (2, 5, 3), "it is computed again"


def test_a_stop_in_between_leaves_nothing_behind(tmp_path: Path) -> None:
    assert write_store(tmp_path, KEY, [lambda: passing(0), lambda: passing(1, until=2)], 5) is STOPPED
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_between_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[Tensor, Batch]]:
        yield from passing(0, until=2)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_store(tmp_path, KEY, [failing], 5)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_job_left_half_written_is_removed(tmp_path: Path) -> None:
    abandoned, begun = tmp_path / ".264e.partial", tmp_path / ".99aa.partial"
    for file in (abandoned, begun):
        file.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    write(tmp_path)
    assert not abandoned.exists()
    assert begun.exists(), "it may be another's work in progress"


def test_corrupt_images_are_remembered_with_the_store(tmp_path: Path) -> None:
    write_store(tmp_path, KEY, [lambda: passing(0, lost=(3,))], 5)
    store = open_store(tmp_path, KEY)
    assert store is not None
    assert store.corrupt == ("3.jpg (bad)",)


@pytest.mark.parametrize(
    ("lost", "kept"),
    [
        (((), (1,)), [0, 2, 3, 4]),
        (((0,), (4,)), [1, 2, 3]),  # as many rows in both: only their positions tell them apart
        (((0, 1), (3,)), [2, 4]),
        (((0, 1, 2, 3), (4,)), []),
    ],
)
def test_an_image_that_one_view_lacks_is_in_none(
    tmp_path: Path, lost: tuple[tuple[int, ...], ...], kept: list[int]
) -> None:
    views = [lambda number=number: passing(number, lost=lost[number]) for number in (0, 1)]
    store = write_store(tmp_path, KEY, views, 5)  # type: ignore[arg-type]
    assert store is not STOPPED
    assert store.indices.tolist() == kept
    assert store.outputs.shape == (2, len(kept), 3)
    for number in (0, 1):
        assert np.array_equal(store.outputs[number], outputs(number)[kept].numpy())
    assert sorted(store.corrupt) == [f"{position}.jpg (bad)" for position in sorted(lost[0] + lost[1])]


def test_what_is_damaged_as_it_is_written_is_no_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda number: os.ftruncate(number, 7))
    with pytest.raises(OSError, match=r"just written to .*f16 is damaged or gone"):
        write(tmp_path)


def test_of_two_that_write_one_store_each_is_whole(tmp_path: Path) -> None:
    """Their bits may differ: another batch size is enough. One ends within the other, between any two of its steps."""

    def meanwhile() -> Iterator[tuple[Tensor, Batch]]:
        yield from passing(3)
        assert np.array_equal(write(tmp_path, views=1).outputs[0], outputs(0).numpy())

    store = write_store(tmp_path, KEY, [meanwhile], 5)
    assert store is not STOPPED
    assert np.array_equal(store.outputs[0], outputs(3).numpy())


@pytest.mark.parametrize("step", ["replace", "open"])
def test_a_store_that_is_replaced_meanwhile_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    real, done = getattr(Path, step), []

    def first(path: Path, *rest: object) -> object:
        found = real(path, *rest)
        if not done and (path.suffix == ".f16" or step == "replace"):
            done.append(path)
            write_store(tmp_path, KEY, [lambda: passing(4)], 5)
        return found

    monkeypatch.setattr(Path, step, first)
    store = write(tmp_path, views=1)
    assert done
    assert float(store.outputs[0, 0, 0]) in (0, 400)


def rows(batches: FeatureBatches, epoch: int) -> list[float]:
    return [float(row[0]) for batch in batches.epoch(epoch) for row in batch.images]


def test_training_shuffles_by_seed_and_epoch_and_draws_views(tmp_path: Path) -> None:
    store = write(tmp_path)

    def of(seed: int, epoch: int) -> list[float]:
        return rows(FeatureBatches(store, batch_size=3, seed=seed, shuffle=True, device=CPU), epoch)

    assert of(0, 1) == of(0, 1)
    assert of(0, 1) != of(0, 2)
    assert of(0, 1) != of(1, 1)
    assert sorted(value % 100 for value in of(0, 1)) == [0, 3, 6, 9, 12]
    assert {value >= 100 for epoch in range(9) for value in of(0, epoch)} == {True, False}


def write_maps(folder: Path) -> tuple[FeatureStore, Tensor]:
    """Maps [40, 2, 2, 3] of which none is its own mirror image; the classes are 0 to 39."""
    maps = torch.arange(40 * 12).reshape(40, 2, 2, 3).float()
    store = write_store(folder, KEY, [lambda: iter([(maps, Batch(torch.empty(0), torch.arange(40), ()))])], 40)
    assert store is not STOPPED
    return store, maps


def mirrored(
    store: FeatureStore, epoch: int, *, seed: int = 0, start: int = 0, team: Team = ALONE
) -> dict[int, Tensor]:
    """What an epoch feeds, by class."""
    batches = FeatureBatches(store, batch_size=7, seed=seed, shuffle=True, device=CPU, team=team, mirror=True)
    return {
        int(index): image
        for batch in batches.epoch(epoch, start)
        for index, image in zip(batch.indices, batch.images, strict=True)
    }


def test_half_of_the_maps_are_mirrored_where_that_stands_for_a_view(tmp_path: Path) -> None:
    store, maps = write_maps(tmp_path)

    def drawn(epoch: int, seed: int = 0) -> list[bool]:
        fed = mirrored(store, epoch, seed=seed)
        assert sorted(fed) == list(range(40))
        found = {index: bool((image != maps[index]).any()) for index, image in fed.items()}
        for index, image in fed.items():
            assert torch.equal(image.float(), maps[index].flip(-1) if found[index] else maps[index])
        return [found[index] for index in sorted(found)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(1) != drawn(1, seed=1)
    assert 10 < sum(drawn(1)) < 30
    assert np.array_equal(store.outputs[0], maps.numpy()), "what is stored stays as it is"


def test_what_is_mirrored_depends_on_neither_processes_nor_a_resumption(tmp_path: Path) -> None:
    store, _ = write_maps(tmp_path)
    whole, resumed = mirrored(store, 1), mirrored(store, 1, start=2)
    assert len(resumed) == 40 - 2 * 7
    shared = mirrored(store, 1, team=Team(0, 2)) | mirrored(store, 1, team=Team(1, 2))
    assert sorted(shared) == list(range(40))
    for part in (resumed, shared):
        assert all(torch.equal(image, whole[index]) for index, image in part.items())


def test_evaluation_keeps_the_order_and_shows_the_first_view(tmp_path: Path) -> None:
    batches = FeatureBatches(write(tmp_path), batch_size=3, seed=0, shuffle=False, device=CPU)
    assert rows(batches, 7) == [0, 3, 6, 9, 12]
    assert len(batches) == 2
    assert [batch.indices.tolist() for batch in batches.epoch(1)] == [[0, 1, 2], [3, 4]]


def test_a_last_training_batch_of_one_sits_out(tmp_path: Path) -> None:
    store = write(tmp_path)
    assert len(FeatureBatches(store, batch_size=4, seed=0, shuffle=True, device=CPU)) == 1
    assert len(FeatureBatches(store, batch_size=4, seed=0, shuffle=False, device=CPU)) == 2


def test_weights_have_one_digest_whatever_their_memory_format() -> None:
    weights = {"a": torch.randn(4, 3, 2, 2), "b": torch.tensor(3)}
    same = {"b": torch.tensor(3), "a": weights["a"].contiguous(memory_format=torch.channels_last)}
    assert digest_weights(weights) == digest_weights(same)
    assert digest_weights(weights) != digest_weights({**weights, "b": torch.tensor(4)})


def test_an_output_too_large_for_the_store_is_refused(tmp_path: Path) -> None:
    def too_large() -> Iterator[tuple[Tensor, Batch]]:
        yield torch.full((5, 3), 7e4), Batch(torch.empty(0), torch.arange(5), ())

    with pytest.raises(HyperparameterError, match=r"is 7e\+04, over the 65504 .* set cache=false"):
        write_store(tmp_path, KEY, [too_large], 5)
    assert not list(tmp_path.iterdir())


def test_a_store_without_one_readable_image(tmp_path: Path) -> None:
    def nothing() -> Iterator[tuple[Tensor, Batch]]:
        left_out = tuple(LeftOut(position, name) for position, name in enumerate("abcde"))
        yield torch.empty(0), Batch(torch.empty(0), torch.empty(0, dtype=torch.int64), left_out)

    store = write_store(tmp_path, KEY, [nothing], 5)
    assert store is not STOPPED
    assert (len(store.indices), store.corrupt) == (0, tuple("abcde"))


def test_a_share_gathered_alone_is_the_store(tmp_path: Path) -> None:
    share = write(tmp_path / "share")
    whole = gather_store(tmp_path / "whole", KEY, share, ALONE)
    assert np.array_equal(whole.outputs, share.outputs)
    assert whole.indices.tolist() == share.indices.tolist()
    remove_store(tmp_path / "share", KEY)
    assert not list((tmp_path / "share").iterdir())


def test_processes_share_every_batch(tmp_path: Path) -> None:
    store = write(tmp_path)
    feed = [
        FeatureBatches(store, batch_size=3, seed=1, shuffle=True, device=CPU, team=Team(rank, 2)) for rank in (0, 1)
    ]
    whole = FeatureBatches(store, batch_size=3, seed=1, shuffle=True, device=CPU)
    for together, *shares in zip(whole.epoch(1), *(one.epoch(1) for one in feed), strict=True):
        assert all(len(share.indices) != 1 for share in shares)
        found = sorted(index for share in shares for index in share.indices.tolist())
        assert found == sorted(together.indices.tolist())
