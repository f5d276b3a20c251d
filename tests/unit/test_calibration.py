"""The temperature is the one that answers were drawn at; accuracy stays, and the loss never grows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dogbreed import calibration
from dogbreed.calibration import Calibration, Familiarity


def answers(
    temperature: float, images: int = 4000, classes: int = 5, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and truths drawn with the probabilities that the logits have at a temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, generator=generator)
    truth = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
    return logits, truth


@pytest.mark.parametrize("temperature", [0.4, 1.7, 3.0])
def test_the_temperature_of_the_truth_is_found(temperature: float) -> None:
    found = calibration.fit(*answers(temperature))
    assert found is not None
    assert found.temperature == pytest.approx(temperature, rel=0.06)
    assert found.error < 0.03 < found.error_before
    assert found.images == 4000


def test_no_other_temperature_has_a_lower_loss() -> None:
    logits, truth = answers(1.7)
    found = calibration.fit(logits, truth)
    assert found is not None
    for factor in (0.97, 1.03):
        scores = calibration.apply(logits, factor * found.temperature)
        assert float(torch.nn.functional.nll_loss(scores, truth)) > found.loss


@given(st.integers(0, 10**6), st.floats(0.2, 5), st.integers(50, 200), st.integers(2, 6))
def test_accuracy_stays_and_the_loss_is_not_worse(seed: int, temperature: float, images: int, classes: int) -> None:
    logits, truth = answers(temperature, images, classes, seed)
    found = calibration.fit(logits, truth)
    if found is None:
        return
    assert found.loss < found.loss_before
    assert calibration.LOWEST <= found.temperature <= calibration.HIGHEST
    scores = calibration.apply(logits, found.temperature)
    assert torch.equal(scores.argmax(1), logits.argmax(1))
    assert float(torch.nn.functional.nll_loss(scores, truth)) == pytest.approx(found.loss, rel=1e-3)


def test_log_probabilities_are_as_good_as_logits() -> None:
    logits, truth = answers(1.7, images=300)
    one, other = calibration.fit(logits, truth), calibration.fit(logits.log_softmax(1), truth)
    assert one is not None
    assert other is not None
    assert one.temperature == pytest.approx(other.temperature, rel=1e-3)
    torch.testing.assert_close(calibration.apply(logits, 1.7), calibration.apply(logits.log_softmax(1), 1.7))


def test_answers_that_are_all_right_do_not_make_a_network_certain() -> None:
    truth = torch.arange(60) % 3
    logits = torch.nn.functional.one_hot(truth, 3).float()
    found = calibration.fit(logits, truth)
    assert found is not None
    sureness = calibration.apply(logits, found.temperature).exp().max()
    assert 0.95 < float(sureness) < 0.995


def test_nothing_is_fitted_to_little_or_to_nonsense() -> None:
    logits, truth = answers(1.7, images=calibration.MIN_IMAGES)
    assert calibration.fit(logits, truth) is not None
    assert calibration.fit(logits[1:], truth[1:]) is None
    logits[3, 1] = math.nan
    assert calibration.fit(logits, truth) is None


def test_a_network_that_knows_nothing_keeps_its_temperature() -> None:
    assert calibration.fit(torch.zeros(60, 3), torch.arange(60) % 3) is None


def test_no_more_is_heard_than_one_number_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration.Heard, "MOST_IMAGES", 5)
    heard = calibration.Heard()
    for start in range(0, 12, 4):
        heard.hear(torch.full((4, 2), start, dtype=torch.bfloat16), torch.arange(4))
    logits, truth = heard.all()
    assert torch.cat(logits).tolist() == [[0.0, 0.0]] * 4 + [[4.0, 4.0]] * 4
    assert torch.cat(truth).tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_what_is_no_temperature_is_not_read() -> None:
    good = {"temperature": 2, "images": 60, "loss_before": 1, "loss": 0.5, "error_before": 0.2, "error": 0.1}
    assert Calibration.read(good) == Calibration(2.0, 60, 1.0, 0.5, 0.2, 0.1)
    for bad in (0, -1, math.nan, 1000):
        with pytest.raises(ValueError, match="temperature"):
            Calibration.read({**good, "temperature": bad})


@given(st.integers(0, 10**6), st.integers(50, 400), st.integers(2, 6))
def test_the_threshold_is_the_highest_that_95_percent_reach(seed: int, images: int, classes: int) -> None:
    logits, _ = answers(1.0, images, classes, seed)
    found = calibration.fit_familiarity(logits)
    assert found is not None
    scores = calibration.familiarity(logits)
    assert found.images == images
    assert found.kept == pytest.approx(float((scores >= found.threshold).double().mean()))
    assert found.kept >= calibration.KEPT
    assert float((scores > found.threshold).double().mean()) < calibration.KEPT


def test_familiarity_is_the_largest_probability_before_calibration() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    assert calibration.familiarity(logits).tolist() == pytest.approx([1 / 3, 1 / (1 + 2 * math.exp(-9))])
    torch.testing.assert_close(calibration.familiarity(logits.log_softmax(1)), calibration.familiarity(logits))


def test_no_threshold_is_fitted_to_little_or_to_nonsense() -> None:
    logits, _ = answers(1.0, images=calibration.MIN_IMAGES)
    assert calibration.fit_familiarity(logits) is not None
    assert calibration.fit_familiarity(logits[1:]) is None
    logits[3, 1] = math.inf
    assert calibration.fit_familiarity(logits) is None


def test_what_is_no_threshold_is_not_read() -> None:
    good = {"threshold": 0.4, "images": 60, "kept": 0.95}
    assert Familiarity.read(good) == Familiarity(0.4, 60, 0.95)
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="familiarity"):
            Familiarity.read({**good, "threshold": bad})
