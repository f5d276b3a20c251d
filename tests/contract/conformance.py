"""Small subjects for the conformance checks: one that keeps the contract, and the same with one fault."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from local_test.simulator.checks.check import Check
from local_test.simulator.checks.context import Context
from local_test.simulator.checks.patience import Patience
from local_test.simulator.checks.profile import Profile, Serving, Training
from local_test.simulator.checks.running import Result, run
from local_test.simulator.processes import ProcessSubject

SUBJECTS = Path(__file__).resolve().parent.parent / "subjects"

PATIENCE = Patience(
    train_s=60,
    stop_train_s=30,
    progress_s=60,
    blind_s=0.5,
    together_s=30,
    ready_s=60,
    broken_s=0.5,
    ping_s=10,
    accept_s=2,
    settle_s=0.4,
    notice_s=0.5,
    load_s=1.0,
    repeats=40,
)
"""What keeps the contract never waits for long; on a busy machine it is given the time all the same."""

HURRY: dict[str, dict[str, float]] = {
    "train.flushed": {"progress_s": 3},
    "train.sigterm": {"stop_train_s": 2},
    "train.hosts-together": {"together_s": 4},
    "train.empty-shard": {"together_s": 4},
    "serve.ready": {"ready_s": 3},
    "serve.bind-to-port": {"ready_s": 3},
    "serve.models-label": {"ready_s": 8},
    "serve.sigterm": {"stop_serve_s": 3},
    "serve.ping-busy": {"ping_s": 0.5},
}
"""For faults that are seen only when a time is over."""


def patience_with(fault: str) -> Patience:
    """How long is waited for a subject with this fault."""
    return dataclasses.replace(PATIENCE, **HURRY.get(fault, {}))


def profile(folder: Path) -> Profile:
    """What the plain subject trains on and is asked; its data is written below the folder."""
    data = folder / "data"
    data.mkdir()
    (data / "points.csv").write_text("1,2\n2,4\n3,6\n")
    model = folder / "model"
    model.mkdir()
    (model / "model.json").write_text(json.dumps({"slope": 2.0}))
    return Profile(
        Training(
            channels={"train": data},
            hyperparameters={"epochs": "3", "rate": "0.05", "optimizer": "signed"},
            long={"epochs": "10000", "step-ms": "50"},
            bad={"rate": "fast"},
            objective_regex=r"loss=([0-9.]+)",
            epochs=3,
            resume={"epochs": "6", "step-ms": "100"},
            resume_epochs=6,
        ),
        Serving(request=b"1\n2.5\n", content_type="text/csv", model=model, bad_request=b"one two"),
    )


def subject(folder: Path, fault: str = "", labels: dict[str, str] | None = None) -> ProcessSubject:
    """The faithful subject, copied into the folder, with a fault.

    Args:
        folder: new.
        fault: name of the check that it is to fail.
        labels: in the place of its own.
    """
    shutil.copytree(SUBJECTS / "faithful", folder)
    (folder / "fault").write_text(fault)
    if labels is not None:
        (folder / "labels.json").write_text(json.dumps(labels))
    if fault.endswith(".first-process"):
        behind_a_shell(folder / fault.partition(".")[0])
    return ProcessSubject(folder)


def behind_a_shell(program: Path) -> None:
    """Puts a shell in front of a program, which hands SIGTERM on."""
    real = program.rename(program.with_name(f"real-{program.name}"))
    program.write_text(
        f'#!/bin/sh\npython3 "{real}" &\ntrap "kill -TERM $!" TERM\n'
        "code=143\nwhile kill -0 $! 2>/dev/null; do wait $!; code=$?; done\nexit $code\n"
    )
    program.chmod(0o755)


def outcomes(checks: Iterable[Check], folder: Path, under_test: object, patience: Patience = PATIENCE) -> list[Result]:
    """Runs checks on a subject; everything is below the folder."""
    made = folder / "given"
    made.mkdir()
    context = Context(under_test, profile(made), folder / "work", contained=False, patience=patience)
    return list(run(checks, context))
