from __future__ import annotations

import logging

import pytest

from dogbreed import logs
from dogbreed.training.console import Console
from dogbreed.training.loop import Phase
from dogbreed.training.state import EpochResult

METRICS = {"train_loss": 0.5, "train_accuracy": 0.8, "validation_loss": 0.75, "validation_accuracy": 0.7}


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_an_epoch_is_one_line_that_the_regexes_read(caplog: pytest.LogCaptureFixture) -> None:
    result = EpochResult(
        2, METRICS, learning_rate=0.001, seconds=1.5, images_per_s=100.0, waiting_share=0.25, is_best=True
    )
    Console(5, terminal=False).on_epoch_end(result)
    (line,) = caplog.messages
    assert logs.read_metrics(line) == METRICS
    assert line.startswith("epoch=2;")


def test_without_a_terminal_a_silent_pass_speaks_every_half_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    console = Console(3, terminal=False, clock=lambda: now)
    console.on_pass_start(Phase.TRAIN, 1, 9)
    for now in (10.0, 20.0, 31.0, 40.0, 62.0):  # noqa: B007  read by the clock
        console.on_batch(Phase.TRAIN)
    console.on_pass_end(Phase.TRAIN)
    assert caplog.messages == ["epoch 1/3 train: batch 3 of 9", "epoch 1/3 train: batch 5 of 9"]


def test_images_that_taught_nothing_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    console = Console(3, terminal=False)
    for samples in (2, 1, 3):
        console.on_left_out(samples)
    (line,) = caplog.messages
    assert line.startswith("2 of the images of a training step stood alone")
    assert "batch-statistics=keep" in line


def test_on_a_terminal_a_bar_shows_the_pass_and_is_gone_afterwards(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    console = Console(3, terminal=True)
    console.on_pass_start(Phase.VALIDATION, 2, 4)
    console.on_batch(Phase.VALIDATION)
    console.on_pass_end(Phase.VALIDATION)
    assert "epoch 2/3 validation" in capsys.readouterr().err
    assert not caplog.messages


def test_what_cannot_be_decoded_is_said_once_at_the_end_of_a_whole_pass(caplog: pytest.LogCaptureFixture) -> None:
    corrupt: list[str] = []
    console = Console(3, corrupt=lambda: corrupt, terminal=False)

    def run(phase: Phase, *, found: int, batches: int = 2) -> None:
        console.on_pass_start(phase, 1, 2)
        corrupt.extend([f"{len(corrupt) + number}.jpg (why)" for number in range(found)])
        for _ in range(batches):
            console.on_batch(phase)
        console.on_pass_end(phase)

    run(Phase.TRAIN, found=1, batches=1)
    assert not caplog.messages, "cut short, by an error that says so perhaps"
    run(Phase.TRAIN, found=0)
    run(Phase.TRAIN, found=0)
    run(Phase.VALIDATION, found=7)
    assert caplog.messages == [
        "1 image left out, cannot be decoded: 0.jpg (why)",
        "7 images left out, cannot be decoded: " + "; ".join(f"{number}.jpg (why)" for number in range(1, 6)) + "; ...",
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
