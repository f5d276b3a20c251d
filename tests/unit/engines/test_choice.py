"""The quickest engine that may be used is taken, and the reason is told."""

import pytest
import torch

from dogbreed import backbones
from dogbreed.backbones import HeadSpec
from dogbreed.engines import choice
from dogbreed.engines.agreement import Agreement
from dogbreed.engines.choice import Wish
from dogbreed.engines.engine import PlainEngine, UnsuitableError, describe
from dogbreed.errors import ConfigurationError
from dogbreed.preprocessing import PreprocessSpec

SPEC = PreprocessSpec.for_size(32)
GOOD = Agreement(images=400, changed=0, accuracy_reference=0.9, accuracy=0.9, max_probability_change=0.02)
BAD = Agreement(images=400, changed=9, accuracy_reference=0.9, accuracy=0.9, max_probability_change=0.02)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return backbones.build(backbones.TINY, HeadSpec(3), image_size_px=32).eval()


@pytest.fixture
def machine(monkeypatch):
    """Engines that are there, whatever the machine; each answers as the plain network does unless told otherwise."""
    there = {("torch", "fp32"), ("torch", "bf16"), ("openvino", "fp32"), ("openvino", "bf16")}
    broken = set()

    class Fake(PlainEngine):
        def score(self, images):
            scores = super().score(images)
            wrong = {(self.name, self.precision), (self.name, self.precision, len(images))} & broken
            return scores.flip(1) if wrong else scores

    def build(name, precision, model, spec, *, streams, low_latency):
        if (name, precision) not in there:
            raise UnsuitableError(f"there is no {name}-{precision}")
        engine = Fake(model, spec)
        engine.name, engine.precision = name, precision
        return engine

    monkeypatch.setattr(choice, "build", build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return there, broken


def chosen(model, agreements=(), **wish):
    found = choice.choose(model, SPEC, dict(agreements), wish=Wish(**wish))
    return describe(found.engine), found.reason


@pytest.mark.parametrize(
    ("agreements", "expected"),
    [
        ({}, "openvino-fp32"),
        ({"openvino-bf16": GOOD}, "openvino-bf16"),
        ({"openvino-bf16": BAD}, "openvino-fp32"),
        ({"openvino-bf16": "no validation images"}, "openvino-fp32"),
        ({"torch-bf16": GOOD}, "openvino-fp32"),  # another engine's record says nothing
    ],
)
def test_half_precision_needs_a_good_record(model, machine, agreements, expected):
    name, reason = chosen(model, agreements)
    assert name == expected
    assert reason.startswith("the quickest that may be used here")


def test_the_reason_tells_what_was_passed_over_and_what_the_job_found(model, machine):
    there, _ = machine
    there -= {("openvino", "fp32")}
    name, reason = chosen(model, {"openvino-bf16": BAD, "torch-bf16": GOOD})
    assert name == "torch-bf16"
    assert reason == (
        "the quickest that may be used here; the job found: 0 of 400 answers changed, accuracy 0.9000 against 0.9000, "
        "probabilities moved by up to 0.020 (openvino-bf16: it changed 9 of 400 validation answers, allowed is 1%; "
        "openvino-fp32: there is no openvino-fp32)"
    )


@pytest.mark.parametrize("of_images", [(), (1,), (2,)])
def test_an_engine_that_answers_otherwise_is_passed_over(model, machine, of_images):
    _, broken = machine
    broken |= {("openvino", "fp32", *of_images)}  # also when it does so for one image alone, or for several only
    name, reason = chosen(model)
    assert name == "torch-fp32"
    assert "openvino-fp32 moves a probability of a drawn image by" in reason


def test_what_is_named_is_taken_without_a_record(model, machine):
    assert chosen(model, engine="torch")[0] == "torch-fp32"
    assert chosen(model, precision="bf16")[0] == "openvino-bf16"
    name, reason = chosen(model, engine="torch", precision="bf16")
    assert (name, reason) == ("torch-bf16", "as DOGBREED_ENGINE and DOGBREED_PRECISION say")


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"engine": "cuda"}, "cuda-bf16: the bundle holds no comparison with float32; .*cuda-fp32: there is no cuda"),
        ({"engine": "torch", "precision": "fp16"}, "torch-fp16: there is no torch-fp16"),
        ({"precision": "fp16"}, "openvino-fp16: there is no openvino-fp16; torch-fp16: there is no torch-fp16"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(model, machine, wish, why):
    with pytest.raises(ConfigurationError, match=f"cannot be had: {why}.*; set both to auto"):
        chosen(model, **wish)


def test_weights_that_are_not_numbers_are_left_to_the_self_test(model, machine):
    model.head.linear.weight.data.fill_(float("nan"))
    assert chosen(model)[0] == "openvino-fp32"


def test_drawn_images_are_always_the_same_and_not_flat():
    images = choice.draw(32)
    assert torch.equal(images, choice.draw(32))
    assert (images.shape, images.dtype) == ((2, 3, 32, 32), torch.uint8)
    assert images.float().std() > 20
