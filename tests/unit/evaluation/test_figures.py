"""Figures of rows that were counted by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from dogbreed.evaluation import figures
from dogbreed.evaluation.answers import Row, Run

RUN = Run("a", "the server", "/data", "2026-11-21T13:00:00+00:00", 2.0, 4, ("cat", "dog", "emu", "fox"))


def row(path: str, label: str, prediction: str, probability: float = 0.8, second: str = "emu") -> Row:
    top = ((prediction, probability), (second, 0.1))
    return Row(path, label, prediction, probability, top, log_loss=1.0, brier=0.5, seconds=0.1)


ROWS = [
    row("cat/1", "cat", "cat"),
    row("cat/2", "cat", "cat"),
    row("cat/3", "cat", "dog", second="cat"),
    row("dog/1", "dog", "dog"),
    row("dog/2", "dog", "fox"),
    replace(row("dog/3", "dog", "dog"), error="unreadable_image: no", prediction=""),
    replace(row("gnu/1", "gnu", "dog"), log_loss=math.nan, brier=math.nan),
]
ANSWERED = replace(RUN, unknown=("gnu",))


def test_only_answered_images_of_known_classes_are_judged() -> None:
    found = figures.evaluate(ANSWERED, ROWS)
    assert (found.images, found.failed, found.left_out) == (7, 1, 1)
    assert (found.top1.right, found.top1.count) == (3, 5)
    assert found.top1.value == pytest.approx(0.6)
    assert (found.top5.right, found.top5.count) == (4, 5)
    # Three of five: the Wilson interval.
    assert (round(found.top1.interval.low, 3), round(found.top1.interval.high, 3)) == (0.231, 0.882)
    assert found.confusion == {"cat": {"cat": 2, "dog": 1}, "dog": {"dog": 1, "fox": 1}}
    assert [(pair.true, pair.predicted, pair.count, pair.images) for pair in found.pairs] == [
        ("dog", "fox", 1, 2),
        ("cat", "dog", 1, 3),
    ]


def test_classes_that_were_met_are_scored_in_the_models_order() -> None:
    classes = figures.evaluate(ANSWERED, ROWS).classes
    assert list(classes) == ["cat", "dog", "fox"]
    assert (classes["cat"].precision, classes["dog"].precision, classes["fox"].precision) == (1, 0.5, 0)
    assert (classes["cat"].recall, classes["dog"].recall) == (pytest.approx(2 / 3), 0.5)
    assert math.isnan(classes["fox"].recall)


def test_sureness_and_speed_are_averages() -> None:
    found = figures.evaluate(ANSWERED, ROWS)
    assert found.confidence == pytest.approx(0.8)
    # All five answers lie in one bin: 80% sure, 60% right.
    assert found.calibration_error == pytest.approx(0.2)
    assert (found.log_loss, found.brier) == (1.0, 0.5)
    assert found.images_per_s == 3.0
    assert (found.latency_p50_s, found.latency_p99_s) == (0.1, 0.1)


def test_what_is_left_out_is_said() -> None:
    refused, unknown, missing = figures.evaluate(ANSWERED, ROWS).notes
    assert refused.startswith("1 image of 7 could not be answered")
    assert unknown.startswith("The model does not know the class gnu of the folder: the 1 image of it count")
    assert missing.startswith("The folder has no image of 2 classes (emu, fox) that the model knows")
    whole = replace(RUN, labels=("cat", "dog"))
    assert figures.evaluate(whole, [row("a", "cat", "cat"), row("b", "dog", "cat")]).notes == ()


def test_nothing_to_judge_is_an_error() -> None:
    with pytest.raises(ValueError, match="no image was answered"):
        figures.evaluate(ANSWERED, ROWS[5:])


def side(name: str, right: str) -> tuple[Run, list[Row]]:
    """Images 0 to 29 of cats; those in ``right`` were answered as such."""
    rows = [row(f"cat/{index}", "cat", "cat" if mark == "+" else "dog") for index, mark in enumerate(right)]
    return replace(RUN, name=name), rows


def test_a_clear_difference_is_significant() -> None:
    found = figures.compare(side("old", "+" * 20 + "-" * 10), side("new", "+" * 29 + "-"))
    assert (found.images, found.first_right, found.second_right) == (30, 20, 29)
    assert (found.test.only_first, found.test.only_second) == (0, 9)
    assert found.test.p_value == pytest.approx(2 / 2**9)
    assert found.significant
    assert found.sentence.startswith("new is significantly better than old: 96.7% against 66.7% on the same 30 images;")
    assert "(McNemar's test, exact, p = 0.0039)" in found.sentence
    turned = figures.compare(side("new", "+" * 29 + "-"), side("old", "+" * 20 + "-" * 10))
    assert turned.sentence.startswith("new is significantly better than old: 66.7% against 96.7%")


def test_equal_numbers_of_mistakes_on_other_images_are_no_difference() -> None:
    found = figures.compare(side("old", "++--" * 5), side("new", "--++" * 5))
    assert (found.test.only_first, found.test.only_second, found.test.p_value) == (10, 10, 1.0)
    assert not found.significant
    assert found.sentence.startswith("The difference between old and new is not significant")
    assert found.difference.low == pytest.approx(-found.difference.high)


def test_the_same_answers_are_said_to_be_the_same() -> None:
    found = figures.compare(side("old", "+-+"), side("new", "+-+"))
    assert found.sentence.startswith("old and new are right and wrong about the very same images: 66.7% against 66.7%")
    assert not found.significant


def test_images_that_one_side_lacks_take_no_part() -> None:
    old, rows = side("old", "++-")
    elsewhere = replace(RUN, name="new", data="/elsewhere")
    broken = [*rows[:2], replace(rows[2], error="refused"), row("cat/99", "cat", "cat")]
    found = figures.compare((old, rows), (elsewhere, broken))
    assert found.images == 2
    assert found.notes[0].startswith("2 images that only one of the two was judged on")
    assert found.notes[1].startswith("The folders were /data and /elsewhere")
    with pytest.raises(ValueError, match="no image in common"):
        figures.compare((old, rows), (elsewhere, broken[3:]))


def test_the_document_is_json_without_nan() -> None:
    one = figures.evaluate(ANSWERED, ROWS)
    compared = figures.compare((RUN, ROWS), (ANSWERED, ROWS))
    document = json.loads(json.dumps(figures.as_document(ANSWERED, one, compared), allow_nan=False))
    assert document["top1"]["right"] == 3
    assert document["classes"]["fox"]["recall"] is None
    assert document["classes"]["cat"]["recall_interval"]["high"] <= 1
    assert document["comparison"]["significant"] is False
    assert len(document["calibration"]["bins"]) == 15


def test_what_counts_as_known_is_told_apart_by_whether_the_model_knows_the_class() -> None:
    found = figures.evaluate(ANSWERED, ROWS)
    assert (found.known, found.others_known) == (None, None)
    flags = [True, True, False, True, True, None, False]
    judged = [replace(one, known=flag) for one, flag in zip(ROWS, flags, strict=True)]
    found = figures.evaluate(ANSWERED, judged)
    assert found.known == figures.Share(4, 5)
    assert found.others_known == figures.Share(0, 1)
    assert figures.as_document(ANSWERED, found)["known"]["value"] == pytest.approx(0.8)
