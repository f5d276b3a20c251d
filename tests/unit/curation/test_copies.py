"""Copies of drawn images, changed as copies are, among images that are none."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import numpy as np
import pytest
from local_test import make_data
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from dogbreed.curation import copies

SHAPES = tuple(make_data.SHAPES)


@functools.cache
def drawn(seed: int) -> Image.Image:
    return make_data.draw(SHAPES[seed % len(SHAPES)], np.random.default_rng(seed), 128)


def cropped(image: Image.Image, share: float) -> Image.Image:
    width, height = int(image.width * share), int(image.height * share)
    left, top = (image.width - width) // 3, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def stored(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half as large": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((image.width * 3 // 2, image.height * 3 // 2), Image.Resampling.BICUBIC),
    "stored again": lambda image: stored(image, 40),
    "mirrored": ImageOps.mirror,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "grey": lambda image: image.convert("L"),
    "cropped to 95%": lambda image: cropped(image, 0.95),
    "cropped to 80%": lambda image: cropped(image, 0.8),
    "cropped to 70%": lambda image: cropped(image, 0.7),
}


@pytest.fixture(scope="module")
def originals() -> dict[int, NDArray[np.uint8]]:
    return {seed: copies.thumbnail(drawn(seed)) for seed in range(24)}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found(change: str, originals: dict[int, NDArray[np.uint8]]) -> None:
    changed = {100 + seed: copies.thumbnail(CHANGES[change](drawn(seed))) for seed in originals}
    found = copies.compare([(seed, 100 + seed) for seed in originals], originals | changed)
    assert len(found) >= 23
    assert all(copies.ALIKE <= value <= 1 for _, _, value in found)


def test_images_of_one_class_are_no_copies(originals: dict[int, NDArray[np.uint8]]) -> None:
    pairs = [(one, other) for one in originals for other in originals if one < other]
    assert copies.compare(pairs, originals) == []


def test_flat_pictures_are_like_nothing() -> None:
    flat = {number: copies.thumbnail(Image.new("RGB", (90, 60), (number, 90, 90))) for number in range(3)}
    assert copies.compare([(0, 1), (1, 2)], flat) == []


def test_a_pair_without_a_thumbnail_is_left_out(originals: dict[int, NDArray[np.uint8]]) -> None:
    assert copies.compare([(0, 1000)], originals | {1: originals[0]}) == []
    assert [pair[:2] for pair in copies.compare([(0, 1), (0, 1000)], originals | {1: originals[0]})] == [(0, 1)]


def test_candidates_are_the_nearest_in_direction() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2500, 64)).astype(np.float16)
    features[2400] = 3 * features[7] + rng.normal(0, 0.02, 64)
    features[1200] = features[1199]
    features[5] = 0
    found = copies.candidates(features)
    assert (7, 2400) in found
    assert (1199, 1200) in found
    assert len(found) < 100, "what is near by chance is no candidate"
    assert not any(5 in pair for pair in found)
    assert copies.candidates(features[:1]) == []


def test_each_image_has_few_candidates_however_alike_all_are() -> None:
    features = np.ones((300, 8)) + np.random.default_rng(0).normal(0, 0.001, (300, 8))
    assert len(copies.candidates(features)) <= 300 * 5


def test_pairs_that_share_an_image_are_one_group() -> None:
    found = copies.group([(1, 2, 0.95), (5, 9, 0.99), (2, 4, 0.92), (4, 1, 0.97), (9, 7, 0.91)])
    assert [one.members for one in found] == [(1, 2, 4), (5, 7, 9)]
    assert [one.similarity for one in found] == [0.95, 0.91]
