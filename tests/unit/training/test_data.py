from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training.crops import RandomCrop
from dogbreed.training.data import (
    Batch,
    EpochLoader,
    Splits,
    View,
    advise_workers,
    choose_workers,
    make_loader,
    turn,
)
from dogbreed.training.sources import digest_files, find_splits

VIEW = PreprocessSpec.for_size(32).centre_view
VIEWS: dict[str, View] = {
    "centre": VIEW,
    "seeded crop": RandomCrop(32, smallest=0.35),
    "crop": v2.RandomResizedCrop(32, antialias=True),
    "colours": v2.Compose([v2.Lambda(VIEW), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)]),
    "trivial": v2.Compose([v2.Lambda(VIEW), v2.TrivialAugmentWide()]),
    "augmix": v2.Compose([v2.Lambda(VIEW), v2.AugMix()]),
    "erasing": v2.Compose([v2.Lambda(VIEW), v2.RandomErasing(1.0)]),
    "elastic": v2.Compose([v2.Lambda(VIEW), v2.ElasticTransform()]),
}


def find(found: dict[str, Path]) -> Splits:
    return find_splits(found, validation_fraction=0.2, seed=0)


@pytest.fixture
def copy(drawn_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn_data, tmp_path / "data"))


def paths_per_epoch(splits: Splits, *, seed: int, epoch: int, shuffle: bool = True) -> torch.Tensor:
    loader = make_loader(splits.train, VIEW, batch_size=5, workers=0, seed=seed, shuffle=shuffle, pin=False)
    return torch.cat([batch.images.flatten(1).float().sum(dim=1) for batch in loader.epoch(epoch)])


def test_the_order_follows_from_seed_and_epoch(drawn_data: Path) -> None:
    splits = find({"train": drawn_data})
    first = paths_per_epoch(splits, seed=0, epoch=1)
    assert torch.equal(first, paths_per_epoch(splits, seed=0, epoch=1))
    assert not torch.equal(first, paths_per_epoch(splits, seed=0, epoch=2))
    assert not torch.equal(first, paths_per_epoch(splits, seed=1, epoch=1))
    assert torch.equal(first.sort().values, paths_per_epoch(splits, seed=1, epoch=7).sort().values)


def test_an_epoch_may_begin_in_its_middle(drawn_data: Path) -> None:
    splits = find({"train": drawn_data})
    loader = make_loader(splits.train, VIEW, batch_size=5, workers=0, seed=0, shuffle=True, pin=False)
    whole = [batch.images for batch in loader.epoch(3)]
    rest = [batch.images for batch in loader.epoch(3, start=2)]
    assert len(rest) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))
    assert len(list(loader.epoch(4))) == 4, "the next epoch is whole again"


def loader_of(splits: Splits, view: View = VIEW, *, workers: int = 0, batch_size: int = 5, **more: int) -> EpochLoader:
    return make_loader(
        splits.train, view, batch_size=batch_size, workers=workers, seed=3, shuffle=True, pin=False, **more
    )


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_views_are_the_same_with_and_without_threads(drawn_data: Path, name: str) -> None:
    splits = find({"train": drawn_data})

    def images(workers: int) -> torch.Tensor:
        return torch.cat([batch.images for batch in loader_of(splits, VIEWS[name], workers=workers).epoch(2)])

    state = torch.get_rng_state()
    here = images(0)
    assert torch.equal(here, images(3))
    assert torch.equal(torch.get_rng_state(), state), "loading must not disturb the job's own random numbers"


def test_a_view_draws_what_a_global_generator_with_its_seed_would(drawn_data: Path) -> None:
    splits = find({"train": drawn_data})
    drawn = loader_of(splits, lambda image: VIEW(image) * 0 + torch.randint(0, 255, (1,), dtype=torch.uint8), workers=2)
    found = [int(image[0, 0, 0]) for batch in drawn.epoch(1) for image in batch.images]
    seeds = [seed for keys in drawn._plan.epoch(1) for _, seed in keys]
    expected = []
    for seed in seeds:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expected.append(int(torch.randint(0, 255, (1,), dtype=torch.uint8)))
    assert found == expected


def test_batches_are_stored_pixel_by_pixel(drawn_data: Path) -> None:
    batch = next(loader_of(find({"train": drawn_data})).epoch(1))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_a_share_of_a_split_gets_the_views_that_the_whole_split_would(drawn_data: Path) -> None:
    samples = find({"train": drawn_data}).train

    def images(first: int, end: int) -> torch.Tensor:
        loader = make_loader(
            samples[first:end], VIEWS["crop"], first, batch_size=4, workers=0, seed=3, shuffle=False, pin=False
        )
        return torch.cat([batch.images for batch in loader.epoch(1)])

    whole = images(0, 18)
    assert torch.equal(torch.cat([images(0, 7), images(7, 18)]), whole)
    assert not torch.equal(images(0, 7), images(0, 7).flip(-1)), "they are random"


def loader_threads() -> list[threading.Thread]:
    # Threads of other libraries in this process may have a method of that name.
    return [thread for thread in threading.enumerate() if str(thread.name).startswith("loader")]


def test_no_thread_outlives_its_epoch(drawn_data: Path) -> None:
    loader = loader_of(find({"train": drawn_data}), workers=2, batch_size=2)
    epoch = loader.epoch(1)
    next(epoch)
    assert len(loader_threads()) == 2
    epoch.close()  # type: ignore[attr-defined]
    assert loader_threads() == []
    assert len(list(loader.epoch(2))) == 9
    assert loader_threads() == []


def test_threads_begin_no_further_image_when_an_epoch_is_left(drawn_data: Path) -> None:
    seen, left = [], threading.Event()

    def waiting(image: torch.Tensor) -> torch.Tensor:
        seen.append(threading.current_thread().name)
        if len(seen) > 1:
            left.wait(30)
        return VIEW(image)

    # One thread: the first batch of one image is taken, and it waits in the second while the epoch is being closed.
    epoch = loader_of(find({"train": drawn_data}), waiting, workers=1, batch_size=1).epoch(1)
    next(epoch)
    threading.Timer(0.2, left.set).start()
    epoch.close()  # type: ignore[attr-defined]
    assert len(seen) <= 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_in_a_view_is_raised_where_batches_are_taken(drawn_data: Path, workers: int) -> None:
    def failing(image: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("in a view")

    with pytest.raises(ZeroDivisionError, match="in a view"):
        list(loader_of(find({"train": drawn_data}), failing, workers=workers).epoch(1))
    assert loader_threads() == []


def test_torch_uses_one_core_in_each_thread_and_as_many_as_before_elsewhere(drawn_data: Path) -> None:
    before = torch.get_num_threads()
    seen = []

    def asking(image: torch.Tensor) -> torch.Tensor:
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        return VIEW(image)

    try:
        torch.set_num_threads(3)
        for _ in loader_of(find({"train": drawn_data}), asking, workers=2).epoch(1):
            seen_later = []
            later = threading.Thread(target=lambda: seen_later.append(torch.get_num_threads()))  # noqa: B023  joined
            later.start()
            later.join()
            assert (torch.get_num_threads(), seen_later) == (3, [3])
    finally:
        torch.set_num_threads(before)
    assert {number for _, number in seen} == {1}
    assert all(name.startswith("loader") for name, _ in seen)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_batches_of_a_single_process(drawn_data: Path, ranks: int) -> None:
    # 18 samples in batches of 8: the last one holds 2, which go to one rank, since nothing learns from one alone.
    splits = find({"train": drawn_data})
    view = VIEWS["seeded crop"]
    whole = list(loader_of(splits, view, batch_size=8).epoch(1))
    shares = [list(loader_of(splits, view, batch_size=8, rank=rank, ranks=ranks).epoch(1)) for rank in range(ranks)]
    assert [len(share) for share in shares] == [len(whole)] * ranks
    for number, batch in enumerate(whole):
        takers = min(ranks, len(batch.indices) // 2)
        for rank, share in enumerate(shares):
            mine: Batch = share[number]
            own = slice(rank, None, takers) if rank < takers else slice(0)
            assert mine.indices.tolist() == batch.indices[own].tolist()
            if len(mine.indices):
                assert torch.equal(mine.images, batch.images[own])
    assert [len(share[-1].indices) for share in shares] == [2] + [0] * (ranks - 1)


@given(samples=st.integers(0, 40), ranks=st.integers(1, 8))
def test_the_turns_of_all_ranks_are_the_batch_and_none_is_of_a_single_sample(samples: int, ranks: int) -> None:
    turns = [list(range(samples))[turn(samples, rank, ranks)] for rank in range(ranks)]
    assert sorted(position for one in turns for position in one) == list(range(samples))
    if samples != 1:
        assert all(len(one) != 1 for one in turns)
    whole = [len(one) for one in turns if one]
    assert not whole or max(whole) - min(whole) <= 1


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [
        (0, [0, 0, 0, 0, 0]),
        (1, [0, 0, 0, 0, 1]),
        (3, [0, 0, 0, 0, 3]),
        (4, [0, 0, 2, 0, 2]),
        (9, [0, 2, 2, 2, 3]),
        (11, [2, 2, 2, 2, 3]),
    ],
)
def test_few_images_of_a_host_come_in_pairs(drawn_data: Path, samples: int, sizes: list[int]) -> None:
    own = find({"train": drawn_data}).train[:samples]
    loader = make_loader(own, VIEW, batch_size=9, workers=0, seed=0, shuffle=True, pin=False, batches=5)
    assert [len(batch.indices) for batch in loader.epoch(1)] == sizes


def test_a_corrupt_image_leaves_its_batch_and_is_reported_with_it(copy: Path) -> None:
    victim = next((copy / "train").rglob("*.jpg"))
    victim.write_bytes(b"not a jpeg")
    splits = find({"train": copy})
    loader = make_loader(splits.train, VIEW, batch_size=18, workers=0, seed=0, shuffle=False, pin=False)
    (batch,) = loader.epoch(1)
    assert batch.images.shape == (17, 3, 32, 32)
    assert batch.images.dtype is torch.uint8
    assert batch.indices.tolist() == [0] * 5 + [1] * 6 + [2] * 6
    assert [problem.split(" (")[0] for problem in batch.problems] == [str(victim)]


def spoil(folder: Path) -> list[Path]:
    """Puts what only has the name of an image among the images."""
    spoilt = [folder / name for name in ("0dead.jpg", "0device.jpg", "0pipe.jpg", "0self.jpg")]
    for file, target in zip(spoilt[::3], ("nowhere", "0self.jpg"), strict=True):
        file.symlink_to(target)
    spoilt[1].symlink_to("/dev/zero")
    os.mkfifo(spoilt[2])
    return spoilt


@pytest.mark.timeout(60)
def test_dead_links_pipes_and_devices_are_corrupt_images(copy: Path) -> None:
    spoilt = spoil(min((copy / "train").iterdir()))
    splits = find({"train": copy})
    assert len(splits.fingerprint) == 64
    assert len(digest_files(splits.train)) == len(splits.train)
    loader = make_loader(splits.train, VIEW, batch_size=22, workers=2, seed=0, shuffle=False, pin=False)
    (batch,) = loader.epoch(1)
    assert len(batch.indices) == 18
    assert [problem.split(" (")[0] for problem in batch.problems] == [str(file) for file in spoilt]
    assert "No such file" in batch.problems[0]
    assert all("a pipe, a device or a folder" in problem for problem in batch.problems[1:3])


def test_a_batch_of_corrupt_images_only_is_empty(copy: Path) -> None:
    for file in (copy / "train").rglob("*.jpg"):
        file.write_bytes(b"")
    splits = find({"train": copy})
    loader = make_loader(splits.train, VIEW, batch_size=18, workers=0, seed=0, shuffle=False, pin=False)
    (batch,) = loader.epoch(1)
    assert len(batch.indices) == 0
    assert len(batch.problems) == 18


def test_a_last_training_batch_of_one_sits_out_but_is_evaluated(drawn_data: Path) -> None:
    splits = find({"train": drawn_data})

    def sizes(*, shuffle: bool) -> list[int]:
        loader = make_loader(splits.train, VIEW, batch_size=17, workers=0, seed=0, shuffle=shuffle, pin=False)
        return [len(batch.indices) for batch in loader.epoch(1)]

    assert sizes(shuffle=True) == [17]
    assert sizes(shuffle=False) == [17, 1]


@pytest.mark.parametrize(
    ("requested", "cpus", "batches", "expected"), [(-1, 2, 9, 2), (0, 2, 9, 0), (8, 2, 9, 8), (8, 2, 0, 0)]
)
def test_workers_follow_the_request_the_cpus_and_the_work(
    requested: int, cpus: int, batches: int, expected: int
) -> None:
    assert choose_workers(requested, cpus=cpus, batches=batches, batch_bytes=1) == expected


def test_workers_are_given_up_where_batches_that_wait_would_fill_the_memory() -> None:
    assert choose_workers(4, cpus=4, batches=9, batch_bytes=100, free_bytes=1600) == 4
    assert choose_workers(4, cpus=4, batches=9, batch_bytes=101, free_bytes=1600) == 0


def test_advice_is_given_only_where_training_waits() -> None:
    assert advise_workers(0.05, cpus=4, workers=0) == ""
    assert advise_workers(0.5, cpus=4, workers=1) == (
        "training waited for images 50% of the time with 1 loader threads on 4 CPUs; set num-workers=4"
    )
    assert advise_workers(0.5, cpus=4, workers=9).endswith("more than can run; set num-workers=4")
    assert "all 4 CPUs loading" in advise_workers(0.5, cpus=4, workers=4)
