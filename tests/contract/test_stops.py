"""A stop at any step is not a loss: what is continued ends with the weights of a job that nobody disturbed."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.conftest import OptMl
from tests.contract.test_train import QUICK

from dogbreed import artifacts
from dogbreed.training import job

TIMES = 20
SETTINGS = {**QUICK, "epochs": "4", "patience": "0", "dropout": "0.5", "ema": "0.9", "mixup": "0.4", "augment": "crop"}


def test_sigterm_at_twenty_random_steps(
    in_process: OptMl, drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process.hyperparameters(SETTINGS)
    in_process.channels(train=drawn_data)
    asked = 0
    stop_at = 0
    listen = job._stop_on_signals

    def listen_and_count() -> Callable[[], bool]:
        requested = listen()

        def ask() -> bool:
            nonlocal asked
            asked += 1
            if asked == stop_at:
                signal.raise_signal(signal.SIGTERM)
            return requested()

        return ask

    monkeypatch.setattr(job, "_stop_on_signals", listen_and_count)

    def run(folder: Path, at: int = 0) -> artifacts.Bundle:
        nonlocal asked, stop_at
        asked, stop_at = 0, at
        in_process.write("checkpointconfig.json", {"LocalPath": str(folder)})
        shutil.rmtree(in_process.root / "output" / "tensors", ignore_errors=True)
        assert job.main() == 0
        return artifacts.load(in_process.model)

    expected = run(tmp_path / "undisturbed")
    steps = asked
    assert steps > TIMES
    for number, step in enumerate(sorted(random.Random(0).sample(range(1, steps), TIMES))):
        run(tmp_path / str(number), step)
        found = run(tmp_path / str(number))
        assert found.metrics == expected.metrics, f"stopped when asked for the {step}th time"
        assert all(torch.equal(found.weights[name], expected.weights[name]) for name in expected.weights), step
