"""Confident learning, against what cleanlab 2.9.0 finds and against labels that were changed on purpose."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dogbreed.curation import noise


def made(seed: int, images: int = 60, changed: int = 6, sure: float = 2.5) -> tuple[NDArray, NDArray, NDArray]:
    """Probabilities of a good model, given labels, and the positions of those that were changed."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 4, images)
    given = true.copy()
    flipped = rng.permutation(images)[:changed]
    given[flipped] = (true[flipped] + 1 + rng.integers(0, 3, changed)) % 4
    logits = rng.normal(0, 1, (images, 4))
    logits[np.arange(images), true] += sure
    shares = np.exp(logits)
    shares /= shares.sum(1, keepdims=True)
    return shares.round(4) / shares.round(4).sum(1, keepdims=True), given, flipped


# cleanlab.count.compute_confident_joint(calibrate=False), and
# cleanlab.filter.find_label_issues(filter_by="low_self_confidence", return_indices_ranked_by="self_confidence").
@pytest.mark.parametrize(
    ("seed", "joint", "suspects"),
    [
        (1, [[9, 0, 1, 0], [1, 13, 0, 1], [0, 0, 5, 1], [0, 1, 0, 11]], [8, 12, 16, 44, 49]),
        (2, [[9, 1, 0, 1], [0, 11, 1, 1], [0, 0, 7, 0], [0, 0, 0, 6]], [17, 34, 42, 51]),
        (5, [[12, 0, 0, 0], [1, 8, 0, 0], [0, 0, 9, 1], [0, 1, 1, 10]], [17, 58, 4, 48]),
    ],
)
def test_it_finds_what_cleanlab_finds(seed: int, joint: list[list[int]], suspects: list[int]) -> None:
    probabilities, given, _ = made(seed)
    found = noise.find(probabilities, given)
    assert found.joint.tolist() == joint
    assert found.suspects.tolist() == suspects


def test_thresholds_are_the_mean_self_confidence_of_a_class() -> None:
    probabilities = np.array([[0.9, 0.1], [0.5, 0.5], [0.3, 0.7]])
    assert noise.thresholds(probabilities, np.array([0, 0, 1])).tolist() == pytest.approx([0.7, 0.7])
    found = noise.thresholds(probabilities, np.array([0, 0, 0]))
    assert found[0] == pytest.approx(1.7 / 3)
    assert np.isinf(found[1]), "a class without images is nobody's likely class"


def test_an_image_counts_for_the_greatest_of_the_classes_whose_threshold_it_reaches() -> None:
    """The last is likeliest of the first class, but does not reach its high threshold."""
    probabilities = np.array([[0.9, 0.05, 0.05], [0.1, 0.3, 0.6], [0.1, 0.3, 0.6], [0.45, 0.4, 0.15]])
    found = noise.find(probabilities, np.array([0, 2, 2, 1]))
    assert found.joint.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 2]]
    assert found.suspects.tolist() == []


def test_wrong_labels_are_found_with_the_right_ones() -> None:
    probabilities, given, flipped = made(7, images=2000, changed=100, sure=5)
    found = noise.find(probabilities, given)
    hits = set(found.suspects.tolist()) & set(flipped.tolist())
    assert len(hits) / len(flipped) > 0.7
    assert len(hits) / len(found.suspects) > 0.7
    confidence = probabilities[found.suspects, given[found.suspects]].tolist()
    assert confidence == sorted(confidence)
    first = found.suspects[:30]
    assert np.isin(first, flipped).mean() > 0.9, "the most suspicious come first"
    right = probabilities[found.suspects].argmax(axis=1)
    assert found.likely.tolist() == right.tolist()


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        noise.find(np.array([[np.nan, 1.0]]), np.array([0]))
