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


def make_view(name: str, spec: PreprocessSpec, trainable: Trainable) -> View:
    """The training view: uint8 [3, H, W] -> uint8 [3, S, S] with S = ``spec.size_px``.

    Args:
        name: ``none``, ``flip`` (centre view, mirrored half of the time), ``crop`` (random crop, mirrored half of the
            time), or ``auto``: ``none`` for ``trainable="head"``, where random views measured worse than the centre
            one, else ``crop``.
        spec: the preprocessing that evaluation and serving use.
        trainable: what learns.
    """
    if name == "auto":
        name = "none" if trainable == "head" else "crop"
    if name == "none":
        return spec.centre_view
    flip = v2.RandomHorizontalFlip()
    if name == "flip":
        return cast(View, v2.Compose([v2.Lambda(spec.centre_view), flip]))
    crop = v2.RandomResizedCrop(spec.size_px, scale=(_SMALLEST_CROP, 1.0), antialias=True)
    return cast(View, v2.Compose([crop, flip]))
