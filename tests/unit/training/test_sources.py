from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dogbreed.errors import DataError
from dogbreed.training.lists import Label
from dogbreed.training.sources import Sample, Splits, digest_files, find_classes, find_corrupt, find_splits


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


def test_a_link_back_brings_no_image_twice_and_none_of_another_split(copy: Path) -> None:
    before = find({"train": copy})
    one, two, _ = sorted(path for path in (copy / "train").iterdir() if path.is_dir())
    for name, target in (("root", copy), ("sister", two), ("valid", copy / "valid" / one.name)):
        (one / name).symlink_to(target)
    splits = find({"train": copy})
    assert (splits.train, splits.validation, splits.test) == (before.train, before.validation, before.test)
    (note,) = splits.notes
    assert note.startswith(f"{one}/root, {one}/sister, {one}/valid among the train images: passed over")


def test_classes_that_are_links_are_classes_unless_two_are_one(copy: Path) -> None:
    for split in ("train", "valid", "test"):
        (copy / split).rename(copy / f"real {split}")
        (copy / split).mkdir()
        for folder in (copy / f"real {split}").iterdir():
            (copy / split / folder.name).symlink_to(folder)
    splits = find({"train": copy})
    assert (counts(splits), splits.notes) == ((18, 9, 9), ())
    one = splits.labels.folders[0]
    (copy / "train" / "twin").symlink_to(copy / "real train" / one)
    with pytest.raises(
        DataError, match=rf"the class folders {one} and twin of .* are links to one folder, .*real train"
    ):
        find({"train": copy})
    (copy / "train" / "twin").unlink()
    (copy / "train" / "all").symlink_to(copy)
    with pytest.raises(DataError, match=r"train/all is a link to .*, which holds the classes; remove the link"):
        find({"train": copy})


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_name_that_is_not_utf_8_is_refused_before_anything_is_learned(copy: Path, split: str) -> None:
    folder = min(path for path in (copy / split).iterdir() if path.is_dir())
    photo = next(folder.iterdir())
    renamed = photo.rename(folder / os.fsdecode(b"dog\xe9.jpg"))
    with pytest.raises(DataError, match=r"dog\\udce9\.jpg' is not UTF-8, .*; rename it"):
        find({"train": copy})
    renamed.rename(photo)
    folder.rename(copy / split / os.fsdecode(b"dog\xe9"))
    with pytest.raises(DataError, match=r"/dog\\udce9' is not UTF-8, .*; rename it"):
        find({"train": copy})
    if split == "train":
        with pytest.raises(DataError, match="is not UTF-8"):
            find_classes({"train": copy})


def test_a_hidden_class_folder_is_left_out_and_named(copy: Path) -> None:
    (copy / "train" / ".cache").mkdir()
    assert find({"train": copy}).notes == ()
    one = min(path for path in (copy / "train").iterdir() if path.is_dir() and not path.name.startswith("."))
    shutil.copytree(one, copy / "train" / ".Poodle")
    splits = find({"train": copy})
    assert counts(splits) == (18, 9, 9)
    (note,) = splits.notes
    assert note.startswith(f".Poodle in {copy}/train: left out, because a name with a leading dot")


def test_of_two_names_for_one_split_one_is_taken_and_the_other_named(
    copy: Path, drawn_data: Path, tmp_path: Path, numbers: dict[str, str]
) -> None:
    shutil.copytree(copy / "valid", copy / "validation")
    shutil.rmtree(next(path for path in (copy / "validation").iterdir() if path.is_dir()))
    splits = find({"train": copy})
    assert counts(splits) == (18, 6, 9)
    (note,) = splits.notes
    assert note.startswith("validation and valid are there for the same split: validation is taken, and nothing else")
    lines = lines_of(drawn_data / "train", numbers)
    channels = listed(drawn_data, tmp_path, lines, validation=lines_of(drawn_data / "valid", numbers))
    assert find(channels).notes == ()
    (note,) = find({**channels, "val_lst": channels["validation_lst"]}).notes
    assert note.startswith("validation_lst and val_lst are there for the same split")


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


# Lists


def listed(data: Path, tmp_path: Path, lines: str, **more: str) -> dict[str, Path]:
    """Channels with lists: train_lst with these lines, and others by split."""
    channels = {"train": data / "train"}
    for split, text in {"train": lines, **more}.items():
        folder = tmp_path / f"{split}_lst"
        folder.mkdir()
        (folder / f"{split}.lst").write_text(text)
        channels[f"{split}_lst"] = folder
        if split != "train":
            channels[split] = data / ("valid" if split == "validation" else split)
    return channels


def lines_of(folder: Path, numbers: dict[str, str]) -> str:
    """A list of all images below a folder, with a label per class folder."""
    files = sorted(folder.rglob("*.jpg"))
    rows = [f"{row}\t{numbers[file.parent.name]}\t{file.relative_to(folder)}" for row, file in enumerate(files)]
    return "\n".join(rows) + "\n"


@pytest.fixture
def numbers(drawn_data: Path) -> dict[str, str]:
    """The class folders with labels in an order that is not theirs, one written as im2rec writes it."""
    one, two, three = sorted(path.name for path in (drawn_data / "train").iterdir() if path.is_dir())
    return {one: "10", two: "2.000000", three: "7"}


def test_lists_name_the_images_and_their_order_of_labels_counts(
    drawn_data: Path, tmp_path: Path, numbers: dict[str, str]
) -> None:
    channels = listed(
        drawn_data,
        tmp_path,
        lines_of(drawn_data / "train", numbers),
        validation=lines_of(drawn_data / "valid", numbers),
        test=lines_of(drawn_data / "test", numbers),
    )
    splits = find(channels)
    assert counts(splits) == (18, 9, 9)
    assert not splits.held_out
    assert list(splits.labels.folders) == sorted(numbers, key=lambda folder: float(numbers[folder]))
    for sample in (*splits.train, *splits.validation, *(splits.test or ())):
        assert sample.path.parent.name == splits.labels.folders[sample.index]
    plain = find({"train": drawn_data})
    assert set(splits.labels.names) == set(plain.labels.names), "without the prefix for sorting"


def test_without_a_validation_list_a_share_is_held_out(
    drawn_data: Path, tmp_path: Path, numbers: dict[str, str]
) -> None:
    splits = find(listed(drawn_data, tmp_path, lines_of(drawn_data / "train", numbers)), fraction=0.34)
    assert (counts(splits), splits.held_out) == ((12, 6, 0), True)


def test_classes_are_called_by_their_labels_where_folders_do_not_name_them(drawn_data: Path, tmp_path: Path) -> None:
    files = sorted((drawn_data / "train").rglob("*.jpg"))
    text = "".join(f"{n}\t{9 + n % 2}\t{file.relative_to(drawn_data / 'train')}\n" for n, file in enumerate(files))
    splits = find(listed(drawn_data, tmp_path, text))
    assert splits.labels.folders == splits.labels.names == ("9", "10")


def test_a_list_with_other_labels_for_the_same_images_has_another_fingerprint(
    drawn_data: Path, tmp_path: Path, numbers: dict[str, str]
) -> None:
    one, two, three = numbers
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    swapped = {one: numbers[two], two: numbers[one], three: numbers[three]}
    first = find(listed(drawn_data, tmp_path / "a", lines_of(drawn_data / "train", numbers)))
    second = find(listed(drawn_data, tmp_path / "b", lines_of(drawn_data / "train", swapped)))
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("0 1 a.jpg", r"line 1: '0 1 a\.jpg' has 1 fields; give three, separated by tabs"),
        ("0\t1\t0\ta.jpg", "has 4 fields"),
        ("0\tcat\ta.jpg", "the label 'cat' is not a whole number from 0 on"),
        ("0\t0.5\ta.jpg", r"the label '0\.5' is not a whole number"),
        ("0\t-1\ta.jpg", "the label '-1' is not a whole number"),
        ("0\tinf\ta.jpg", "the label 'inf' is not a whole number"),
        ("0\tnan\ta.jpg", "the label 'nan' is not a whole number"),
        ("0\t1\t/etc/passwd", "leaves the channel"),
        ("0\t1\t../a.jpg", "leaves the channel"),
        ("0\t1\tabsent.jpg", r"'absent\.jpg' is not in .*train; paths are relative"),
        ("", "is empty; give one image per line"),
    ],
)
def test_a_bad_line_is_named(drawn_data: Path, tmp_path: Path, line: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        find(listed(drawn_data, tmp_path, line + "\n"))


def test_a_list_that_is_no_text_is_an_error(drawn_data: Path, tmp_path: Path) -> None:
    channels = listed(drawn_data, tmp_path, "")
    (channels["train_lst"] / "train.lst").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"train\.lst cannot be read"):
        find(channels)


def test_lists_and_channels_must_belong_together(drawn_data: Path, tmp_path: Path, numbers: dict[str, str]) -> None:
    channels = listed(drawn_data, tmp_path, lines_of(drawn_data / "train", numbers))
    with pytest.raises(DataError, match="the validation channel has no list while others have"):
        find({**channels, "validation": drawn_data / "valid"})
    with pytest.raises(DataError, match="no `train` channel with the images"):
        find({"train_lst": channels["train_lst"]})
    with pytest.raises(DataError, match="the train channel has no list"):
        find({"train": drawn_data / "train", "validation_lst": channels["train_lst"], "validation": drawn_data})
    (channels["train_lst"] / "another.lst").write_text("")
    with pytest.raises(DataError, match=r"must hold one list, a single file, but holds 2 \(found: another\.lst"):
        find(channels)


def test_a_label_of_another_list_must_be_one_of_the_train_list(
    drawn_data: Path, tmp_path: Path, numbers: dict[str, str]
) -> None:
    file = next((drawn_data / "valid").rglob("*.jpg")).relative_to(drawn_data / "valid")
    channels = listed(drawn_data, tmp_path, lines_of(drawn_data / "train", numbers), validation=f"0\t3\t{file}\n")
    with pytest.raises(DataError, match=r"the validation channel has the label 3, which .* its labels are 2 to 10"):
        find(channels)


def test_a_list_of_one_label_is_an_error(drawn_data: Path, tmp_path: Path) -> None:
    file = next((drawn_data / "train").rglob("*.jpg")).relative_to(drawn_data / "train")
    with pytest.raises(DataError, match="only the label 4; give at least two"):
        find(listed(drawn_data, tmp_path, f"0\t4\t{file}\n"))


# Manifests in channels


def manifest(folder: Path, label: Callable[[Path], dict[str, object]]) -> None:
    """Writes a manifest of all images below a folder, under the S3 URIs that they were copied from."""
    lines = [
        json.dumps({"source-ref": f"s3://bucket/dogs/{file.relative_to(folder)}", **label(file)})
        for file in sorted(folder.rglob("*.jpg"))
    ]
    (folder / "output.manifest").write_text("\n".join(lines) + "\n")


def test_a_manifest_with_names_is_like_folders_of_these_names(copy: Path) -> None:
    plain = find({"train": copy / "train", "validation": copy / "valid", "test": copy / "test"})
    for split in ("train", "valid", "test"):
        manifest(copy / split, lambda file: {"breed": file.parent.name})
    splits = find({"train": copy / "train", "validation": copy / "valid", "test": copy / "test"})
    assert splits == plain


def test_a_manifest_with_numbers_counts_in_their_order_and_takes_their_class_names(
    copy: Path, numbers: dict[str, str]
) -> None:
    def label(file: Path) -> dict[str, object]:
        return {"breed": float(numbers[file.parent.name]), "breed-metadata": {"class-name": file.parent.name}}

    manifest(copy / "train", label)
    splits = find({"photos": copy / "train"})
    assert list(splits.labels.folders) == sorted(numbers, key=lambda folder: float(numbers[folder]))
    assert all(sample.path.parent.name == splits.labels.folders[sample.index] for sample in splits.train)
    manifest(copy / "train", lambda file: {"breed": numbers[file.parent.name]})
    assert find({"photos": copy / "train"}).labels.names == ("2", "7", "10")


def test_a_manifest_may_stand_in_a_channel_of_its_own(copy: Path, tmp_path: Path) -> None:
    manifest(copy / "train", lambda file: {"breed": file.parent.name})
    (tmp_path / "lists").mkdir()
    (copy / "train" / "output.manifest").rename(tmp_path / "lists" / "train.lst")
    assert find({"train": copy / "train", "train_lst": tmp_path / "lists"}) == find({"train": copy / "train"})


def test_a_manifests_class_name_must_be_text_that_can_be_written(copy: Path) -> None:
    manifest(copy / "train", lambda file: {"breed": "\ud83d" if file.parent.name.startswith("001") else "dog"})
    with pytest.raises(DataError, match=r"the name '\\ud83d' is not UTF-8"):
        find({"train": copy / "train"})


def test_manifests_must_be_one_for_each_split_and_label_alike(copy: Path) -> None:
    manifest(copy / "train", lambda file: {"breed": file.parent.name})
    with pytest.raises(DataError, match=r"the validation channel has no list .* or a manifest in the channel itself"):
        find({"train": copy / "train", "validation": copy / "valid"})
    manifest(copy / "valid", lambda file: {"breed": 7})
    with pytest.raises(DataError, match=r"the validation channel has the label 7, which .* its labels are 0"):
        find({"train": copy / "train", "validation": copy / "valid"})
    (copy / "train" / "second.jsonl").write_text('{"source-ref": "x"}')
    with pytest.raises(DataError, match=r"holds 2 manifests \(output\.manifest, second\.jsonl\); give each split"):
        find({"train": copy / "train"})
    (copy / "train" / "second.jsonl").unlink()
    manifest(copy / "train", lambda file: {"breed": 1 if file.parent.name.startswith("001") else file.parent.name})
    with pytest.raises(DataError, match=r"some images have the label 1, others '.*'; give all of them numbers"):
        find({"train": copy / "train"})


# Many hosts


def folders(*names: str) -> list[Label]:
    return [Label(None, name) for name in names]


def test_a_host_that_misses_a_class_keeps_the_common_indices(copy: Path) -> None:
    whole = find({"train": copy / "train"})
    gone = whole.labels.folders[1]
    shutil.rmtree(copy / "train" / gone)
    here = find_classes({"train": copy / "train"})
    splits = find_splits({"train": copy / "train"}, validation_fraction=0.2, seed=0, classes=[*folders(gone), *here])
    assert splits.labels == whole.labels
    assert {sample.index for sample in splits.train} == {0, 2}
    with pytest.raises(DataError, match="must be among the 2 train labels"):
        find_splits({"train": copy / "train"}, validation_fraction=0.2, seed=0, classes=folders("x", "y"))


def test_a_host_whose_list_misses_a_class_keeps_the_common_indices(
    drawn_data: Path, tmp_path: Path, numbers: dict[str, str]
) -> None:
    lines = lines_of(drawn_data / "train", numbers).splitlines(keepends=True)
    some = "".join(line for line in lines if "\t10\t" not in line)
    for host, text in (("whole", "".join(lines)), ("here", some)):
        (tmp_path / host).mkdir()
        (tmp_path / host / "train.lst").write_text(text)
    whole = {"train": drawn_data / "train", "train_lst": tmp_path / "whole"}
    here = {"train": drawn_data / "train", "train_lst": tmp_path / "here"}
    assert len(find_classes(here)) == 2
    splits = find_splits(here, validation_fraction=0.2, seed=0, classes=find_classes(whole) | find_classes(here))
    assert splits.labels == find(whole).labels
    assert {sample.index for sample in splits.train} == {0, 1}


def test_the_digests_of_files_are_those_of_each_in_order(copy: Path) -> None:
    train = find({"train": copy}).train
    digests = digest_files(train)
    assert len(set(digests)) == 18
    assert digest_files(train[::-1]) == digests[::-1]
    assert digest_files(train[1:]) == digests[1:]
    assert digest_files(()) == ()
    train[0].path.write_bytes(b"shorter")
    assert digest_files(train)[0] != digests[0]


@pytest.mark.parametrize("size", [100, 5_000, 100_000])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_files_of_one_name_and_size_are_told_apart_by_their_content(tmp_path: Path, size: int, share: float) -> None:
    file = tmp_path / "a.bmp"
    file.write_bytes(bytes(size))
    before = digest_files([Sample(file, 0)])
    changed = bytearray(size)
    changed[int(share * size)] = 1
    file.write_bytes(changed)
    assert digest_files([Sample(file, 0)]) != before


def test_a_file_of_the_same_content_has_the_same_digest_whenever_it_was_written(copy: Path, tmp_path: Path) -> None:
    train = find({"train": copy}).train
    digests = digest_files(train)
    again = Path(shutil.copytree(copy, tmp_path / "again", copy_function=shutil.copyfile))
    assert digest_files(find({"train": again}).train) == digests


def test_a_file_that_cannot_be_read_has_a_digest_too(copy: Path) -> None:
    train = find({"train": copy}).train
    digests = digest_files(train)
    train[3].path.unlink()
    assert [digest == before for digest, before in zip(digest_files(train), digests, strict=True)].count(False) == 1


def test_of_what_every_host_has_each_takes_a_part(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("validation", 2), ("test", 2)):
        for name in ("a", "b"):
            for number in range(count):
                file = tmp_path / split / name / f"{number}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"x")
    channels = {split: tmp_path / split for split in ("train", "validation", "test")}
    splits = find_splits(channels, validation_fraction=0.2, seed=0)
    parts = [splits.of_host(host, 2, {"train": True, "validation": False, "test": False}) for host in (0, 1)]
    assert [len(part.train) for part in parts] == [8, 8], "each host's own"
    assert parts[0].validation + parts[1].validation == splits.validation
    assert [len(part.test or ()) for part in parts] == [2, 2]
    nested = splits.of_host(0, 2, {"train": True})
    assert nested.validation == splits.validation, "it lies in the channel of the training images"


def test_corrupt_samples_are_found_whatever_their_names(tmp_path: Path) -> None:
    names = ("a (1).jpg", "a (1) (2).jpg", "b.jpg", "c.jpg")
    samples = [Sample(tmp_path / "cat" / name, 0) for name in names]
    problems = [f"{tmp_path}/cat/a (1) (2).jpg (cannot be decoded (at all))", f"{tmp_path}/cat/c.jpg (empty)", "b.jpg"]
    assert find_corrupt(samples, problems) == {samples[1]: "cannot be decoded (at all)", samples[3]: "empty"}
    moved = ["/elsewhere/cat/a (1).jpg (empty)"]
    assert find_corrupt(samples, moved) == {}
    assert find_corrupt(samples, moved, parts=2) == {samples[0]: "empty"}
