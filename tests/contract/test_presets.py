"""The recipes by name, each run as a job on drawn images: every one ends with a bundle and verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
from tests.conftest import OptMl

from dogbreed import artifacts
from dogbreed.insight.rules import registry
from dogbreed.presets import PRESETS
from dogbreed.training import job

# Every rule there is, so also those that the projects behind the recipes asked for: Overfit, Overtraining,
# VanishingGradient, PoorWeightInitialization, LossNotDecreasing, LowGPUUtilization and the profiler's report.
SELECTED = ":collection_names=weights"
GIVEN = {"AllZero": SELECTED, "UnchangedTensor": SELECTED, "TensorVariance": f"{SELECTED};max_threshold=100"}
EVERY_RULE = ",".join(f"{name}{GIVEN.get(name, '')}" for name in registry.RULES)
SMALL = {"rules": EVERY_RULE, "pretrained": "false", "image-size": "32", "epochs": "1", "num-workers": "0"}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_trains(in_process: OptMl, drawn_data: Path, tmp_path: Path, name: str) -> None:
    in_process.hyperparameters({"preset": name, **SMALL})
    channels = {"train": drawn_data}
    if name == "resnet152":
        # Random weights grow without bound over so many blocks; those of a fresh network whose blocks begin as
        # identities do not.
        weights = torchvision.models.resnet152(zero_init_residual=True).state_dict()
        (tmp_path / "weights").mkdir()
        torch.save(weights, tmp_path / "weights" / "resnet152.pth")
        in_process.hyperparameters({"preset": name, **SMALL, "pretrained": "true"})
        channels["pretrained"] = tmp_path / "weights"
    in_process.channels(**channels)
    assert job.main() == 0, in_process.failure.read_text()
    bundle = artifacts.load(in_process.model)
    assert bundle.backbone == PRESETS[name].values["model"]
    for key, text in PRESETS[name].values.items():
        if key not in SMALL:
            value = bundle.hyperparameters[key]
            assert value == type(value)(text)
    rules = in_process.root / "output" / "data" / "insight" / "rules"
    statuses = {file.stem: json.loads(file.read_text())["Status"] for file in rules.glob("*.json")}
    assert statuses.keys() == set(registry.RULES)
    assert "Error" not in statuses.values(), statuses
    assert {"NoIssuesFound", "IssuesFound"} >= {statuses["ExplodingTensor"], statuses["OverallFrameworkMetrics"]}
