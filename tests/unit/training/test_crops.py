from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as ops

from dogbreed.training.crops import RandomCrop, draw_box


def numbers(seed: int) -> list[float]:
    generator = random.Random(seed)
    return [generator.random() for _ in range(23)]


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.05, 1.0), st.integers(0, 2**32))
def test_a_box_is_inside_the_image(height: int, width: int, smallest: float, seed: int) -> None:
    top, left, crop_height, crop_width = draw_box(height, width, smallest, numbers(seed))
    assert top >= 0
    assert left >= 0
    assert 1 <= crop_height <= height - top
    assert 1 <= crop_width <= width - left


def test_areas_and_proportions_are_those_that_are_asked_for() -> None:
    boxes = [draw_box(400, 400, 0.35, numbers(seed)) for seed in range(2000)]
    areas = [height * width / 400**2 for _, _, height, width in boxes]
    ratios = [width / height for _, _, height, width in boxes]
    assert 0.34 < min(areas) < 0.37
    assert max(areas) > 0.95
    assert 0.74 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.35
    assert sum(areas) / len(areas) == pytest.approx(0.64, abs=0.04)
    assert {top == 0 for top, _, _, _ in boxes} == {True, False}


def test_what_never_fits_is_cropped_in_the_centre() -> None:
    assert draw_box(10, 1000, 1.0, numbers(0)) == (0, 493, 10, 13)
    assert draw_box(1000, 10, 1.0, numbers(0)) == (493, 0, 13, 10)


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (224, 224), (20, 30)])
def test_the_pixels_of_a_crop_are_torchvisions(shape: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8).permute(2, 0, 1)
    mirrored = set()
    for seed in range(8):
        found = RandomCrop(64, smallest=0.35).seeded(image, torch.Generator().manual_seed(seed))
        drawn = torch.rand(23, generator=torch.Generator().manual_seed(seed)).tolist()
        expected = ops.resized_crop(image, *draw_box(*shape, 0.35, drawn), [64, 64], antialias=True)
        mirrored.add(drawn[-1] < 0.5)
        assert torch.equal(found, ops.horizontal_flip(expected) if drawn[-1] < 0.5 else expected)
    assert mirrored == {True, False}


def test_without_a_generator_it_draws_from_the_global_one() -> None:
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)
    crop = RandomCrop(16, smallest=0.35)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        found = crop(image)
    assert torch.equal(found, crop.seeded(image, torch.Generator().manual_seed(5)))
