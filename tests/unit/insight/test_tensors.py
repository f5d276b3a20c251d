from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dogbreed.insight import saveplan, tensors
from dogbreed.insight.tensors import TensorHook

pytest.importorskip("smdebug", reason="the image has smdebug; this machine does not")


def attach(folder: Path, config: Path | None = None) -> tuple[nn.Module, nn.Module, TensorHook]:
    model, criterion = nn.Linear(4, 3), nn.CrossEntropyLoss()
    hook = tensors.attach(model, criterion, folder=folder, config=config)
    assert hook is not None
    return model, criterion, hook


def step(model: nn.Module, criterion: nn.Module) -> float:
    loss: Tensor = criterion(model(torch.randn(5, 4)), torch.tensor([0, 1, 2, 0, 1]))
    if torch.is_grad_enabled():
        loss.backward()
    return float(loss.detach())


def run(
    model: nn.Module, criterion: nn.Module, hook: TensorHook, *, epochs: int = 3
) -> tuple[list[float], list[float]]:
    """Twelve train and two validation steps an epoch, then a test pass; returns train losses and validation means."""
    train: list[float] = []
    validation = []
    for _ in range(epochs):
        hook.set_mode("train")
        train += [step(model, criterion) for _ in range(12)]
        hook.set_mode("validation")
        with torch.no_grad():
            validation.append((step(model, criterion) + step(model, criterion)) / 2)
    hook.set_mode("test")
    with torch.no_grad():
        step(model, criterion)
    hook.close()
    return train, validation


def test_losses_are_read_back_per_step_in_training_and_per_pass_in_validation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, criterion, hook = attach(tmp_path / "tensors")
    train, validation = run(model, criterion, hook)
    losses = tensors.read_losses(hook.folder)
    assert [point.step for point in losses.train] == [0, 10, 20, 30]
    assert [point.value for point in losses.train] == pytest.approx([train[step] for step in (0, 10, 20, 30)])
    assert [point.step for point in losses.evaluation] == [12, 24, 36]
    assert [point.value for point in losses.evaluation] == pytest.approx(validation)


def test_reading_does_not_wait_for_ever_in_a_job_on_sagemaker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With TRAINING_JOB_NAME set smdebug writes no end file, and its own readers wait for one."""
    monkeypatch.setenv("TRAINING_JOB_NAME", "job-1")
    model, criterion, hook = attach(tmp_path / "tensors")
    run(model, criterion, hook)
    assert len(tensors.read_losses(hook.folder).evaluation) == 3


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tensors").mkdir()
    (tmp_path / "tensors" / "old").touch()
    _, _, hook = attach(tmp_path / "tensors")
    assert hook.folder == tmp_path / "tensors-2"
    hook.close()
    assert [entry.name for entry in (tmp_path / "tensors").iterdir()] == ["old"]


def test_the_platforms_configuration_is_honoured(tmp_path: Path) -> None:
    config = tmp_path / "debughookconfig.json"
    config.write_text(
        json.dumps(
            {
                "LocalPath": str(tmp_path / "elsewhere"),
                "HookParameters": {"train.save_interval": "4"},
                "CollectionConfigurations": [{"CollectionName": "losses"}],
            }
        )
    )
    model, criterion, hook = attach(tmp_path / "tensors", config)
    assert hook.folder == tmp_path / "elsewhere"
    run(model, criterion, hook, epochs=1)
    assert [point.step for point in tensors.read_losses(hook.folder).train] == [0, 4, 8]


def test_a_hook_that_cannot_be_made_is_a_warning_and_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "debughookconfig.json"
    config.write_text("{")
    hook = tensors.attach(nn.Linear(1, 1), nn.CrossEntropyLoss(), folder=tmp_path, config=config)
    assert "JSONDecodeError" in hook.failure
    assert "no tensors are saved" in caplog.text


def test_a_machine_without_smdebug_trains_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "smdebug.pytorch", None)
    hook = tensors.attach(nn.Linear(1, 1), nn.CrossEntropyLoss(), folder=tmp_path / "t", config=None)
    assert "ModuleNotFoundError" in hook.failure
    assert "no tensors are saved" in caplog.text


def test_a_folder_without_tensors_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no tensors"):
        tensors.read_losses(tmp_path)


def test_smdebugs_chatter_is_dropped_and_its_warnings_are_not(caplog: pytest.LogCaptureFixture) -> None:
    saveplan.quieten_smdebug()
    debugger = logging.getLogger("smdebug")
    assert debugger.filter(logging.makeLogRecord({"levelno": logging.INFO})) is False
    assert debugger.filter(logging.makeLogRecord({"levelno": logging.WARNING}))
