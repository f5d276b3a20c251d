"""Encoded images -> scores, with the network and the preprocessing of one bundle.

Knows the bundle, the decoder and torch; nothing of requests, queues or when to load. Several threads may predict at
once: nothing is written after the constructor.

Legend: N batch, K classes, S image side.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dogbreed import preprocessing
from dogbreed.artifacts import Bundle
from dogbreed.errors import UnreadableImageError
from dogbreed.preprocessing import CorruptImageError
from dogbreed.serving.payload import Scores

_LOGGER = logging.getLogger(__name__)

_CHUNK = 16
"""Images that go through the network at once: more gain nothing on a CPU and cost memory."""


class Predictor:
    """A model ready to answer.

    Args:
        bundle: what to serve.
        device: where to compute; default the GPU if there is one.

    Raises:
        BundleError: the weights do not fit the network that the bundle names.
    """

    def __init__(self, bundle: Bundle, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._spec = bundle.preprocessing
        self._labels = bundle.labels.names
        self._model = bundle.build().to(self._device)
        _LOGGER.info("%s with %d classes on %s", bundle.backbone, len(self._labels), self._device)

    def predict(self, images: Sequence[bytes]) -> Scores:
        """Scores encoded images, in order.

        Raises:
            UnreadableImageError: one cannot be decoded; its position is named when there are several.
            ArithmeticError: the network answers with numbers that are not finite.
        """
        rows: list[list[float]] = []
        for start in range(0, len(images), _CHUNK):
            views = [
                self._view(image, place, len(images))
                for place, image in enumerate(images[start : start + _CHUNK], start)
            ]
            rows.extend(self._score(torch.stack(views)).tolist())
        return Scores(self._labels, rows)

    def self_test(self) -> None:
        """Predicts one drawn image and checks the shape of the answer.

        Raises:
            ArithmeticError: the network answers with numbers that are not finite, or with another number of classes.
        """
        file = io.BytesIO()
        Image.radial_gradient("L").convert("RGB").save(file, format="PNG")
        (row,) = self.predict([file.getvalue()]).log_probabilities
        if len(row) != len(self._labels):
            raise ArithmeticError(
                f"the network has {len(row)} outputs, but the bundle names {len(self._labels)} classes"
            )

    def _view(self, image: bytes, place: int, count: int) -> Tensor:
        """uint8 [3, S, S] on the CPU."""
        try:
            return self._spec.centre_view(preprocessing.decode(image))
        except CorruptImageError as error:
            which = "the image" if count == 1 else f"image {place} (counted from 0)"
            why = str(error)
            if isinstance(error.__cause__, UnidentifiedImageError):  # Pillow's text names a Python object
                why = f"it is none of {', '.join(preprocessing.FORMATS)}"
            raise UnreadableImageError(f"{which} cannot be decoded: {why}") from error

    @torch.inference_mode()
    def _score(self, images_NCHW: Tensor) -> Tensor:
        """uint8 [N, 3, S, S] on the CPU -> float32 [N, K], natural logarithms of the softmax, on the CPU."""
        logits_NK = self._model(self._spec.normalise(images_NCHW.to(self._device)))
        scores_NK: Tensor = logits_NK.float().log_softmax(dim=1).cpu()
        if not scores_NK.isfinite().all():
            raise ArithmeticError("the network answers with numbers that are not finite")
        return scores_NK
