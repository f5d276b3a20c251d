"""Random crops, as `torchvision.transforms.v2.RandomResizedCrop` takes them, in about half of its time.

The pixels of a given crop are the same, bit for bit. What is saved is the way there: all numbers are drawn at once, and
the crop goes into the resizing in the order of its pixels in memory, mirrored or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dogbreed.preprocessing import resize

_TRIES = 10
_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True, slots=True)
class RandomCrop:
    """A view: a part of the image of random area and proportions, resized to a square, mirrored half of the time.

    Attributes:
        size_px: side S of the square.
        smallest: share of the image's area that is kept at least, in (0, 1].
    """

    size_px: int
    smallest: float

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """Makes uint8 [3, S, S] of uint8 [3, H, W]; draws from torch's global generator."""
        return self.seeded(image_CHW, torch.default_generator)

    def seeded(self, image_CHW: Tensor, generator: torch.Generator) -> Tensor:
        """See `data.SeededView`."""
        height, width = image_CHW.shape[-2:]
        numbers = torch.rand(2 * _TRIES + 3, generator=generator).tolist()
        top, left, crop_height, crop_width = draw_box(height, width, self.smallest, numbers)
        crop = image_CHW[:, top : top + crop_height, left : left + crop_width]
        resized = resize(crop, (self.size_px, self.size_px))
        return resized.flip(2) if numbers[-1] < 0.5 else resized


def draw_box(height: int, width: int, smallest: float, numbers: list[float]) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop, as Szegedy et al. (2014) take it.

    Its area is even over [``smallest``, 1] of the image's, its proportions over 3:4 to 4:3 on a logarithmic scale. What
    does not fit the image is drawn again; after ten times it is the largest crop in the centre that is allowed.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        smallest: share of the area.
        numbers: at least 22, even over [0, 1).
    """
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for attempt in range(_TRIES):
        area = height * width * (smallest + (1 - smallest) * numbers[2 * attempt])
        ratio = math.exp(low + (high - low) * numbers[2 * attempt + 1])
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            down, right = numbers[2 * _TRIES : 2 * _TRIES + 2]
            return (
                int((height - crop_height + 1) * down),
                int((width - crop_width + 1) * right),
                crop_height,
                crop_width,
            )
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    crop_width, crop_height = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
