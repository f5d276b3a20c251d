"""A bundle to serve: the tiny network, for the tests that start the real server."""

from __future__ import annotations

from pathlib import Path

import torch

from dogbreed import artifacts, backbones
from dogbreed.artifacts import Bundle
from dogbreed.backbones import HeadSpec
from dogbreed.labels import Labels
from dogbreed.preprocessing import PreprocessSpec


def save_bundle(root: Path, *, hidden_units: int = 0, classes: int = 7) -> Bundle:
    """Saves into ``root/model``; a hidden layer makes it as large as a test likes."""
    torch.manual_seed(0)
    head = HeadSpec(classes=classes, hidden_units=hidden_units)
    bundle = Bundle(
        backbone=backbones.TINY,
        head=head,
        labels=Labels.from_folders([f"{index:03d}.Breed {index}, drawn" for index in range(head.classes)]),
        preprocessing=PreprocessSpec.for_size(64),
        weights=artifacts.clone_weights(backbones.build(backbones.TINY, head, image_size_px=64)),
        hyperparameters={},
        metrics={},
        data_fingerprint="none",
    )
    artifacts.save(bundle, root / "model")
    return bundle
