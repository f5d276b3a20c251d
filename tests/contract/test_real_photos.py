"""The path on real photos and real weights, where they are at hand: accuracy, and equal answers online and offline.

`DOGBREED_REAL_DATA` names a folder with `dogs/{train,valid,test}/CLASS/*.jpg` and `mobilenet_v2.pth`, the ImageNet
weights. Skipped without it: neither is part of the repository.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.conftest import OptMl
from tests.server_process import is_ready, start, stop_hard

from dogbreed import artifacts
from dogbreed.preprocessing import decode

REAL = Path(os.environ.get("DOGBREED_REAL_DATA", "/nowhere"))
TRAIN = Path(__file__).resolve().parents[2] / "container" / "train"

pytestmark = [
    pytest.mark.skipif(not REAL.is_dir(), reason="DOGBREED_REAL_DATA does not name a folder of photos and weights"),
    pytest.mark.timeout(900),
]


def test_a_head_on_real_weights_reaches_its_accuracy_and_is_served_as_trained(opt_ml: OptMl, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "mobilenet_v2.pth").symlink_to((REAL / "mobilenet_v2.pth").resolve())
    opt_ml.channels(train=(REAL / "dogs").resolve(), pretrained=weights)
    environ = {**os.environ, "SAGEMAKER_BASE_DIR": str(opt_ml.root), "DOGBREED_CACHE_DIR": str(tmp_path / "cache")}
    trained = subprocess.run([sys.executable, str(TRAIN)], env=environ, capture_output=True, text=True)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    bundle = artifacts.load(opt_ml.model)
    assert bundle.metrics["test_accuracy"] >= 0.88, trained.stdout

    server = start(opt_ml.root)
    try:
        server.wait(is_ready)
        model = bundle.build()
        photos = sorted((REAL / "dogs" / "test").rglob("*.jpg"))
        assert photos
        correct = 0
        for photo in photos:
            view = bundle.preprocessing.centre_view(decode(photo))
            with torch.inference_mode():
                logits = model(bundle.preprocessing.normalise(view[None]))
                offline = (logits / bundle.temperature).log_softmax(dim=1)[0]
            answer = server.send(
                "POST",
                "/invocations",
                photo.read_bytes(),
                Content_Type="image/jpeg",
                X_Amzn_SageMaker_Custom_Attributes="return=log_probabilities",
            )
            assert answer.status == 200, answer.body
            (prediction,) = json.loads(answer.body)["predictions"]
            assert prediction["log_probabilities"] == pytest.approx(offline.tolist(), abs=1e-4), photo
            assert prediction["index"] == int(offline.argmax()), photo
            correct += bundle.labels.folders[prediction["index"]] == photo.parent.name
        # A photo on the edge may fall on the other side where the job computed in batches and the server one by one.
        assert correct / len(photos) == pytest.approx(bundle.metrics["test_accuracy"], abs=1.5 / len(photos))
    finally:
        stop_hard(server)
