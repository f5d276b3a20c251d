"""The photos that a model is most sure about and wrong, as thumbnails that a page can hold."""

from __future__ import annotations

import base64
import io
import logging
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

_SIDE_PX = 160


@dataclass(frozen=True, slots=True)
class WrongPhoto:
    """A photo with a wrong answer.

    Attributes:
        name: of the file, with its class folder.
        true: its class.
        predicted: the answer.
        confidence: probability of the answer, in [0, 1].
        thumbnail: JPEG, base64; empty when the file could not be read.
    """

    name: str
    true: str
    predicted: str
    confidence: float
    thumbnail: str


def wrong_photo(path: Path, *, true: str, predicted: str, confidence: float) -> WrongPhoto:
    """Makes the thumbnail; a photo that cannot be read any more has none."""
    return WrongPhoto(f"{path.parent.name}/{path.name}", true, predicted, confidence, thumbnail(path))


def thumbnail(path: Path) -> str:
    """A square JPEG of a photo, base64; empty when it cannot be read."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * _SIDE_PX, 2 * _SIDE_PX))
            small = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (_SIDE_PX, _SIDE_PX))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=78)
        return base64.b64encode(buffer.getvalue()).decode()
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        logger.debug("no thumbnail of %s: %s", path, error)
        return ""
