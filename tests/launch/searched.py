"""Searches that need no training: one to draw pages of, and what stands for the trials of another."""

from __future__ import annotations

import math
import random

from dogbreed.hyperparameters import SearchRange
from scripts.launcher.search.page import Report
from scripts.launcher.search.trials import Trial, objective

# Accuracy is that of the distance to lr=0.03; it rises by the epoch, as a job's does. lr above 0.9 fails.
TRAIN = """
import json, os, signal, sys, time
from pathlib import Path
root = Path(os.environ["SAGEMAKER_BASE_DIR"])
given = json.loads((root / "input/config/hyperparameters.json").read_text())
lr = float(given["lr"])
if lr > 0.9:
    (root / "output/failure").write_text("AlgorithmError: the loss is not finite\\nand more")
    sys.exit(1)
best = max(0.0, 1 - abs(lr - 0.03))
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
for epoch in range(1, int(given.get("epochs", 3)) + 1):
    print(f"epoch={epoch}; validation_accuracy={best * epoch / 10:.6g};", flush=True)
    if stop:
        break
    time.sleep(float(given.get("gamma", 0)))
(root / "model/bundle.json").write_text(json.dumps({"metrics": {"validation_accuracy": best}}))
"""

RANGES = {
    "lr": SearchRange(low=0.0001, high=0.1, scale="log"),
    "dropout": SearchRange(low=0.0, high=0.5),
    "batch-size": SearchRange(choices=(16, 32, 64, 128, 256)),
    "model": SearchRange(choices=("mobilenet_v2", "resnet18", "densenet121")),
    "epochs": SearchRange(low=5, high=30),
}


def report(count: int = 40, *, metric: str = "validation_accuracy", failed: int = 2, seed: int = 0) -> Report:
    """A search of so many trials."""
    draw = random.Random(seed)
    trials = []
    for number in range(count):
        lr, dropout = 10 ** draw.uniform(-4, -1), draw.uniform(0, 0.5)
        quality = 0.92 - 0.08 * (math.log10(lr) + 2.5) ** 2 - 0.05 * dropout + draw.gauss(0, 0.004)
        status = "Failed" if number < failed else draw.choice(["Completed"] * 3 + ["Stopped"])
        trials.append(
            Trial(
                f"dogs-search-{number:03d}-0a1b2c3d",
                status,
                None if status == "Failed" else quality if metric.endswith("accuracy") else 4 * (1 - quality),
                {
                    "lr": f"{lr!r}",
                    "dropout": f"{dropout!r}",
                    "batch-size": draw.choice(["16", "32", "64", "128", "256"]),
                    "model": draw.choice(["mobilenet_v2", "resnet18", "densenet121"]),
                    "epochs": str(draw.randint(5, 30)),
                },
                seconds=draw.uniform(60, 300),
                billed_seconds=draw.uniform(60, 200),
                reason="out of memory; lower batch-size <b>" if status == "Failed" else "",
            )
        )
    fixed = {"objective": "validation_accuracy", "trainable": "head"}
    return Report("dogs-search", objective(metric), trials, RANGES, fixed, "Bayesian")
