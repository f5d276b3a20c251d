"""Half precision may be used where validation images say so, and only there."""

import math
from dataclasses import asdict, replace

import pytest
import torch

from dogbreed.engines.agreement import Agreement, compare

GOOD = Agreement(images=400, changed=4, accuracy_reference=0.9, accuracy=0.8981, max_probability_change=0.05)


def test_what_is_compared():
    reference = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45]]).log()
    scores = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.49, 0.51]]).log()
    found = compare(reference, scores, torch.tensor([0, 0, 1, 1]))
    assert (found.images, found.changed, found.accuracy_reference, found.accuracy) == (4, 2, 0.75, 0.75)
    assert found.max_probability_change == pytest.approx(0.2)


def test_within_the_bound_there_is_no_objection():
    assert GOOD.objection() is None
    assert replace(GOOD, accuracy=0.95).objection() is None  # better is no loss


@pytest.mark.parametrize(
    ("changes", "objection"),
    [
        ({"images": 199, "changed": 0}, "only 199 validation images were compared, 200 are needed"),
        ({"changed": 5}, "it changed 5 of 400 validation answers, allowed is 1%"),
        ({"accuracy": 0.8975}, "it lost 0.25 points of validation accuracy, allowed are 0.2"),
        ({"max_probability_change": 0.139}, "it moved a probability by 13.9 points, allowed are 5"),
        ({"max_probability_change": math.nan}, "it moved a probability by nan points, allowed are 5"),
        ({"images": 32, "of_images": 400, "changed": 5}, "it changed 5 of 32 validation answers, allowed is 1%"),
    ],
)
def test_beyond_the_bound_the_objection_says_what_was_found(changes, objection):
    assert replace(GOOD, **changes).objection() == objection


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, False),
        ({"images": 32, "changed": 4, "of_images": 400}, False),  # the other 368 may be all the same
        ({"images": 32, "changed": 5, "of_images": 400}, True),
        ({"images": 32, "changed": 0, "of_images": 400, "max_probability_change": 0.06}, True),
        ({"max_probability_change": math.nan}, True),
        ({"accuracy": 0.5}, False),  # the rest may make it good
    ],
)
def test_it_is_refused_when_nothing_can_make_it_good(changes, refused):
    assert replace(GOOD, **changes).is_refused == refused


def test_it_is_read_as_it_is_written():
    assert Agreement.read(asdict(GOOD)) == GOOD
    early = replace(GOOD, images=32, of_images=400)
    assert Agreement.read(asdict(early)) == early
    of_before = asdict(GOOD)
    del of_before["of_images"]
    assert Agreement.read(of_before) == GOOD


@pytest.mark.parametrize("document", [{}, {**asdict(GOOD), "images": "many"}, [], None])
def test_something_else_is_not_read(document):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Agreement.read(document)


def test_in_words():
    assert str(GOOD) == ("4 of 400 answers changed, accuracy 0.8981 against 0.9000, probabilities moved by up to 0.050")
    assert str(replace(GOOD, images=32, of_images=400)).startswith("4 of 32 most doubtful of 400 answers changed, ")
    assert not math.isnan(GOOD.max_probability_change)
