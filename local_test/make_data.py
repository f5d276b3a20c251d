"""Draws a small photo-like data set, so that everything can be tried without downloading one.

    python local_test/make_data.py build/drawn

One folder per class below train, valid and test; a class is a shape or a texture (circle, stripes, star, ...) with a
typical but not unique colour, somewhere on a noisy, blurred gradient, at any scale and angle. A small network learns it
in a minute, and colour alone does not give it away. The same options and seed draw the same pixels.

Knows Pillow and numpy, and nothing of the package.
"""

from __future__ import annotations

import argparse
import colorsys
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from tqdm import tqdm

MARKER_FILE = ".drawn.json"
"""Stands in the output folder and tells with which options it was drawn, and whether drawing was finished."""

_JPEG_QUALITY = 88
# Width over height. Real photos are seldom square, and preprocessing has to crop.
_ASPECTS = (1.0, 1.0, 4 / 3, 3 / 2, 3 / 4, 2 / 3)

RGB = tuple[int, int, int]
Point = tuple[float, float]


def make(
    out: Path,
    *,
    classes: int = 6,
    train: int = 40,
    valid: int = 12,
    test: int = 12,
    size: int = 96,
    seed: int = 0,
) -> bool:
    """Draws a data set of ``classes`` folders below ``out``/train, valid and test.

    Args:
        out: output folder; created, or empty, or left unfinished by an earlier call with the same options.
        classes: how many of `SHAPES`, from the first.
        train: images per class in train.
        valid: images per class in valid.
        test: images per class in test.
        size: shorter side of the images, in pixels.
        seed: of everything random. An image depends on it and on its own place, not on how many others there are.

    Returns:
        False when ``out`` already holds this very data set and nothing was drawn.

    Raises:
        FileExistsError: ``out`` holds something else.
    """
    counts = {"train": train, "valid": valid, "test": test}
    options = {"classes": classes, **counts, "size": size, "seed": seed}
    marker = out / MARKER_FILE
    found = _read_marker(marker)
    if found == {"options": options, "finished": True}:
        return False
    if found.get("options") != options and out.exists() and (not out.is_dir() or any(out.iterdir())):
        reason = "is drawn with other options" if found else "is not an empty folder"
        raise FileExistsError(f"{out} {reason}; delete it or name another folder")
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({"options": options, "finished": False}))
    places = [
        (part, split, index, number)
        for part, (split, count) in enumerate(counts.items())
        for index in range(classes)
        for number in range(count)
    ]
    # disable=None: no bar where nobody watches, as in a log file.
    for part, split, index, number in tqdm(places, desc="drawing", unit="image", disable=None):
        shape = list(SHAPES)[index]
        folder = out / split / f"{index + 1:03d}.{shape.capitalize()}"
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, part, index, number])
        draw(shape, rng, size).save(folder / f"{shape}_{number:04d}.jpg", quality=_JPEG_QUALITY)
    marker.write_text(json.dumps({"options": options, "finished": True}))
    return True


def draw(shape: str, rng: np.random.Generator, size: int) -> Image.Image:
    """Draws one image of a class.

    Args:
        shape: one of `SHAPES`.
        rng: decides everything else.
        size: shorter side in pixels.

    Returns:
        RGB, square, portrait or landscape.
    """
    aspect = float(rng.choice(_ASPECTS))
    width, height = max(size, round(size * aspect)), max(size, round(size / aspect))
    background = _background(rng, width, height)
    mask = _mask(shape, rng, width, height)
    hue = list(SHAPES).index(shape) / len(SHAPES)
    paint = _gradient(rng, width, height, *(_colour(rng, hue, spread=0.07) for _ in range(2)))
    image = Image.composite(paint, background, mask)
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.9)) * size / 96))
    pixels = np.asarray(image, dtype=np.float64) + rng.normal(0, rng.uniform(3, 12), (height, width, 3))
    return Image.fromarray(_to_uint8(pixels))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0 when the data set is there, 1 when the folder cannot be used."""
    options = _parser().parse_args(arguments)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    try:
        drawn = make(options.out, **settings)
    except OSError as error:
        print(f"make_data: {error}", file=sys.stderr)
        return 1
    images = options.classes * (options.train + options.valid + options.test)
    how = "drew" if drawn else "already holds, drawn with the same options,"
    print(f"{options.out}: {how} {images} images of {options.classes} classes")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make_data.py",
        description="Draw a small photo-like data set: OUT/train, OUT/valid and OUT/test, one folder per class.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to draw into; new or empty")
    parser.add_argument("--classes", type=_whole(2, len(SHAPES)), default=6, metavar="N", help=f"2 to {len(SHAPES)}")
    parser.add_argument("--train", type=_whole(1, 100_000), default=40, metavar="N", help="training images per class")
    parser.add_argument("--valid", type=_whole(1, 100_000), default=12, metavar="N", help="validation images per class")
    parser.add_argument("--test", type=_whole(1, 100_000), default=12, metavar="N", help="test images per class")
    parser.add_argument("--size", type=_whole(16, 4096), default=96, metavar="PX", help="shorter side in pixels")
    parser.add_argument("--seed", type=_whole(0, 2**31 - 1), default=0, metavar="N", help="seed of everything random")
    return parser


def _whole(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return convert


def _read_marker(file: Path) -> dict[str, object]:
    """What the marker says; empty when there is none that this program wrote."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A gradient of two dull colours with out-of-focus blobs."""
    image = _gradient(rng, width, height, *(_colour(rng, float(rng.random()), saturation=0.4) for _ in range(2)))
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    blobs = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return Image.blend(image, blobs, float(rng.uniform(0.1, 0.3)))


def _colour(rng: np.random.Generator, hue: float, *, spread: float = 0.0, saturation: float = 1.0) -> RGB:
    """A colour near ``hue`` in [0, 1), of random brightness."""
    red, green, blue = colorsys.hsv_to_rgb(
        (hue + float(rng.normal(0, spread))) % 1,
        saturation * float(rng.uniform(0.45, 0.95)),
        float(rng.uniform(0.4, 1)),
    )
    return round(red * 255), round(green * 255), round(blue * 255)


def _gradient(rng: np.random.Generator, width: int, height: int, start: RGB, end: RGB) -> Image.Image:
    """From one colour to another, in a random direction."""
    angle = float(rng.uniform(0, 2 * math.pi))
    y, x = np.mgrid[0:height, 0:width]
    along = np.cos(angle) * x / width + np.sin(angle) * y / height
    share = ((along - along.min()) / max(float(np.ptp(along)), 1e-9))[..., None]
    return Image.fromarray(_to_uint8(np.array(start) * (1 - share) + np.array(end) * share))


def _mask(shape: str, rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """The shape in white on black, turned, scaled and put somewhere."""
    shorter = min(width, height)
    side = round(shorter * float(rng.uniform(0.55, 0.9)))
    # A margin for the corners, which turn beyond the square.
    canvas = Image.new("L", (round(side * 1.5), round(side * 1.5)))
    stencil = Image.new("L", (side, side))
    SHAPES[shape](ImageDraw.Draw(stencil), side)
    canvas.paste(stencil, (round(side * 0.25), round(side * 0.25)))
    turned = canvas.rotate(float(rng.uniform(0, 360)), Image.Resampling.BICUBIC)
    mask = Image.new("L", (width, height))
    # Inside the central square, give or take: what a centre crop would remove cannot be learnt.
    left = (width - shorter) / 2 + rng.uniform(-0.05, 1.05) * (shorter - side) - side * 0.25
    top = (height - shorter) / 2 + rng.uniform(-0.05, 1.05) * (shorter - side) - side * 0.25
    mask.paste(turned, (round(left), round(top)))
    return ImageChops.multiply(mask, Image.new("L", mask.size, round(float(rng.uniform(200, 255)))))


def _to_uint8(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _polygon(points: Sequence[Point]) -> Callable[[ImageDraw.ImageDraw, int], None]:
    """A shape with corners, given in units of its side."""

    def paint(brush: ImageDraw.ImageDraw, side: int) -> None:
        brush.polygon([(x * side, y * side) for x, y in points], fill=255)

    return paint


def _circle(brush: ImageDraw.ImageDraw, side: int) -> None:
    brush.ellipse((0, 0, side - 1, side - 1), fill=255)


def _ring(brush: ImageDraw.ImageDraw, side: int) -> None:
    brush.ellipse((0, 0, side - 1, side - 1), outline=255, width=max(1, side // 6))


def _crescent(brush: ImageDraw.ImageDraw, side: int) -> None:
    brush.ellipse((0, 0, side - 1, side - 1), fill=255)
    brush.ellipse((side * 0.35, 0, side * 1.35, side - 1), fill=0)


def _stripes(brush: ImageDraw.ImageDraw, side: int) -> None:
    for left in (0.0, 0.4, 0.8):
        brush.rectangle((left * side, 0, (left + 0.2) * side - 1, side - 1), fill=255)


def _checks(brush: ImageDraw.ImageDraw, side: int) -> None:
    for row in range(4):
        for column in range(row % 2, 4, 2):
            left, top = column * side / 4, row * side / 4
            brush.rectangle((left, top, left + side / 4 - 1, top + side / 4 - 1), fill=255)


def _dots(brush: ImageDraw.ImageDraw, side: int) -> None:
    for row in range(3):
        for column in range(3):
            left, top = column * side * 0.36, row * side * 0.36
            brush.ellipse((left, top, left + side * 0.26, top + side * 0.26), fill=255)


def _star_points() -> list[Point]:
    """Five spikes, corners in turn on the outer and the inner circle."""
    corners = []
    for corner in range(10):
        radius, angle = (0.5, 0.2)[corner % 2], math.pi * corner / 5
        corners.append((0.5 + radius * math.sin(angle), 0.5 - radius * math.cos(angle)))
    return corners


_THIRD, _TWO_THIRDS = 0.34, 0.66

SHAPES: Mapping[str, Callable[[ImageDraw.ImageDraw, int], None]] = {
    "circle": _circle,
    "square": _polygon([(0, 0), (1, 0), (1, 1), (0, 1)]),
    "triangle": _polygon([(0.5, 0), (1, 0.9), (0, 0.9)]),
    "stripes": _stripes,
    "checks": _checks,
    "star": _polygon(_star_points()),
    "ring": _ring,
    "cross": _polygon(
        [
            (_THIRD, 0),
            (_TWO_THIRDS, 0),
            (_TWO_THIRDS, _THIRD),
            (1, _THIRD),
            (1, _TWO_THIRDS),
            (_TWO_THIRDS, _TWO_THIRDS),
            (_TWO_THIRDS, 1),
            (_THIRD, 1),
            (_THIRD, _TWO_THIRDS),
            (0, _TWO_THIRDS),
            (0, _THIRD),
            (_THIRD, _THIRD),
        ]
    ),
    "dots": _dots,
    "crescent": _crescent,
}
"""Class name -> how it is painted in white on a square of a side in pixels. The order is that of the classes."""


if __name__ == "__main__":
    sys.exit(main())
