"""What is found, as page, JSON and table."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogbreed.curation import finds, page
from dogbreed.curation.finds import Copies, Curation, LabelError, Photo, Unreadable
from dogbreed.curation.overlaps import Overlap
from dogbreed.statistics import Interval

LABELS = ("Beagle", "Old_English_sheepdog", "<i>Pug</i>")


def photo(folder: Path, split: str, index: int, name: str) -> Photo:
    file = folder / split / f"00{index}.class" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(len(name)).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((200, 150)).save(file)
    return Photo(file, split, index)


@pytest.fixture
def found(tmp_path: Path) -> Curation:
    one, other = photo(tmp_path, "train", 0, "a.jpg"), photo(tmp_path, "test", 0, "bb.jpg")
    third = photo(tmp_path, "train", 2, "ccc & <b>.jpg")
    return Curation(
        labels=LABELS,
        images={"train": 90, "test": 30},
        accuracy=0.875,
        not_judged=1,
        label_errors=(LabelError(third, 1, 0.01, 0.93),),
        copies=(Copies((one, third), 0.96), Copies((one, other), 0.99), Copies((one, one), 0.95)),
        merges=(
            Overlap(0, 1, (40, 40), (18, 20), 0.475, Interval(0.37, 0.58), True, 0.875, 0.95),
            Overlap(0, 2, (40, 40), (10, 10), 0.25, Interval(0.17, 0.36), False, 0.875, 0.9),
        ),
        root=tmp_path,
        unreadable=(Unreadable(Photo(tmp_path / "train" / "001.class" / "broken.jpg", "train", 1), "not <an> image"),),
        notes=("Something was left out.",),
    )


def visible(text: str) -> str:
    """What is read on a page."""
    return html.unescape(
        re.sub(r"\s+", " ", re.sub("<style>.*?</style>|<[^>]*>", "", text.replace("<wbr>", ""), flags=re.DOTALL))
    )


def test_the_page_shows_each_find_with_what_to_do(found: Curation) -> None:
    text = page.render(found)
    read = visible(text)
    assert "4 images to look at" in read
    assert "001.class/broken.jpg" in read
    assert "not <an> image" in read
    assert "1 label is likely wrong; 3 groups of copies, 1 across splits; 1 pair of classes to merge" in found.sentence
    assert "looks like Old_English_sheepdog, 93.0 %" in read
    assert "labelled <i>Pug</i>, 1.0 %" in read
    assert "train: 002.class/ccc & <b>.jpg" in read
    assert "One picture, two labels: 2 photos, 96.0 % alike" in read
    assert "At most one of its labels is right" in read
    assert "Across splits: 2 photos" in read
    assert "Remove it from train, so that the test stays as it is." in read
    assert "Merge Beagle and Old_English_sheepdog, or look at what they are labelled by" in read
    assert "wrong 48% of the time (37% to 58%; a coin 50%)" in read
    assert "Keep Beagle and <i>Pug</i> apart" in read
    assert "1 image was not judged" in read
    assert "Something was left out." in read
    assert text.count("data:image/jpeg;base64,") == 7
    assert "<i>" not in text
    assert "<script" not in text
    assert not re.search(r"(src|href)=.https?:", text)


def test_a_photo_that_is_gone_has_no_picture(found: Curation) -> None:
    found.copies[1].photos[1].path.unlink()
    assert page.render(found).count("data:image/jpeg;base64,") == 6


def test_nothing_found_says_so(tmp_path: Path) -> None:
    nothing = Curation(
        labels=LABELS,
        images={"train": 9},
        accuracy=1.0,
        not_judged=0,
        label_errors=(),
        copies=(),
        merges=(),
        root=tmp_path,
    )
    read = visible(page.render(nothing))
    assert "Nothing stands out in these images" in read
    assert "No label stands out." in read
    assert "Unreadable" not in read
    assert "no labels are likely wrong; no groups of copies, 0 across splits; no pairs of classes" in nothing.sentence


def test_the_files_hold_everything(found: Curation, tmp_path: Path) -> None:
    written = page.write(found, tmp_path / "new" / "found")
    assert written.name == "curation.html"
    document = json.loads((written.parent / "curation.json").read_text(encoding="utf-8"))
    assert document["root"] == str(tmp_path)
    assert document["counts"] == {
        "label_errors": 1,
        "copies": 3,
        "copies_across_splits": 1,
        "copies_with_two_labels": 1,
        "classes_to_merge": 1,
        "unreadable": 1,
    }
    assert document["unreadable"] == [
        {
            "path": "train/001.class/broken.jpg",
            "split": "train",
            "label": "Old_English_sheepdog",
            "reason": "not <an> image",
            "advice": "It cannot be read, and training leaves it out as well: repair or remove it (not <an> image).",
        }
    ]
    assert document["label_errors"][0]["path"] == "train/002.class/ccc & <b>.jpg"
    assert document["copies"][1]["photos"][1] == {"path": "test/000.class/bb.jpg", "split": "test", "label": "Beagle"}
    assert document["merges"][0]["interval"] == [0.37, 0.58]
    rows = list(csv.DictReader(io.StringIO((written.parent / "curation.csv").read_text(encoding="utf-8"))))
    assert [row["kind"] for row in rows] == [
        "label error",
        *["copies, one picture, two labels"] * 2,
        *["copies, across splits"] * 2,
        *["copies, within a split"] * 2,
        "classes to merge",
        "classes to look at",
        "unreadable",
    ]
    assert (rows[-1]["path"], rows[-1]["label"]) == ("train/001.class/broken.jpg", "Old_English_sheepdog")
    assert (rows[0]["label"], rows[0]["likely"], rows[0]["score"]) == ("<i>Pug</i>", "Old_English_sheepdog", "0.0100")


def test_an_accuracy_that_is_none_is_null(found: Curation, tmp_path: Path) -> None:
    unjudged = Curation(
        labels=LABELS,
        images={"train": 2},
        accuracy=float("nan"),
        not_judged=2,
        label_errors=(),
        copies=(),
        merges=(),
        root=tmp_path,
    )
    assert finds.as_document(unjudged)["accuracy"] is None
    assert "right, of images" not in page.render(unjudged)


def test_without_finds_the_root_is_that_of_all_images(tmp_path: Path) -> None:
    photos = [photo(tmp_path, split, 0, "a.jpg") for split in ("train", "test")]
    broken = Unreadable(Photo(tmp_path / "validation" / "000.class" / "b.jpg", "validation", 0), "empty")

    def judge(_groups: object) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[0.9, 0.1], [0.9, 0.1]], dtype=np.float32), np.array([True, True])

    nothing = finds.curate(photos, np.eye(2, dtype=np.float16), LABELS[:2], judge, unreadable=[broken])
    assert nothing is not None
    assert (nothing.root, nothing.images) == (tmp_path, {"train": 1, "test": 1})
    assert nothing.notes == ("1 of 3 images cannot be read and were not looked at; all are listed.",)
    assert (
        finds.curate(photos, np.eye(2, dtype=np.float16), LABELS[:2], judge, root=tmp_path.parent).root
        == tmp_path.parent
    )
