from __future__ import annotations

import math

import pytest
import torch

from dogbreed.training.metrics import PassMetrics

CPU = torch.device("cpu")


def test_loss_and_accuracy_are_means_over_samples_not_over_batches() -> None:
    metrics = PassMetrics(CPU)
    metrics.add(torch.tensor(1.0), torch.tensor([[2.0, 1.0]] * 3), torch.tensor([0, 0, 1]))
    metrics.add(torch.tensor(5.0), torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    assert metrics.samples == 4
    assert metrics.loss == pytest.approx((3 * 1.0 + 5.0) / 4)
    assert metrics.accuracy == pytest.approx(3 / 4)


def test_confusion_counts_true_rows_and_predicted_columns() -> None:
    metrics = PassMetrics(CPU, confusion_classes=3)
    metrics.add(torch.tensor(0.0), torch.eye(3)[[0, 2, 2, 1]], torch.tensor([0, 1, 2, 1]))
    assert metrics.confusion == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]


def test_a_pass_without_samples_has_no_mean() -> None:
    metrics = PassMetrics(CPU)
    assert math.isnan(metrics.loss)
    assert math.isnan(metrics.accuracy)
    assert metrics.confusion == []
