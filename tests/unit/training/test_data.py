from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from dogbreed.errors import DataError
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training.data import Splits, choose_workers, find_splits, make_loader

VIEW = PreprocessSpec.for_size(32).centre_view


def find(found: dict[str, Path], *, fraction: float = 0.2, seed: int = 0) -> Splits:
    return find_splits(found, validation_fraction=fraction, seed=seed)


def counts(splits: Splits) -> tuple[int, int, int]:
    return len(splits.train), len(splits.validation), len(splits.test or ())


@pytest.fixture
def copy(drawn_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn_data, tmp_path / "data"))


@pytest.mark.parametrize("validation", ["validation", "valid", "val"])
@pytest.mark.parametrize("train", ["train", "training"])
def test_each_split_may_be_a_channel_under_its_usual_names(drawn_data: Path, train: str, validation: str) -> None:
    found = {train: drawn_data / "train", validation: drawn_data / "valid", "test": drawn_data / "test"}
    splits = find(found)
    assert counts(splits) == (18, 9, 9)
    assert not splits.held_out


@pytest.mark.parametrize("name", ["train", "training", "images"])
def test_one_channel_may_hold_all_the_splits(drawn_data: Path, name: str) -> None:
    assert counts(find({name: drawn_data})) == (18, 9, 9)


def test_channels_with_weights_are_no_data(drawn_data: Path) -> None:
    assert counts(find({"photos": drawn_data, "pretrained": Path("/nowhere"), "model": Path("/nowhere")})) == (18, 9, 9)


def test_labels_follow_the_sorted_folders_and_every_sample_knows_its_class(drawn_data: Path) -> None:
    splits = find({"train": drawn_data})
    assert list(splits.labels.folders) == sorted(splits.labels.folders)
    assert not any(name[0].isdigit() for name in splits.labels.names)
    assert all(sample.path.parent.name == splits.labels.folders[sample.index] for sample in splits.train)


def test_without_validation_the_same_share_of_every_class_is_held_out(drawn_data: Path) -> None:
    splits = find({"train": drawn_data / "train"}, fraction=0.34)
    assert splits.held_out
    assert Counter(sample.index for sample in splits.validation) == {0: 2, 1: 2, 2: 2}
    assert not {sample.path for sample in splits.train} & {sample.path for sample in splits.validation}


def test_the_held_out_images_depend_on_the_seed_alone(drawn_data: Path) -> None:
    found = {"train": drawn_data / "train"}
    assert find(found, seed=1).validation == find(found, seed=1).validation
    assert find(found, seed=1).validation != find(found, seed=2).validation


def test_files_that_are_not_images_and_hidden_ones_are_ignored(copy: Path) -> None:
    folder = next((copy / "train").iterdir())
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.jpg").write_bytes(b"")
    (copy / "train" / ".cache").mkdir()
    assert counts(find({"train": copy})) == (18, 9, 9)


def test_the_fingerprint_changes_with_the_data(copy: Path) -> None:
    before = find({"train": copy}).fingerprint
    assert find({"train": copy}).fingerprint == before
    next((copy / "train").rglob("*.jpg")).unlink()
    assert find({"train": copy}).fingerprint != before


def test_no_training_channel_is_an_error_that_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no `train` channel; found channels: a, b"):
        find({"a": tmp_path, "b": tmp_path})
    with pytest.raises(DataError, match="found channels: none"):
        find({})


def test_a_channel_without_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone does not exist"):
        find({"train": tmp_path / "gone"})


def test_an_empty_folder_or_one_class_only_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least two, but holds 0 \(found: nothing\)"):
        find({"train": tmp_path})
    (tmp_path / "only").mkdir()
    with pytest.raises(DataError, match=r"at least two, but holds 1 \(found: only\)"):
        find({"train": tmp_path})


def test_an_empty_class_is_an_error_that_names_it(copy: Path) -> None:
    (copy / "train" / "999.Unicorn").mkdir()
    with pytest.raises(DataError, match=r"1 of 4 class folders .* hold no image \(999\.Unicorn\)"):
        find({"train": copy})


@pytest.mark.parametrize(("folder", "split"), [("valid", "validation"), ("test", "test")])
def test_a_label_that_training_does_not_have_is_an_error(copy: Path, folder: str, split: str) -> None:
    (copy / folder / "999.Unicorn").mkdir()
    with pytest.raises(DataError, match=rf"999\.Unicorn; a {split} label must be among the 3 train labels"):
        find({"train": copy})


def test_an_empty_validation_channel_is_an_error(drawn_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images; give validation images"):
        find({"train": drawn_data / "train", "validation": tmp_path})


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


def test_random_views_are_the_same_with_and_without_worker_processes(drawn_data: Path) -> None:
    splits = find({"train": drawn_data})

    def noisy(image: torch.Tensor) -> torch.Tensor:
        return VIEW(image) ^ torch.randint(0, 255, (1,), dtype=torch.uint8)

    def images(workers: int) -> torch.Tensor:
        loader = make_loader(splits.train, noisy, batch_size=5, workers=workers, seed=3, shuffle=True, pin=False)
        return torch.cat([batch.images for batch in loader.epoch(2)])

    state = torch.get_rng_state()
    here = images(0)
    assert torch.equal(torch.get_rng_state(), state), "loading must not disturb the job's own random numbers"
    assert torch.equal(here, images(2))


def test_a_corrupt_image_leaves_its_batch_and_is_reported_with_it(copy: Path) -> None:
    victim = next((copy / "train").rglob("*.jpg"))
    victim.write_bytes(b"not a jpeg")
    splits = find({"train": copy})
    loader = make_loader(splits.train, VIEW, batch_size=18, workers=0, seed=0, shuffle=False, pin=False)
    (batch,) = loader.epoch(1)
    assert batch.images.shape == (17, 3, 32, 32)
    assert batch.images.dtype is torch.uint8
    assert batch.indices.tolist() == [0] * 5 + [1] * 6 + [2] * 6
    assert [problem.split(" (")[0] for problem in batch.corrupt] == [str(victim)]


def test_a_batch_of_corrupt_images_only_is_empty(copy: Path) -> None:
    for file in (copy / "train").rglob("*.jpg"):
        file.write_bytes(b"")
    splits = find({"train": copy})
    loader = make_loader(splits.train, VIEW, batch_size=18, workers=0, seed=0, shuffle=False, pin=False)
    (batch,) = loader.epoch(1)
    assert len(batch.indices) == 0
    assert len(batch.corrupt) == 18


def test_a_last_training_batch_of_one_sits_out_but_is_evaluated(drawn_data: Path) -> None:
    splits = find({"train": drawn_data})

    def sizes(*, shuffle: bool) -> list[int]:
        loader = make_loader(splits.train, VIEW, batch_size=17, workers=0, seed=0, shuffle=shuffle, pin=False)
        return [len(batch.indices) for batch in loader.epoch(1)]

    assert sizes(shuffle=True) == [17]
    assert sizes(shuffle=False) == [17, 1]


@pytest.mark.parametrize(
    ("requested", "cpus", "batches", "expected"), [(-1, 2, 9, 2), (0, 2, 9, 0), (8, 2, 9, 8), (8, 2, 3, 3)]
)
def test_workers_follow_the_request_the_cpus_and_the_work(
    requested: int, cpus: int, batches: int, expected: int, tmp_path: Path
) -> None:
    assert choose_workers(requested, cpus=cpus, batches=batches, batch_bytes=1, shared_memory=tmp_path) == expected


def test_workers_are_given_up_where_shared_memory_is_small(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert choose_workers(4, cpus=4, batches=9, batch_bytes=free // 2, shared_memory=tmp_path) == 0
    assert choose_workers(4, cpus=4, batches=9, batch_bytes=1, shared_memory=tmp_path / "gone") == 0
