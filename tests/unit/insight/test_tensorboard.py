import logging

import numpy as np
import pytest
import torch
from torch import nn

from dogbreed.insight import tensors
from dogbreed.insight.tensorboard import TensorBoard

pytest.importorskip("smdebug", reason="the image has smdebug; this machine does not")


@pytest.fixture
def accumulated():
    """Opens a folder as TensorBoard does."""
    reason = "TensorBoard's own reader is not installed"
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)

    def opened(folder):
        accumulator = module.EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
        return accumulator.Reload()

    return opened


def test_scalars_come_back_with_their_steps(tmp_path, accumulated):
    board = TensorBoard(tmp_path / "board", clock=lambda: 1_700_000_000.5)
    for epoch in (1, 2, 300):
        board.scalars(epoch, {"epoch/train_loss": 1 / epoch, "epoch/learning_rate": 1e-3})
        board.flush()
    found = accumulated(tmp_path / "board")
    assert found.Tags()["scalars"] == ["epoch/train_loss", "epoch/learning_rate"]
    losses = found.Scalars("epoch/train_loss")
    assert [(one.step, one.wall_time) for one in losses] == [(epoch, 1_700_000_000.5) for epoch in (1, 2, 300)]
    assert [one.value for one in losses] == pytest.approx([1.0, 0.5, 1 / 300])


def test_a_histogram_is_that_of_the_whole_tensor(tmp_path, accumulated):
    sample = np.linspace(-1.0, 3.0, 1000, dtype=np.float32)
    board = TensorBoard(tmp_path)
    board.histogram(7, "weights/fc", sample, low=-1.0, high=3.0, elements=5000)
    board.flush()
    (event,) = accumulated(tmp_path).Histograms("weights/fc")
    found = event.histogram_value
    assert event.step == 7
    assert (found.min, found.max, found.num) == (-1.0, 3.0, 5000)
    assert found.sum / found.num == pytest.approx(1.0)
    assert sum(found.bucket) == pytest.approx(5000)
    assert found.bucket_limit[-1] == pytest.approx(3.0)
    # Evenly spread: as many elements below the middle as above it.
    below = sum(count for limit, count in zip(found.bucket_limit, found.bucket, strict=True) if limit <= 1.0)
    assert below == pytest.approx(2500)


def test_a_tensor_of_equal_elements_has_one_bucket_and_one_with_nan_none(tmp_path, accumulated):
    board = TensorBoard(tmp_path)
    board.histogram(0, "same", np.full(10, 2.0), low=2.0, high=2.0, elements=10)
    board.histogram(0, "broken", np.array([1.0, np.nan]), low=float("nan"), high=float("nan"), elements=2)
    board.flush()
    found = accumulated(tmp_path)
    assert found.Tags()["histograms"] == ["same"]
    assert sorted(found.Histograms("same")[0].histogram_value.bucket)[-1] == 10


def test_a_watched_job_shows_losses_and_what_learns(tmp_path, accumulated):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    criterion = nn.CrossEntropyLoss()
    board = TensorBoard(tmp_path / "board")
    hook = tensors.attach(model, criterion, folder=tmp_path / "tensors", config=None, board=board)
    hook.set_mode("train")
    for _ in range(101):
        criterion(model(torch.randn(8, 4)), torch.arange(8) % 2).backward()
        hook.step()
    hook.set_mode("validation")
    criterion(model(torch.randn(8, 4)), torch.arange(8) % 2)
    hook.close()
    assert not hook.failure
    found = accumulated(tmp_path / "board")
    assert [one.step for one in found.Scalars("step/train_loss")] == list(range(0, 101, 10))
    losses = {point.step: point.value for point in hook.evidence()[0].train}
    assert {one.step: one.value for one in found.Scalars("step/train_loss")} == pytest.approx(losses)
    names = {"weights/Sequential_2.weight", "gradients/Sequential_2.weight", "gradients/Sequential_2.bias"}
    assert set(found.Tags()["histograms"]) == names
    assert [one.step for one in found.Histograms("weights/Sequential_2.weight")] == [0, 100]
    shown = found.Histograms("weights/Sequential_2.weight")[-1].histogram_value
    assert shown.sum == pytest.approx(model[2].weight.sum().item(), abs=1e-5)


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path, caplog):
    (tmp_path / "board").write_text("in the way")
    board = TensorBoard(tmp_path / "board")
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            board.scalars(step, {"loss": 1.0})
            board.flush()
    assert caplog.text.count("nothing (more) is written for TensorBoard") == 1
