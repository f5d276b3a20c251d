from __future__ import annotations

import numpy as np
import pytest

from dogbreed.training import folds


def clusters(seed: int, images: int = 300, classes: int = 5, features: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Features that tell the class, and the class indices."""
    rng = np.random.default_rng(seed)
    indices = np.arange(images) % classes
    centres = np.random.default_rng(0).normal(0, 1, (classes, features))
    return (centres[indices] * 3 + rng.normal(0, 1, (images, features)) + 50).astype(np.float16), indices


def test_folds_are_even_within_each_class_and_keep_groups_together() -> None:
    indices = [0] * 23 + [1] * 50 + [2] * 2
    groups = [(0, 30), (1, 2, 3), (73, 74)]
    dealt = folds.deal(indices, groups, seed=3)
    for label in (0, 1):
        counts = np.bincount(dealt[np.array(indices) == label], minlength=folds.FOLDS)
        assert counts.max() - counts.min() <= 2
    assert all(len({int(dealt[position]) for position in group}) == 1 for group in groups)
    counts = np.bincount(dealt, minlength=folds.FOLDS)
    assert counts.max() - counts.min() <= 3
    assert folds.deal(indices, groups, seed=3).tolist() == dealt.tolist()
    assert folds.deal(indices, groups, seed=4).tolist() != dealt.tolist()


def test_no_head_vouches_for_a_label_that_it_has_learned_from() -> None:
    """Features of one image only: whoever has seen it knows its label, and nobody else can."""
    count = 60
    features = np.eye(count, dtype=np.float32)
    indices = np.random.default_rng(0).integers(0, 2, count)
    dealt = folds.deal(indices.tolist())
    everyone = np.ones(count, dtype=bool)
    found = folds.probabilities(features, indices, dealt, everyone, classes=2)
    assert found is not None
    own = found[np.arange(count), indices]
    assert own.mean() == pytest.approx(0.5, abs=0.1)


def test_images_that_no_head_learns_from_are_judged_by_all_of_them() -> None:
    features, indices = clusters(1)
    learning = np.arange(len(indices)) < 200
    dealt = np.full(len(indices), folds.NO_FOLD)
    dealt[learning] = folds.deal(indices[learning].tolist())
    found = folds.probabilities(features, indices, dealt, learning, classes=5)
    assert found is not None
    assert found.shape == (300, 5)
    assert found.sum(axis=1) == pytest.approx(np.ones(300), abs=1e-5)
    assert (found.argmax(axis=1) == indices)[learning].mean() > 0.95
    assert (found.argmax(axis=1) == indices)[~learning].mean() > 0.95
    wrong = indices.copy()
    wrong[~learning] = (indices[~learning] + 1) % 5
    again = folds.probabilities(features, wrong, dealt, learning, classes=5)
    assert again is not None
    assert np.array_equal(found, again), "their labels do not matter"


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_scale_of_features_does_not_matter(scale: float) -> None:
    features, indices = clusters(2)
    features = features.astype(np.float32) * scale
    features[:, 3] = 7 * scale  # one that tells nothing
    dealt = folds.deal(indices.tolist())
    found = folds.probabilities(features, indices, dealt, np.ones(300, dtype=bool), classes=5)
    assert found is not None
    assert (found.argmax(axis=1) == indices).mean() > 0.95


def test_a_stop_ends_it() -> None:
    features, indices = clusters(3)
    dealt = folds.deal(indices.tolist())
    everyone = np.ones(300, dtype=bool)
    assert folds.probabilities(features, indices, dealt, everyone, classes=5, stop_requested=lambda: True) is None
    assert folds.probabilities(features, indices, dealt, everyone, classes=5) is not None
