"""The profile of this project's image and programs: drawn photos, and a network that learns in seconds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from dogbreed.logs import METRIC_REGEXES
from local_test import make_data
from local_test.simulator.checks.profile import Profile, Serving, Training

_EPOCHS = 3
_RESUME_EPOCHS = 8


def own_profile(folder: Path) -> Profile:
    """Draws what it needs into a new folder."""
    make_data.make(folder / "photos", classes=3, train=6, valid=3, test=3, size=48)
    photo = io.BytesIO()
    make_data.draw("circle", np.random.default_rng(0), 64).save(photo, "JPEG", quality=90)
    return Profile(
        Training(
            channels={"train": folder / "photos"},
            hyperparameters={
                "model": "tiny",
                "pretrained": "false",
                "trainable": "all",
                "epochs": str(_EPOCHS),
                "patience": "0",
                "batch-size": "4",
            },
            long={"epochs": "1000"},
            bad={"lr": "fast"},
            objective_regex=METRIC_REGEXES["validation_accuracy"],
            epochs=_EPOCHS,
            # One to two seconds an epoch, so that the job can be lost between two.
            resume={"epochs": str(_RESUME_EPOCHS), "checkpoint-seconds": "0"},
            resume_epochs=_RESUME_EPOCHS,
        ),
        Serving(request=photo.getvalue(), content_type="image/jpeg"),
    )
