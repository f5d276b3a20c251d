"""Training views by name: what the network sees of an image while it learns.

A view is a function of an image; it draws from torch's global generator, which the loader seeds per image and epoch.
"""

from __future__ import annotations

from typing import cast

from torchvision.transforms import v2

from dogbreed.backbones import Trainable
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training.data import View

# Share of the image's area that a random crop keeps at least. torchvision's recipes use 0.08, for a thousand times
# more images; on a few thousand photos such crops often miss the subject.
_SMALLEST_CROP = 0.35


def resolve(name: str, trainable: Trainable) -> str:
    """What ``auto`` stands for: random views of a frozen backbone's images measured worse than the centre alone."""
    if name != "auto":
        return name
    return {"head": "none", "last_stage": "flip", "all": "crop"}[trainable]


def stored_views(name: str, spec: PreprocessSpec, count: int) -> tuple[tuple[str, View], ...]:
    """The views whose outputs are stored when the frozen part runs once, with a name for each.

    Args:
        name: ``none``, the centre; ``flip``, the centre and its mirror image; ``crop``, ``count`` random crops.
        spec: the preprocessing that evaluation and serving use.
        count: number of random views.
    """
    centre = ("centre", spec.centre_view)
    if name == "none":
        return (centre,)
    if name == "flip":
        return (
            centre,
            ("mirrored", cast(View, v2.Compose([v2.Lambda(spec.centre_view), v2.RandomHorizontalFlip(1.0)]))),
        )
    return tuple((f"crop {number}", make_view("crop", spec, "all")) for number in range(count))


def make_view(name: str, spec: PreprocessSpec, trainable: Trainable) -> View:
    """The training view: uint8 [3, H, W] -> uint8 [3, S, S] with S = ``spec.size_px``.

    Args:
        name: ``none``, ``flip`` (centre view, mirrored half of the time), ``crop`` (random crop, mirrored half of the
            time), or ``auto``, see `resolve`.
        spec: the preprocessing that evaluation and serving use.
        trainable: what learns.
    """
    name = resolve(name, trainable)
    if name == "none":
        return spec.centre_view
    flip = v2.RandomHorizontalFlip()
    if name == "flip":
        return cast(View, v2.Compose([v2.Lambda(spec.centre_view), flip]))
    crop = v2.RandomResizedCrop(spec.size_px, scale=(_SMALLEST_CROP, 1.0), antialias=True)
    return cast(View, v2.Compose([crop, flip]))
