"""Bytes -> image -> tensor, the same for training, evaluation and serving.

`PreprocessSpec` travels with the model in its bundle, so that an endpoint cannot prepare images otherwise than the
job did. Pixels stay uint8 until they are on the device that computes: a sample is a quarter of the size of a float
one, and normalising a batch at once is quicker than one image at a time.

Legend: N batch, C = 3 channels (RGB), H W pixels, S = `PreprocessSpec.size_px`.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as ops

from dogbreed import jpeg

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Pillow decoders that may run; JPEG's opens MPO as well. Each further one is code that a hostile file can reach."""

MAX_PIXELS = 178_956_970
"""Larger images are refused before they are decoded: 512 MiB of RGB, twice the size at which Pillow warns."""

MAX_ASPECT_RATIO = 200
"""Images that are longer than this many times their width are refused: the shorter side is resized to that of the
network, and the longer with it. A line of 20,000 pixels, 60 kB, would become 3.9 GB."""

LARGE_PIXELS = 16_000_000
"""Larger images are few, and take from 100 MB on while they are decoded."""

MAX_SCANS = 100
"""JPEGs of more scans are refused; progressive photos have six to a dozen."""

MAX_SCANNED_PIXELS = 2_000_000_000
"""JPEGs of more pixels times scans are refused: a scan takes 1.5 ns a pixel, even one that says nothing in 95 bytes
(8000 x 8000, 2026-11-29). A dozen scans of the largest image are hardly more."""

# ImageNet's channel statistics for RGB in [0, 1], which every torchvision backbone was trained with
# (pytorch/vision, references/classification/presets.py).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# torchvision's evaluation presets resize to 256 and crop 224.
_RESIZE_OVER_CROP = 256 / 224

# Where torch resizes uint8 as it is. Elsewhere torchvision goes by way of float, which may round otherwise.
_RESIZES_BYTES = any(name in torch.backends.cpu.get_cpu_capability() for name in ("AVX2", "AVX512"))


# As Pillow names them.
_JPEGS = ("JPEG", "MPO")

# Of an image converted at once: 8 MiB of float64, or of RGBA twice.
_STRIP_PIXELS = 1024 * 1024


class CorruptImageError(ValueError):
    """The bytes are no image of an allowed format, truncated, of too many pixels or scans, or too long a strip."""


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """How an image becomes the input of a network.

    Attributes:
        size_px: side S of the square that the network sees.
        resize_px: the shorter side is resized to this before the centre is cropped.
        mean: per channel, for RGB in [0, 1].
        std: per channel, for RGB in [0, 1].
    """

    size_px: int
    resize_px: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @classmethod
    def for_size(cls, size_px: int) -> PreprocessSpec:
        """The evaluation preset of torchvision, scaled to another size."""
        return cls(size_px=size_px, resize_px=round(size_px * _RESIZE_OVER_CROP))

    def centre_view(self, image_CHW: Tensor) -> Tensor:
        """Shorter side to ``resize_px``, then the centre: uint8 [3, H, W] -> uint8 [3, S, S]."""
        resized = resize_shorter(image_CHW, self.resize_px)
        top, left = self._corner(*resized.shape[-2:])
        return resized[:, top : top + self.size_px, left : left + self.size_px]

    def centre_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """What `centre_view` shows of an image: left, top, width and height, as shares of the whole."""
        scaled_height, scaled_width = _scaled(height, width, self.resize_px)
        top, left = self._corner(scaled_height, scaled_width)
        return left / scaled_width, top / scaled_height, self.size_px / scaled_width, self.size_px / scaled_height

    def _corner(self, height: int, width: int) -> tuple[int, int]:
        """Top and left of the centre, rounded as torchvision's `center_crop` rounds."""
        return round((height - self.size_px) / 2), round((width - self.size_px) / 2)

    def normalise(self, images_NCHW: Tensor) -> Tensor:
        """uint8 in [0, 255] -> float32 with the channel statistics removed, on the tensor's own device."""
        device = images_NCHW.device
        mean = torch.tensor(self.mean, device=device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=device).view(1, 3, 1, 1)
        return images_NCHW.float().div_(255).sub_(mean).div_(std)


def resize_shorter(image_CHW: Tensor, shorter_px: int) -> Tensor:
    """Keeps the proportions: uint8 [3, H, W] -> uint8 [3, h, w] with min(h, w) = ``shorter_px``."""
    height, width = image_CHW.shape[-2:]
    return resize(image_CHW, _scaled(height, width, shorter_px))


def _scaled(height: int, width: int, shorter_px: int) -> tuple[int, int]:
    scale = shorter_px / min(height, width)
    return max(shorter_px, round(height * scale)), max(shorter_px, round(width * scale))


def resize(image_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bilinear resizing to (height, width), bit for bit that of `torchvision.transforms.v2`.

    An image that `decode` made is stored pixel by pixel. torch has a kernel for that order, but torchvision hands
    images over in a way in which torch does not recognise it, so that each is copied twice.
    """
    if tuple(image_CHW.shape[-2:]) == size:
        return image_CHW
    # A side of one pixel leaves the order in memory open, and the kernel that torch picks uncertain.
    if not _RESIZES_BYTES or 1 in (*size, *image_CHW.shape):
        return cast(Tensor, ops.resize(image_CHW, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True))
    pixels_1CHW = image_CHW.permute(1, 2, 0).contiguous().unsqueeze(0).permute(0, 3, 1, 2)
    return interpolate(pixels_1CHW, size, mode="bilinear", antialias=True)[0]


def decode(
    source: bytes | Path, *, max_pixels: int = MAX_PIXELS, admit: Callable[[int], object] | None = None
) -> Tensor:
    """Decodes one image, upright and in RGB.

    EXIF orientation is applied; grey, palette, CMYK and 16-bit images are converted; transparency is laid on white;
    of an animation the first frame counts.

    The header is read first, and what is too large refused by it; of JPEGs that may have several scans, these are
    counted. The pixels of grey and colour JPEGs are torchvision's, which has the same library underneath as Pillow and
    gives the same bytes in two thirds of the time; everything else, and what torchvision refuses, is Pillow's.

    Args:
        source: an image file, or the bytes of one.
        max_pixels: larger images are refused by their header alone.
        admit: is told the pixels of an image of more than `LARGE_PIXELS`, and returns when it may be decoded.

    Returns:
        uint8 [3, H, W], RGB.

    Raises:
        CorruptImageError: see the class.
        OSError: a file cannot be opened.
    """
    data = _read(source) if isinstance(source, Path) else source
    plain = jpeg.plain_header(data)
    if plain is not None:
        height, width, scans = plain
        _check_size(height, width, max_pixels)
        _check_scans(height, width, scans)
        if admit is not None and height * width > LARGE_PIXELS:
            admit(height * width)
            admit = None  # what torchvision refuses goes on to Pillow
        pixels_CHW = _decode_jpeg(data, height, width)
        if pixels_CHW is not None:
            return pixels_CHW
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.height, image.width, max_pixels)
            if image.format in _JPEGS:
                _check_scans(image.height, image.width, jpeg.scans(data))
            if admit is not None and image.width * image.height > LARGE_PIXELS:
                admit(image.width * image.height)
            # What torchvision has just refused it need not refuse once more.
            pixels_CHW = _decode_upright_jpeg(data, image) if plain is None else None
            if pixels_CHW is not None:
                return pixels_CHW
            ImageOps.exif_transpose(image, in_place=True)
            return _pixels(image)
    except CorruptImageError:
        raise
    except UnidentifiedImageError as error:  # its own text holds an address, another one each time
        raise CorruptImageError(f"not an image in one of the formats {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on hostile bytes
        raise CorruptImageError(str(error) or type(error).__name__) from error


def _read(file: Path) -> bytes:
    # Whoever opens a pipe waits for its writer, and a device may never end.
    if not stat.S_ISREG(file.stat().st_mode):
        raise CorruptImageError("not a file with content but a pipe, a device or a folder")
    return file.read_bytes()


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise CorruptImageError(f"{width}x{height} pixels are more than the allowed {max_pixels}")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise CorruptImageError(
            f"{width}x{height} pixels are too long a strip: one side may be {MAX_ASPECT_RATIO} times the other"
        )


def _check_scans(height: int, width: int, scans: int) -> None:
    if scans > MAX_SCANS or (scans > 1 and scans * width * height > MAX_SCANNED_PIXELS):
        allowed = min(MAX_SCANS, max(1, MAX_SCANNED_PIXELS // (width * height)))
        raise CorruptImageError(f"{scans} scans of {width}x{height} pixels are more than the allowed {allowed}")


def _decode_jpeg(data: bytes, height: int, width: int) -> Tensor | None:
    """The pixels of a grey or colour JPEG as they are stored; None when torchvision refuses it."""
    try:
        # Its own reading of EXIF is not Pillow's, which also looks into XMP.
        pixels_CHW = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError:
        return None
    return pixels_CHW if pixels_CHW.shape[-2:] == (height, width) else None


def _decode_upright_jpeg(data: bytes, header: Image.Image) -> Tensor | None:
    """The same, turned as the header says; None when it is something else, too."""
    if header.format not in _JPEGS or header.mode not in ("L", "RGB"):
        return None
    pixels_CHW = _decode_jpeg(data, header.height, header.width)
    turn = _UPRIGHT.get(header.getexif().get(ExifTags.Base.Orientation, 1))
    return pixels_CHW if pixels_CHW is None or turn is None else turn(pixels_CHW)


# Exif 2.32, tag 0x0112, for [C, H, W].
_UPRIGHT: Mapping[object, Callable[[Tensor], Tensor]] = {
    2: lambda image: image.flip(2),
    3: lambda image: image.flip(1, 2),
    4: lambda image: image.flip(1),
    5: lambda image: image.transpose(1, 2),
    6: lambda image: image.rot90(-1, (1, 2)),
    7: lambda image: image.rot90(2, (1, 2)).transpose(1, 2),
    8: lambda image: image.rot90(1, (1, 2)),
}


def _pixels(image: Image.Image) -> Tensor:
    """uint8 [3, H, W], RGB, stored pixel by pixel.

    By strips of rows: of a whole large image each step would be a copy of it more, at four bytes a pixel.
    """
    if image.mode.startswith("I") or image.mode == "F":
        rgb_HWC = np.repeat(_high_depth_to_grey(image)[:, :, None], 3, axis=2)
    else:
        rows = max(1, _STRIP_PIXELS // image.width)
        if rows >= image.height:
            rgb_HWC = np.array(_to_rgb(image))
        else:
            image.load()
            rgb_HWC = np.empty((image.height, image.width, 3), dtype=np.uint8)
            for top in range(0, image.height, rows):
                bottom = min(top + rows, image.height)
                rgb_HWC[top:bottom] = np.asarray(_to_rgb(image.crop((0, top, image.width, bottom))))
    return torch.from_numpy(rgb_HWC).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _high_depth_to_grey(image: Image.Image) -> NDArray[np.uint8]:
    """Grey of 16 or 32 bits to 8, [H, W]: Pillow's own conversion clips at 255, which turns such images white.

    By strips of rows, because float64 of a whole large image would take eight times the memory of its bytes.
    """
    grey = np.asarray(image)
    # Unlike min and max, these pass over what is not a number.
    lowest, highest = float(np.fmin.reduce(grey, axis=None)), float(np.fmax.reduce(grey, axis=None))
    scale = 1.0
    if image.mode == "F" and lowest >= 0 and highest <= 1:
        scale = 255.0
    elif highest > 255:
        scale = 1 / 257  # 65535 / 255: 16-bit files are stored over the full range
    small = np.empty(grey.shape, dtype=np.uint8)
    rows = max(1, _STRIP_PIXELS // grey.shape[1])
    for start in range(0, len(grey), rows):
        strip = grey[start : start + rows].astype(np.float64) * scale
        small[start : start + rows] = np.clip(np.rint(np.nan_to_num(strip)), 0, 255)
    return small
