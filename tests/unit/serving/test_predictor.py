"""Served scores are the network's own, whatever the batch, and bad images are named."""

import io
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.serving.test_admission import until

from dogbreed import artifacts, backbones, preprocessing
from dogbreed.artifacts import Bundle
from dogbreed.backbones import HeadSpec
from dogbreed.calibration import Calibration, Familiarity
from dogbreed.engines.engine import PlainEngine
from dogbreed.errors import BundleError, NoHeatMapError, TookTooLongError, UnreadableImageError
from dogbreed.labels import Labels
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.serving import heatmap
from dogbreed.serving.predictor import Predictor

LABELS = Labels.from_folders(["001.Affenpinscher", "002.Boxer", "003.Pug"])


def make_bundle(**changes):
    torch.manual_seed(0)
    model = backbones.build(backbones.TINY, HeadSpec(3), image_size_px=64)
    facts = {
        "backbone": backbones.TINY,
        "head": HeadSpec(3),
        "labels": LABELS,
        "preprocessing": PreprocessSpec.for_size(64),
        "weights": artifacts.clone_weights(model),
        "hyperparameters": {},
        "metrics": {},
        "data_fingerprint": "none",
    }
    return Bundle(**(facts | changes))


def make_served(**changes):
    return served_by(make_bundle(**changes))


def served_by(bundle=None, **settings):
    bundle = bundle or make_bundle()
    return Predictor(bundle, PlainEngine(bundle.build(), bundle.preprocessing), **settings)


def photo(seed, image_format="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (70 + seed, 90, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=image_format)
    return file.getvalue()


@pytest.fixture
def served():
    return make_served()


def test_scores_are_the_log_softmax_of_the_networks_logits(served):
    bundle = make_bundle()
    view = bundle.preprocessing.centre_view(preprocessing.decode(photo(1)))
    with torch.inference_mode():
        expected = bundle.build()(bundle.preprocessing.normalise(view[None])).log_softmax(1)[0]
    scores = served.predict([photo(1)])
    assert scores.labels == ("Affenpinscher", "Boxer", "Pug")
    assert scores.log_probabilities[0] == pytest.approx(expected.tolist(), abs=1e-6)
    assert math.fsum(math.exp(value) for value in scores.log_probabilities[0]) == pytest.approx(1, abs=1e-6)


class Counting(PlainEngine):
    """Takes up to four images at once, and notes how many came and in how many threads."""

    batch = 4

    def __init__(self, bundle):
        super().__init__(bundle.build(), bundle.preprocessing)
        self.sizes, self.threads = [], set()

    def score(self, images_NCHW):
        self.sizes.append(len(images_NCHW))
        self.threads.add(threading.get_ident())
        return super().score(images_NCHW)


@pytest.mark.parametrize(("count", "most"), [(2, 1), (5, 3), (11, 4)])
def test_helpers_share_the_images_of_a_request(served, count, most):
    bundle = make_bundle()
    engine = Counting(bundle)
    shared = Predictor(bundle, engine, lanes=2, helpers=1)
    photos = [photo(seed) for seed in range(count)]
    alone = served.predict(photos).log_probabilities
    for row, expected in zip(shared.predict(photos).log_probabilities, alone, strict=True):
        assert row == pytest.approx(expected, abs=1e-5)
    assert (sum(engine.sizes), max(engine.sizes)) == (count, most)


def test_of_shared_images_the_first_bad_one_is_named(served):
    photos = [photo(1), b"no image", photo(2), b"nor this", photo(3)]
    with pytest.raises(UnreadableImageError, match=r"^image 1 "):
        served_by(helpers=3).predict(photos)


def test_probabilities_are_those_of_the_bundles_temperature(served):
    warm = make_served(calibration=Calibration(2.5, 100, 1.0, 0.9, 0.2, 0.1))
    (plain,), (scores,) = served.predict([photo(1)]).log_probabilities, warm.predict([photo(1)]).log_probabilities
    assert scores == pytest.approx((torch.tensor(plain) / 2.5).log_softmax(0).tolist(), abs=1e-6)
    assert scores != pytest.approx(plain, abs=1e-3)
    assert max(range(3), key=scores.__getitem__) == max(range(3), key=plain.__getitem__)


def test_many_images_are_scored_in_order_over_several_chunks(served, monkeypatch):
    monkeypatch.setattr(PlainEngine, "batch", 2)
    images = [photo(seed) for seed in range(5)]
    together = served.predict(images).log_probabilities
    alone = [served.predict([image]).log_probabilities[0] for image in images]
    assert len(together) == 5
    for row, expected in zip(together, alone, strict=True):
        assert row == pytest.approx(expected, abs=1e-5)
    assert together[0] != pytest.approx(together[1], abs=1e-5)  # the images do differ for this network


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF"])
def test_every_format_is_found_out_by_the_decoder(served, image_format):
    assert len(served.predict([photo(3, image_format)]).log_probabilities) == 1


def test_an_undecodable_image_is_named_by_its_position(served, monkeypatch):
    monkeypatch.setattr(PlainEngine, "batch", 2)
    with pytest.raises(UnreadableImageError, match=r"image 3 \(counted from 0\) cannot be decoded: it is none of BMP"):
        served.predict([photo(0), photo(1), photo(2), b"text"])


def test_a_single_undecodable_image_needs_no_position_and_shows_no_python(served):
    with pytest.raises(UnreadableImageError, match=r"^the image cannot be decoded: it is none of") as caught:
        served.predict([b"text"])
    assert "BytesIO" not in str(caught.value)


def test_a_truncated_image_is_the_clients_mistake(served):
    with pytest.raises(UnreadableImageError, match="truncated"):
        served.predict([photo(1, "JPEG")[:-200]])


def test_requests_that_come_together_are_computed_together_and_answered_apart():
    bundle = make_bundle()

    class Slow(PlainEngine):
        gathers = True

        def __init__(self, *of):
            super().__init__(*of)
            self.sizes = []
            self.first_is_in, self.go_on = threading.Event(), threading.Event()

        def score(self, images):
            self.sizes.append(len(images))
            self.first_is_in.set()
            assert self.go_on.wait(10)
            return super().score(images)

    engine = Slow(bundle.build(), bundle.preprocessing)
    served = Predictor(bundle, engine, lanes=2)
    assert served.concurrent == 32
    served = Predictor(bundle, engine)
    alone = make_served()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(served.predict, [photo(0)])]
        assert engine.first_is_in.wait(10)
        calls += [pool.submit(served.predict, [photo(seed)]) for seed in (1, 2, 3)]
        until(lambda: len(served.score._queue) == 3)
        engine.go_on.set()
        rows = [call.result(10).log_probabilities[0] for call in calls]
    assert engine.sizes == [1, 3]
    for seed, row in enumerate(rows):
        assert row == pytest.approx(alone.predict([photo(seed)]).log_probabilities[0], abs=1e-5)


def test_before_each_image_and_each_call_of_the_engine_it_is_asked_whether_to_go_on(monkeypatch):
    monkeypatch.setattr(PlainEngine, "batch", 2)
    done = []
    served = served_by()
    view, score = served.view, served.score
    monkeypatch.setattr(served, "view", lambda *of: done.append("image") or view(*of))
    monkeypatch.setattr(served, "score", lambda views: done.append("engine") or score(views))
    served.predict([photo(seed) for seed in range(3)], lambda: done.append("check"))
    assert done == ["check", "image", "check", "image", "check", "engine", "check", "image", "check", "engine"]


@pytest.mark.parametrize("calls", [0, 1, 4])
def test_a_request_ends_where_the_check_objects_and_no_further_image_is_computed(monkeypatch, calls):
    served = served_by()
    decoded = []
    view = served.view
    monkeypatch.setattr(served, "view", lambda *of: decoded.append(of) or view(*of))
    left = iter(range(calls))

    def check():
        if next(left, None) is None:
            raise TookTooLongError("too late")

    with pytest.raises(TookTooLongError):
        served.predict([photo(seed) for seed in range(5)], check)
    assert len(decoded) == calls


def test_a_heat_map_is_not_drawn_when_the_check_objects():
    def network():
        raise AssertionError("the network was built again")

    left = iter([None, None])  # for the image and the engine

    def check():
        if next(left, "none") == "none":
            raise TookTooLongError("too late")

    with pytest.raises(TookTooLongError):
        served_by(network=network).explain(photo(1), check)


def test_the_self_test_passes_for_a_good_model(served):
    served.self_test()


def test_the_self_test_notices_weights_that_are_not_numbers():
    weights = {
        name: torch.full_like(tensor, math.nan) if "head" in name else tensor
        for name, tensor in make_bundle().weights.items()
    }
    with pytest.raises(ArithmeticError, match="not finite"):
        make_served(weights=weights).self_test()


def test_the_self_test_notices_another_number_of_classes():
    with pytest.raises(ArithmeticError, match="3 outputs, but the bundle names 2 classes"):
        make_served(labels=Labels.from_folders(["a", "b"])).self_test()


def test_weights_of_another_network_are_refused():
    with pytest.raises(BundleError, match="do not fit"):
        make_served(head=HeadSpec(7))


def test_too_many_pixels_are_the_clients_mistake():
    served = served_by(max_pixels=70 * 90)
    assert len(served.predict([photo(0)]).log_probabilities) == 1
    with pytest.raises(UnreadableImageError, match="90x71 pixels are more than the allowed 6300"):
        served.predict([photo(1)])


def test_an_observer_is_told_what_decoding_and_the_network_took():
    told = []

    class Observer:
        def decoded(self, images, seconds):
            told.append(("decoded", images, seconds > 0))

        def computed(self, images, seconds):
            told.append(("computed", images, seconds > 0))

    served_by(observer=Observer()).predict([photo(0)] * 17)
    assert told == [
        ("decoded", 16, True),
        ("computed", 16, True),
        ("decoded", 1, True),
        ("computed", 1, True),
    ]


def explaining(**changes):
    """A predictor with heat maps, and the list of networks that it built for them."""
    bundle, built = make_bundle(**changes), []

    def network():
        built.append(bundle.build())
        return built[-1]

    return served_by(bundle, network=network), built


@pytest.mark.skipif(not heatmap.is_installed(), reason="the captum package is not installed")
def test_the_heat_map_is_of_the_answer_and_the_network_is_built_once_when_it_is_asked_for():
    served, built = explaining()
    plain = served.predict([photo(1)])
    assert built == []
    scores = served.explain(photo(1))
    served.explain(photo(2))
    assert len(built) == 1
    assert scores.log_probabilities == plain.log_probabilities
    spec = make_bundle().preprocessing
    view = spec.centre_view(preprocessing.decode(photo(1)))
    index = max(range(3), key=plain.log_probabilities[0].__getitem__)
    expected = heatmap.HeatMaps(make_bundle().build(), spec).draw(view, index)
    assert scores.heat_map.values == pytest.approx(np.array(expected.tolist()), abs=1e-5)


@pytest.mark.skipif(not heatmap.is_installed(), reason="the captum package is not installed")
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (73, 73), (400, 31)])
def test_the_box_is_the_part_of_the_image_that_the_network_sees(size):
    served, _ = explaining()
    width, height = size
    # Each pixel says where it is, and the corners of what is seen say so too.
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).round()[None, :]
    pixels[..., 1] = np.linspace(0, 255, height).round()[:, None]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    left, top, wide, high = served.explain(file.getvalue()).heat_map.box
    view = served.view(file.getvalue()).float() / 255
    seen = [view[0].min(), view[1].min(), view[0].max() - view[0].min(), view[1].max() - view[1].min()]
    assert (left, top, wide, high) == pytest.approx([float(one) for one in seen], abs=0.03)
    assert left + wide <= 1
    assert top + high <= 1


def test_where_heat_maps_are_switched_off_a_sentence_says_how_to_allow_them(served):
    with pytest.raises(NoHeatMapError, match="DOGBREED_HEATMAPS=true allows them"):
        served.explain(photo(1))


def test_a_network_that_cannot_be_had_again_is_a_sentence_and_is_tried_again():
    def gone():
        raise heatmap.NoMapError("the model's files have changed")

    served = served_by(network=gone)
    for _ in range(2):
        with pytest.raises(NoHeatMapError, match="the model's files have changed") as caught:
            served.explain(photo(1))
        assert caught.value.status == 501


def test_familiarity_is_judged_before_the_temperature_and_by_the_bundles_threshold(served):
    plain = served.predict([photo(1), photo(2)])
    assert plain.known_from is None
    sureness = [math.exp(max(row)) for row in plain.log_probabilities]
    assert plain.familiarity == pytest.approx(sureness, abs=1e-6)
    judge = make_served(
        calibration=Calibration(2.5, 100, 1.0, 0.9, 0.2, 0.1), familiarity=Familiarity(sum(sureness) / 2, 100, 0.95)
    )
    scores = judge.predict([photo(1), photo(2)])
    assert scores.familiarity == pytest.approx(sureness, abs=1e-6)
    assert scores.known_from == pytest.approx(sum(sureness) / 2)


def test_large_images_share_a_budget_and_memory_is_trimmed_when_one_is_done(monkeypatch):
    monkeypatch.setattr(preprocessing, "LARGE_PIXELS", 80 * 90)
    monkeypatch.setattr("dogbreed.serving.predictor._LARGE_PIXELS_AT_ONCE", 2 * 81 * 90)
    small, large = photo(10), photo(11)  # 80 x 90 and 81 x 90 pixels
    trimmed, decoding, most, go_on = [], [], [], threading.Event()
    pixels = preprocessing._pixels

    def slowly(image):
        if image.height == 81:
            decoding.append(image)
            most.append(len(decoding))
            assert go_on.wait(30)
            decoding.remove(image)
        return pixels(image)

    monkeypatch.setattr(preprocessing, "_pixels", slowly)
    served = served_by(trim=lambda: trimmed.append(len(decoding)))
    with ThreadPoolExecutor(5) as threads:
        asked = [threads.submit(served.predict, [large]) for _ in range(5)]
        until(lambda: len(decoding) == 2)
        served.predict([small])
        assert trimmed == []
        go_on.set()
        rows = [one.result(30).log_probabilities for one in asked]
    assert max(most) == 2
    assert len(trimmed) == 5
    assert rows == [rows[0]] * 5


def test_a_large_image_that_is_none_gives_back_what_it_took(monkeypatch):
    monkeypatch.setattr(preprocessing, "LARGE_PIXELS", 1)
    served = served_by()
    for _ in range(2):
        with pytest.raises(UnreadableImageError):
            served.predict([photo(1)[:-2000]])
    assert served._large._taken == 0
