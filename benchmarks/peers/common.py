"""What the compared servers share: the network of a bundle, and the usual preparation of an image.

The bundle's folder and the port come by environment: BENCH_MODEL, BENCH_PORT.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "container"))

MODEL = Path(os.environ["BENCH_MODEL"])
PORT = int(os.environ["BENCH_PORT"])
CPUS = len(os.sched_getaffinity(0))


class UsualModel:
    """What a sample does: PIL, torchvision's transforms, an eager float32 network."""

    def __init__(self) -> None:
        from torchvision import transforms

        from dogbreed import artifacts

        bundle = artifacts.load(MODEL)
        spec = bundle.preprocessing
        self._labels = bundle.labels.names
        self._network = bundle.build()
        self._view = transforms.Compose(
            [
                transforms.Resize(spec.resize_px),
                transforms.CenterCrop(spec.size_px),
                transforms.ToTensor(),
                transforms.Normalize(spec.mean, spec.std),
            ]
        )

    def answer(self, body: bytes) -> dict[str, Any]:
        """The best class and its probability."""
        import torch
        from PIL import Image

        with torch.no_grad():
            inputs = self._view(Image.open(io.BytesIO(body)).convert("RGB"))[None]
            probabilities = self._network(inputs).softmax(1)[0]
        best = int(probabilities.argmax())
        return {"label": self._labels[best], "probability": float(probabilities[best])}


class OurModel:
    """Our engine and our decoder, in another server."""

    def __init__(self, streams: int = 1) -> None:
        from dogbreed.preprocessing import MAX_PIXELS
        from dogbreed.serving.loading import load_predictor
        from dogbreed.serving.metrics import Metrics

        self._predictor = load_predictor(
            MODEL,
            Metrics(),
            max_pixels=MAX_PIXELS,
            engine=os.environ.get("DOGBREED_ENGINE", "auto"),
            precision=os.environ.get("DOGBREED_PRECISION", "auto"),
            streams=streams,
        )

    def answer(self, body: bytes) -> dict[str, Any]:
        """The best class and its probability."""
        import math

        scores = self._predictor.predict([body])
        row = scores.log_probabilities[0]
        best = max(range(len(row)), key=row.__getitem__)
        return {"label": scores.labels[best], "probability": math.exp(row[best])}
