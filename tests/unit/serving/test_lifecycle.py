"""A model is ready when it has proved itself, and not longer than it works."""

import threading

import pytest

from dogbreed.errors import BundleError, NotReadyError, TookTooLongError, UnreadableImageError
from dogbreed.serving.lifecycle import ModelLifecycle
from dogbreed.serving.payload import Scores

ANSWER = Scores(("pug",), [[0.0]])


class FakeEngine:
    """Raises what it is told to raise."""

    def __init__(self):
        self.predict_error = None
        self.test_error = None
        self.tests = 0

    def predict(self, images, check):
        if self.predict_error is not None:
            raise self.predict_error
        return ANSWER

    def self_test(self):
        self.tests += 1
        if self.test_error is not None:
            raise self.test_error


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def ready(engine):
    model = ModelLifecycle(lambda: engine)
    model.start().join(10)
    return model


def fail_with(error):
    raise error


def test_the_reason_follows_the_phases_until_the_self_test_has_passed(engine):
    loading, go_on, testing, finish = (threading.Event() for _ in range(4))

    def load():
        loading.set()
        assert go_on.wait(10)
        return engine

    def self_test():
        testing.set()
        assert finish.wait(10)

    engine.self_test = self_test
    model = ModelLifecycle(load)
    assert model.status() == "the model is waiting to be loaded"
    thread = model.start()
    assert loading.wait(10)
    assert model.status() == "loading the model"
    with pytest.raises(NotReadyError, match="loading the model"):
        model.predict([b"x"])
    go_on.set()
    assert testing.wait(10)
    assert "self-test is running" in model.status()
    with pytest.raises(NotReadyError, match="self-test"):
        model.predict([b"x"])
    finish.set()
    thread.join(10)
    assert model.status() is None
    assert model.predict([b"x"]) is ANSWER


def test_our_own_errors_are_shown_as_they_are():
    model = ModelLifecycle(lambda: fail_with(BundleError("/opt/ml/model holds no bundle.json")))
    model.start().join(10)
    assert model.status() == "/opt/ml/model holds no bundle.json"
    with pytest.raises(NotReadyError, match=r"bundle\.json"):
        model.predict([b"x"])


def test_of_other_errors_only_the_type_is_shown_and_the_log_has_the_rest(caplog):
    model = ModelLifecycle(lambda: fail_with(RuntimeError("secret path")))
    model.start().join(10)
    assert "RuntimeError" in model.status()
    assert "secret" not in model.status()
    assert "secret path" in caplog.text
    assert "Traceback" in caplog.text


def test_a_model_that_fails_its_first_self_test_is_never_ready(engine):
    engine.test_error = ArithmeticError("nan")
    model = ModelLifecycle(lambda: engine)
    model.start().join(10)
    assert "ArithmeticError" in model.status()
    with pytest.raises(NotReadyError):
        model.predict([b"x"])


def test_a_clients_mistake_does_not_put_the_model_in_doubt(engine, ready):
    engine.predict_error = UnreadableImageError("not an image")
    with pytest.raises(UnreadableImageError):
        ready.predict([b"x"])
    assert engine.tests == 1
    assert ready.status() is None


def test_an_unexpected_error_is_followed_by_a_self_test_that_may_pass(engine, ready):
    engine.predict_error = RuntimeError("out of memory for this one")
    with pytest.raises(RuntimeError, match="for this one"):
        ready.predict([b"x"])
    assert engine.tests == 2
    assert ready.status() is None
    engine.predict_error = None
    assert ready.predict([b"x"]) is ANSWER


def test_a_model_that_has_died_goes_back_to_not_ready(engine, ready, caplog):
    engine.predict_error = RuntimeError("CUDA error")
    engine.test_error = RuntimeError("CUDA error")
    with pytest.raises(RuntimeError, match="CUDA"):
        ready.predict([b"x"])
    assert "failed its self-test after an error: RuntimeError" in ready.status()
    assert "Traceback" in caplog.text
    with pytest.raises(NotReadyError, match="failed its self-test"):
        ready.predict([b"x"])
    assert engine.tests == 2  # it is not asked again


def test_a_prediction_that_does_not_return_makes_the_model_count_as_dead(engine):
    now = [100.0]
    model = ModelLifecycle(lambda: engine, stuck_after_s=60, clock=lambda: now[0])
    model.start().join(10)
    inside, leave = threading.Event(), threading.Event()

    def predict(images, check):
        inside.set()
        assert leave.wait(10)
        return ANSWER

    engine.predict = predict
    call = threading.Thread(target=model.predict, args=([b"x"],))
    call.start()
    assert inside.wait(10)
    now[0] = 160.0
    assert model.status() is None
    now[0] = 163.0
    assert model.status() == "a prediction has not gone on for 63 seconds"
    leave.set()
    call.join(10)
    assert model.status() is None


def test_a_prediction_that_goes_on_from_image_to_image_is_not_stuck_however_long_it_takes(engine):
    now = [100.0]
    model = ModelLifecycle(lambda: engine, stuck_after_s=60, clock=lambda: now[0])
    model.start().join(10)
    seen = []

    def predict(images, check):
        for _ in images:
            check()
            now[0] += 50
            seen.append(model.status())
        now[0] += 20
        seen.append(model.status())
        return ANSWER

    engine.predict = predict
    assert model.predict([b"x"] * 4) is ANSWER
    assert seen == [None] * 4 + ["a prediction has not gone on for 70 seconds"]
    assert model.status() is None


@pytest.mark.parametrize("ask", ["predict", "explain"])
def test_what_the_check_raises_ends_the_prediction_and_does_not_put_the_model_in_doubt(engine, ready, ask):
    def late():
        raise TookTooLongError("too late")

    def answer(_, check):
        check()
        return ANSWER

    engine.predict = engine.explain = answer
    with pytest.raises(TookTooLongError):
        getattr(ready, ask)([b"x"], late)
    assert engine.tests == 1
    assert ready.status() is None
