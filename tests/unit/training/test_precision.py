"""What a job finds of half precision, and what it says where it finds nothing."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dogbreed import backbones
from dogbreed.backbones import HeadSpec
from dogbreed.engines import choice
from dogbreed.engines.agreement import Agreement
from dogbreed.engines.engine import PlainEngine, UnsuitableError
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training import precision
from dogbreed.training.sources import Sample

SPEC = PreprocessSpec.for_size(32)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """220 small photos; the first ten cannot be decoded."""
    folder = tmp_path_factory.mktemp("photos")
    found = []
    for number in range(220):
        file = folder / f"{number}.png"
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 36)).save(file)
        if number < 10:
            file.write_bytes(b"no image")
        found.append(Sample(file, number % 3))
    return found


@pytest.fixture
def model():
    torch.manual_seed(0)
    return backbones.build(backbones.TINY, HeadSpec(3), image_size_px=32)


@pytest.fixture
def engines(monkeypatch):
    """One half-precision engine that doubts every fourth answer and gives the next class, and one that cannot be had.

    What float32 was asked for, images at a time, is in the list.
    """

    class Turning(PlainEngine):
        name, precision = "torch", "bf16"

        def score(self, images):
            scores = super().score(images).clone()
            another = (scores[::4].argmax(1) + 1) % 3
            scores[::4] = torch.nn.functional.one_hot(another, 3).mul(0.01).log_softmax(1)
            return scores

    class Counting(PlainEngine):
        def score(self, images):
            asked.append(len(images))
            return super().score(images)

    asked = []

    def build(name, precision, model, spec, *, streams=1):
        if precision == "fp32":
            return Counting(model, spec)
        if name == "openvino":
            raise UnsuitableError("the openvino package is not installed")
        return Turning(model, spec)

    monkeypatch.setattr(choice, "build", build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return asked


def compared(model, samples, stop=False):
    return precision.compare_precisions(model, SPEC, samples, stop_requested=lambda: stop)


def test_what_is_found_is_kept_for_each_engine(model, samples, engines, caplog):
    caplog.set_level("INFO")
    model.train()
    found = compared(model, samples)
    assert found["openvino-bf16"] == "the openvino package is not installed"
    agreement = found["torch-bf16"]
    assert isinstance(agreement, Agreement)
    assert agreement.of_images == 210
    assert "endpoints will not use it: it " in caplog.text
    assert "most doubtful of 210 answers changed" in caplog.text
    assert model.training


def test_what_is_refused_anyway_is_compared_no_further(model, samples, engines):
    agreement = compared(model, samples)["torch-bf16"]
    # One answer in four is another: the first look, at 32 of 210, finds more than the two that are allowed.
    assert agreement.images == sum(engines) == 32
    assert agreement.changed > 2
    assert agreement.objection() == f"it changed {agreement.changed} of 32 validation answers, allowed is 1%"


def test_an_engine_that_agrees_is_compared_on_all_images(model, samples, engines, monkeypatch):
    monkeypatch.setattr(choice, "build", lambda name, precision, model, spec, *, streams=1: PlainEngine(model, spec))
    agreement = compared(model, samples)["openvino-bf16"]
    assert (agreement.images, agreement.of_images, agreement.changed) == (210, None, 0)
    assert agreement.objection() is None or "lost" not in agreement.objection()
    expected = PlainEngine(model.eval(), SPEC)
    right = sum(
        int(expected.score(SPEC.centre_view(precision.preprocessing.decode(sample.path))[None]).argmax())
        == sample.index
        for sample in samples[10:]
    )
    assert agreement.accuracy_reference == pytest.approx(right / 210)


def test_the_doubtful_answers_are_compared_first():
    """Of 100 answers one in ten is nearly a tie, and these are the ones that the engine gets wrong."""
    scores = torch.tensor([[0.9, 0.1]]).repeat(100, 1)
    scores[::10] = torch.tensor([0.51, 0.49])
    expected = scores.clone()
    expected[::10] = torch.tensor([0.49, 0.51])

    class Answers:
        def __init__(self, all_NK):
            self.all_NK = all_NK
            self.shown = set()

        def scores(self, images):
            self.shown |= set(images)
            return self.all_NK[list(images)].log()

    answers, reference = Answers(scores), Answers(expected)
    found = precision._hold(answers, reference, torch.zeros(100, dtype=torch.int64), ())
    assert set(range(0, 100, 10)) < reference.shown
    assert (len(answers.shown), len(reference.shown)) == (100, 32)
    assert (found.images, found.of_images, found.changed) == (32, 100, 10)

    answers = Answers(scores)
    known = [*range(0, 100, 10), *(number for number in range(100) if number % 10)]
    assert found == precision._hold(answers, Answers(expected), torch.zeros(100, dtype=torch.int64), known)
    assert answers.shown == set(known[:32]), "where the doubtful ones are known, no others are scored"


def test_an_order_that_does_not_fit_the_images_is_not_used(model, samples, engines):
    def compared(order):
        return precision.compare_precisions(model, SPEC, samples, stop_requested=lambda: False, doubtful_first=order)[
            "torch-bf16"
        ]

    plain = compared(())
    assert compared(range(220)) == plain == compared([0] * 210)
    assert compared(range(210)) != plain


def test_a_quicker_form_of_the_network_is_the_reference_where_there_is_one(model, samples, engines):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]))

        def forward(self, images):
            return self.logits.expand(len(images), -1)

    found = precision.compare_precisions(model, SPEC, samples, stop_requested=lambda: False, quick=Constant)
    # It knows one answer only, which is the right one for a third of the images.
    assert found["torch-bf16"].accuracy_reference == pytest.approx(1 / 3, abs=0.3)
    assert engines == []


def test_only_the_quickest_engine_of_a_cpu_is_compared(model, samples, monkeypatch):
    monkeypatch.setattr(choice, "build", lambda name, precision, model, spec, *, streams=1: PlainEngine(model, spec))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = compared(model, samples)
    assert isinstance(found["openvino-bf16"], Agreement)
    assert found["torch-bf16"] == "openvino-bf16 is quicker and was compared instead"


def test_of_many_images_some_that_are_spread_are_taken(model, samples, engines, monkeypatch):
    monkeypatch.setattr(precision, "MAX_IMAGES", 205)
    assert compared(model, samples)["torch-bf16"] == "195 validation images could be read, 200 are needed"


@pytest.mark.parametrize(
    ("count", "stop", "reason"),
    [
        (199, False, "the job had 199 validation images, 200 are needed"),
        (0, False, "the job had 0 validation images, 200 are needed"),
        (205, False, "195 validation images could be read, 200 are needed"),
        (220, True, "the job was stopped before they were compared"),
    ],
)
def test_where_nothing_is_compared_the_record_says_why(model, samples, engines, count, stop, reason):
    assert compared(model, samples[:count], stop) == {"openvino-bf16": reason, "torch-bf16": reason}


def test_a_failure_costs_a_warning_and_not_the_job(model, samples, engines, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("oneDNN")

    monkeypatch.setattr(choice, "build", fail)
    assert set(compared(model, samples).values()) == {"comparing failed: RuntimeError"}
    assert "oneDNN" in caplog.text
