"""Training views by name: what the network sees of an image while it learns.

A view is a function of an image; it draws from torch's global generator, which the loader seeds per image and epoch.
A name is one part or several joined by `+`, in any order: they are always applied in the order of the table in
`make_view`, all on uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from torch import Tensor, nn
from torchvision.transforms import v2

from dogbreed.backbones import Trainable
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training.crops import RandomCrop
from dogbreed.training.data import View

# Share of the image's area that a random crop keeps at least. torchvision's recipes use 0.08, for a thousand times
# more images; on a few thousand photos such crops often miss the subject.
_SMALLEST_CROP = 0.35
# Brightness, contrast and saturation change by up to this share. Hue stays: it tells classes apart (coats, petals),
# and turning it takes several times as long as the other three together.
_COLOUR = 0.4
# Begins the name of a view that is drawn; see `is_random`.
_RANDOM = "random"

# What follows the crop, in the order in which it is applied.
_PARTS: Mapping[str, Callable[[], nn.Module]] = {
    "flip": v2.RandomHorizontalFlip,
    "trivialaugment": v2.TrivialAugmentWide,
    "randaugment": v2.RandAugment,
    "colour": lambda: v2.ColorJitter(_COLOUR, _COLOUR, _COLOUR),
    "erase": lambda: v2.RandomErasing(p=0.25),
}


def resolve(name: str, trainable: Trainable) -> str:
    """What ``auto`` stands for: random views of a frozen backbone's images measured worse than the centre alone."""
    if name != "auto":
        return name
    return {"head": "none", "last_stage": "flip", "all": "crop"}[trainable]


def stored_views(
    name: str, spec: PreprocessSpec, count: int, crop_scale: float = _SMALLEST_CROP
) -> tuple[tuple[str, View], ...]:
    """The views whose outputs are stored when the frozen part runs once.

    Each has a name that says all that its pixels depend on but the image, the preprocessing and, where `is_random`,
    the seed.

    Args:
        name: ``none``, the centre; ``flip``, the centre and its mirror image; any other, ``count`` random views.
        spec: the preprocessing that evaluation and serving use.
        count: number of random views.
        crop_scale: share of the area that a random crop keeps at least, in (0, 1].
    """
    if name == "none":
        return (("centre", spec.centre_view),)
    if name == "flip":
        mirrored = v2.Compose([v2.Lambda(spec.centre_view), v2.RandomHorizontalFlip(1.0)])
        return (("centre", spec.centre_view), ("mirrored", cast(View, mirrored)))
    parts = _parts(name, spec, crop_scale)
    # Their representation holds every strength and probability, and is no other in another process.
    words = " ".join(repr(part) for part in parts)
    view = make_view(name, spec, "all", crop_scale)
    return tuple((f"{_RANDOM} {number}: {words}", view) for number in range(count))


def is_random(view: str) -> bool:
    """Whether a view that `stored_views` named is drawn, so that its pixels depend on a seed."""
    return view.startswith(_RANDOM)


def make_view(name: str, spec: PreprocessSpec, trainable: Trainable, crop_scale: float = _SMALLEST_CROP) -> View:
    """The training view: uint8 [3, H, W] -> uint8 [3, S, S] with S = ``spec.size_px``.

    | part | what | source |
    |---|---|---|
    | ``crop`` | a random crop, mirrored half of the time, in the place of the centre | Szegedy et al. 2015 |
    | ``flip`` | mirrored half of the time | |
    | ``trivialaugment`` | one of 14 operations at a random strength | Müller and Hutter 2021 |
    | ``randaugment`` | two of 14 operations at strength 9 of 30 | Cubuk et al. 2020 |
    | ``colour`` | brightness, contrast and saturation by up to 40% | |
    | ``erase`` | a quarter of the time, a box of up to a third of the area goes black | Zhong et al. 2020 |

    Args:
        name: ``none``; parts joined by ``+``; or ``auto``, see `resolve`.
        spec: the preprocessing that evaluation and serving use.
        trainable: what learns.
        crop_scale: share of the area that a random crop keeps at least, in (0, 1].
    """
    name = resolve(name, trainable)
    if name == "none":
        return spec.centre_view
    parts = _parts(name, spec, crop_scale)
    start = [] if "crop" in name.split("+") else [v2.Lambda(spec.centre_view)]
    # On its own, so that the loader can see that a crop may be handed its generator.
    return cast(View, parts[0] if not start and len(parts) == 1 else v2.Compose([*start, *parts]))


def _parts(name: str, spec: PreprocessSpec, crop_scale: float) -> list[Callable[[Tensor], Tensor]]:
    """What comes after the centre view, or instead of it."""
    given = set(name.split("+"))
    crop: list[Callable[[Tensor], Tensor]] = []
    if "crop" in given:
        crop = [RandomCrop(spec.size_px, crop_scale)]
        given -= {"flip"}  # a crop is mirrored as it is taken
    return crop + [make() for part, make in _PARTS.items() if part in given]
