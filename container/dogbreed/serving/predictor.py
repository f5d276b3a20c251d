"""Encoded images -> scores, with the preprocessing of one bundle and an engine that holds its network.

Knows the bundle, the decoder and the engine's interface; nothing of requests, queues or when to load. Several threads
may predict at once; what waits for the engine meanwhile goes through it together.

Legend: N batch, K classes, S image side.
"""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from dogbreed import calibration, preprocessing
from dogbreed.artifacts import Bundle
from dogbreed.engines.engine import Engine
from dogbreed.errors import NoHeatMapError, UnreadableImageError
from dogbreed.preprocessing import CorruptImageError
from dogbreed.serving import payload
from dogbreed.serving.admission import Budget
from dogbreed.serving.batching import Batcher
from dogbreed.serving.deadline import Check, unlimited
from dogbreed.serving.heatmap import HeatMaps, NoMapError
from dogbreed.serving.metrics import StageObserver
from dogbreed.serving.payload import HeatMap, Scores
from dogbreed.serving.sharing import Helpers

# Of large images (`preprocessing.LARGE_PIXELS`) side by side: two of the largest that an endpoint takes by default.
_LARGE_PIXELS_AT_ONCE = 128_000_000


class Predictor:
    """A model ready to answer.

    Args:
        bundle: whose labels and preprocessing the answers have.
        engine: computes the scores of the bundle's network.
        observer: is told how long decoding and the network took.
        max_pixels: larger images are refused before they are decoded.
        lanes: calls that the engine is given side by side.
        helpers: threads that share the images of a request with the one that it has.
        network: builds the bundle's network once more, when the first heat map is asked for; None offers none. Raises
            `NoMapError`.
        trim: gives free memory back to the system; called after a large image.

    Attributes:
        concurrent: requests that it pays to let in at once.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        *,
        observer: StageObserver | None = None,
        max_pixels: int = preprocessing.MAX_PIXELS,
        lanes: int = 1,
        helpers: int = 0,
        network: Callable[[], nn.Module] | None = None,
        trim: Callable[[], None] = lambda: None,
    ) -> None:
        self._observer = observer
        self._max_pixels = max_pixels
        self._trim = trim
        self._large = Budget(_LARGE_PIXELS_AT_ONCE)
        self._spec = bundle.preprocessing
        self._labels = bundle.labels.names
        self._temperature = bundle.temperature
        self._familiarity = bundle.familiarity
        self._engine = engine
        self.score = Batcher(self._score, cap=engine.batch, lanes=lanes)
        self._helpers = Helpers(helpers)
        self._network = network
        self._heat_maps: HeatMaps | None = None
        self._building = threading.Lock()
        self.concurrent = lanes * engine.batch if engine.gathers else lanes

    def predict(self, images: Sequence[bytes], check: Check = unlimited) -> Scores:
        """Scores encoded images, in order.

        Args:
            images: of one request.
            check: asked before each image and before each call of the engine; what it raises ends the request.

        Raises:
            UnreadableImageError: one cannot be decoded; its position is named when there are several.
            ArithmeticError: the network answers with numbers that are not finite.
        """
        # Where the engine is quicker with several at once and there are few, every thread gets some nevertheless; what
        # they have decoded at about the same time goes through it together.
        size = max(1, min(self._engine.batch, math.ceil(len(images) / (1 + self._helpers.count))))
        places = range(len(images))
        groups = [places[start : start + size] for start in places[::size]]
        rows = list(chain.from_iterable(self._helpers.map(partial(self._predict, images, check), groups)))
        return Scores(
            self._labels,
            [row for row, _ in rows],
            familiarity=[familiarity for _, familiarity in rows],
            known_from=self._familiarity.threshold if self._familiarity else None,
        )

    def _predict(self, images: Sequence[bytes], check: Check, places: Sequence[int]) -> list[tuple[list[float], float]]:
        """Some of the images: log-probabilities and familiarity of each."""
        began_s = time.perf_counter()
        views = []
        for place in places:
            check()
            views.append(self.view(images[place], place, len(images)))
        decoded_s = time.perf_counter()
        check()
        rows = self.score(views)
        if self._observer is not None:
            self._observer.decoded(len(views), decoded_s - began_s)
            self._observer.computed(len(views), time.perf_counter() - decoded_s)
        return rows

    def explain(self, image: bytes, check: Check = unlimited) -> Scores:
        """Scores one encoded image, and tells where the network looked for its best class.

        The answer is the engine's; the map is of the same network in float32 on the CPU.

        Args:
            image: the only one of a request.
            check: as for `predict`; asked before the map too.

        Raises:
            NoHeatMapError: there are no heat maps of this model, or in this installation.
            UnreadableImageError, ArithmeticError: as `predict`.
        """
        scores = self.predict([image], check)
        check()
        maps = self._maps()
        check()
        with ExitStack() as held:
            whole = self._decode(image, 0, 1, held)
            view, (height, width) = self._spec.centre_view(whole), whole.shape[-2:]
            del whole
        (index,) = payload.best(scores.log_probabilities[0])
        values_hw = maps.draw(view, index)
        return replace(scores, heat_map=HeatMap(values_hw.tolist(), self._spec.centre_box(height, width)))

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

    def view(self, image: bytes, place: int = 0, count: int = 1) -> Tensor:
        """What the network sees of an encoded image, uint8 [3, S, S]; place and count are for the error's text.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """
        with ExitStack() as held:
            return self._spec.centre_view(self._decode(image, place, count, held))

    def _maps(self) -> HeatMaps:
        """Built on first use: most endpoints are never asked, and it is the network once more."""
        with self._building:
            if self._heat_maps is None:
                if self._network is None:
                    raise NoHeatMapError("heat maps are switched off here; DOGBREED_HEATMAPS=true allows them")
                try:
                    self._heat_maps = HeatMaps(self._network(), self._spec)
                except NoMapError as error:
                    raise NoHeatMapError(str(error)) from error
            return self._heat_maps

    def _decode(self, image: bytes, place: int, count: int, held: ExitStack) -> Tensor:
        """What a large image takes is given back with ``held``."""

        def admit(pixels: int) -> None:
            held.enter_context(self._large.take(pixels))
            held.callback(self._trim)

        try:
            return preprocessing.decode(image, max_pixels=self._max_pixels, admit=admit)
        except CorruptImageError as error:
            which = "the image" if count == 1 else f"image {place} (counted from 0)"
            why = str(error)
            if isinstance(error.__cause__, UnidentifiedImageError):  # Pillow's text names a Python object
                why = f"it is none of {', '.join(preprocessing.FORMATS)}"
            raise UnreadableImageError(f"{which} cannot be decoded: {why}") from error

    def _score(self, views_CHW: Sequence[Tensor]) -> list[tuple[list[float], float]]:
        """Prepared images, uint8 [3, S, S] each -> K log-probabilities at the bundle's temperature, and familiarity.

        Raises:
            ArithmeticError: the network answers with numbers that are not finite.
        """
        scores_NK = self._engine.score(views_CHW[0].unsqueeze(0) if len(views_CHW) == 1 else self._stack(views_CHW))
        familiarity_N = calibration.familiarity(scores_NK)
        if self._temperature != 1:
            scores_NK = calibration.apply(scores_NK, self._temperature)
        rows = scores_NK.tolist()
        # A sum is finite when all of it is: float64 holds that of any float32s. torch takes three times as long.
        if not all(math.isfinite(sum(row)) for row in rows):
            raise ArithmeticError("the network answers with numbers that are not finite")
        return list(zip(rows, familiarity_N.tolist(), strict=True))

    def _stack(self, views_CHW: Sequence[Tensor]) -> Tensor:
        """uint8 [N, 3, S, S]; torch.stack would put the channels first, and the network would put them last again."""
        side = self._spec.size_px
        images_NCHW = torch.empty((len(views_CHW), 3, side, side), dtype=torch.uint8, memory_format=torch.channels_last)
        for row, view in zip(images_NCHW, views_CHW, strict=True):
            row.copy_(view)
        return images_NCHW
