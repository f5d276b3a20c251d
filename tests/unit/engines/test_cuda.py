"""The GPU engine on a CPU that stands for a GPU: what it asks of torch, when, and what else may happen meanwhile."""

import contextlib
import gc
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
from tests.unit.engines.test_engines import make_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dogbreed.engines import choice, cuda
from dogbreed.engines.cuda import CudaEngine
from dogbreed.engines.engine import PlainEngine, UnsuitableError, describe, exact_float32
from dogbreed.errors import ConfigurationError
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.serving import loading

SPEC = PreprocessSpec.for_size(32)
CPU = torch.device("cpu")
PATIENCE_S = 30


class Recording(TorchDispatchMode):
    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        returned = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, returned))
        return returned


class Graph:
    """Computes what was recorded once more, between the same tensors."""

    def __init__(self):
        self.calls = []

    def replay(self):
        for function, args, kwargs, returned in self.calls:
            for kept, new in zip(tree_leaves(returned), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(kept, torch.Tensor):
                    kept.copy_(new)


class Stream:
    device = CPU

    def __init__(self, device):
        assert device == CPU

    def synchronize(self):
        pass


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose GPU is its CPU.

    `events` are what was done and whether the lock of the process was held; `captures` what `torch.cuda.graph` was
    told; `during` is called inside of each capture.
    """
    told = SimpleNamespace(events=[], captures=[], streams=[], during=lambda: None)

    def happen(what):
        told.events.append((what, cuda._ONE_AT_A_TIME.locked()))

    @contextlib.contextmanager
    def capture(graph, **settings):
        happen("capture")
        told.captures.append(settings)
        told.during()
        with Recording(graph.calls):
            yield

    @contextlib.contextmanager
    def on_stream(stream):
        told.streams.append(stream)
        yield

    def pinned(*shape):
        happen("pin")
        return torch.empty(shape, dtype=torch.uint8)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: happen("empty"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda _: pytest.fail("pinned while others may capture"))
    monkeypatch.setattr(cuda, "_pinned", pinned)
    return told


def make_engine(precision="fp32", model=None):
    return CudaEngine(model or make_model(), SPEC, precision, device=CPU)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_each_graph_answers_for_the_images_that_it_is_given(gpu, precision, tolerance):
    model = make_model()
    images = choice.draw(SPEC.size_px, count=45)
    expected = PlainEngine(model, SPEC).score(images).exp()
    engine = make_engine(precision, model)
    for count in (1, 3, 32, 45, 2):
        torch.testing.assert_close(engine.score(images[:count]).exp(), expected[:count], rtol=0, atol=tolerance)
    torch.testing.assert_close(engine.score(images[:3].contiguous()).exp(), expected[:3], rtol=0, atol=tolerance)


def test_captures_bear_other_threads_and_share_the_engines_own_stream(gpu):
    make_engine()
    assert [settings["capture_error_mode"] for settings in gpu.captures] == ["thread_local"] * len(cuda.SIZES)
    assert {settings["stream"] for settings in gpu.captures} == set(gpu.streams)
    assert len({id(settings["stream"]) for settings in gpu.captures}) == 1
    make_engine()
    assert gpu.captures[0]["stream"] is not gpu.captures[-1]["stream"]


def test_memory_is_pinned_once_before_the_first_capture_and_all_of_it_under_the_lock(gpu):
    engine = make_engine()
    assert gpu.events == [("pin", True), *[("capture", True)] * len(cuda.SIZES)]
    assert not cuda._ONE_AT_A_TIME.locked()
    engine.score(choice.draw(SPEC.size_px, count=5))
    assert len(gpu.events) == 1 + len(cuda.SIZES)


def test_two_engines_are_not_captured_at_once(gpu):
    inside, most = [], []

    def during():
        inside.append(None)
        most.append(len(inside))
        threading.Event().wait(0.02)
        inside.pop()

    gpu.during = during
    threads = [threading.Thread(target=make_engine) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert most == [1] * 3 * len(cuda.SIZES)


@pytest.mark.parametrize("release", [cuda.release_unused, loading.release_memory])
def test_caches_are_not_emptied_beside_a_capture(gpu, release):
    emptied = threading.Thread(target=release)

    def during():
        if not emptied.ident:
            emptied.start()
        emptied.join(0.05)
        assert ("empty", True) not in gpu.events

    gpu.during = during
    make_engine()
    emptied.join(PATIENCE_S)
    assert gpu.events[-1] == ("empty", True)


def test_a_model_is_asked_while_another_one_is_built(gpu):
    engine = make_engine()
    images = choice.draw(SPEC.size_px, count=2)
    expected = engine.score(images)
    answers = []

    def ask():
        answers.append(engine.score(images))

    def during():
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(PATIENCE_S)

    gpu.during = during
    make_engine()
    assert len(answers) == len(cuda.SIZES)
    assert all(torch.equal(answer, expected) for answer in answers)


def test_pinned_pixels_stay_until_the_gpu_has_answered(gpu):
    engine = make_engine()
    first, second = choice.draw(SPEC.size_px, count=2).split(1)
    expected = engine.score(second)
    graph = engine._built.graphs[1].replayed
    replay, inside, go_on = graph.replay, threading.Event(), threading.Event()

    def slowly():
        inside.set()
        assert go_on.wait(PATIENCE_S)
        replay()

    graph.replay = slowly
    answers = []
    one = threading.Thread(target=engine.score, args=(first,))
    one.start()
    assert inside.wait(PATIENCE_S)
    other = threading.Thread(target=lambda: answers.append(engine.score(second)))
    other.start()
    other.join(0.1)
    assert torch.equal(engine._built.staged_NHWC[0], first[0].permute(1, 2, 0))
    go_on.set()
    one.join(PATIENCE_S)
    other.join(PATIENCE_S)
    assert torch.equal(answers[0], expected)


@pytest.mark.parametrize("where", ["copy", "warm-up", "capture"])
def test_too_little_memory_is_a_reason_and_leaves_nothing_behind(gpu, monkeypatch, where):
    made = []
    accelerated = cuda.accelerated

    def remember(*of):
        network = accelerated(*of)
        made.append(weakref.ref(next(network.parameters())))
        if where != "capture":
            setattr(network, "to" if where == "copy" else "forward", no_memory)
        return network

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cuda, "accelerated", remember)
    if where == "capture":
        gpu.during = no_memory
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(made[0]()))
    with pytest.raises(UnsuitableError, match="the GPU's memory is too small for this network"):
        make_engine()
    monkeypatch.undo()
    assert emptied == [None]  # there was nothing left to hold it
    assert not cuda._ONE_AT_A_TIME.locked()


def test_what_cuda_refuses_is_a_reason_and_the_log_has_the_rest(gpu, caplog):
    def refused():
        raise RuntimeError(
            "CUDA error: operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA"
        )

    gpu.during = refused
    with pytest.raises(
        UnsuitableError, match=r"captured on this GPU: CUDA error: operation not permitted .* capturing$"
    ):
        make_engine()
    assert "TORCH_USE_CUDA_DSA" in caplog.text
    assert "Traceback" in caplog.text
    gpu.during = lambda: None
    make_engine()


def test_a_gpu_that_has_failed_gives_nothing_back_and_the_server_goes_on(gpu, monkeypatch, caplog):
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", broken)
    loading.release_memory()
    assert "cannot be given back: CUDA error: an illegal memory access" in caplog.text


def test_where_the_gpu_is_too_small_the_cpu_serves_and_says_why(gpu, monkeypatch):
    def no_memory():
        raise torch.OutOfMemoryError("CUDA out of memory")

    gpu.during = no_memory
    monkeypatch.setattr(choice, "CudaEngine", lambda *of: CudaEngine(*of, device=CPU))
    found = choice.choose(make_model(), SPEC, {})
    assert found.engine.name in ("openvino", "torch")
    assert "cuda-fp32: the GPU's memory is too small for this network" in found.reason
    with pytest.raises(ConfigurationError, match="cuda-fp32: the GPU's memory is too small"):
        choice.choose(make_model(), SPEC, {}, wish=choice.Wish("cuda", "fp32"))


def test_a_gpu_that_is_full_of_other_models_is_not_passed_over(gpu, monkeypatch):
    """They may be unloaded; the CPU would be slow for as long as this one stays."""

    def no_memory():
        raise torch.OutOfMemoryError("CUDA out of memory")

    gpu.during = no_memory
    monkeypatch.setattr(choice, "CudaEngine", lambda *of: CudaEngine(*of, device=CPU))
    with pytest.raises(MemoryError, match="the GPU's memory is too small"):
        choice.choose(make_model(), SPEC, {}, shared=True)


def test_an_engine_that_was_passed_over_is_gone_when_the_next_is_captured(gpu, monkeypatch):
    built, left = [], []

    def build(model, spec, precision):
        gc.collect()
        left.extend(one() for one in built)
        engine = CudaEngine(model, spec, precision, device=CPU)
        built.append(weakref.ref(engine._built.forward))
        if precision != "fp32":
            engine.score = lambda images: torch.full((len(images), 5), torch.nan)
        return engine

    monkeypatch.setattr(choice, "CudaEngine", build)
    record = choice.Agreement(400, 0, 0.9, 0.9, 0.0)
    found = choice.choose(make_model(), SPEC, {"cuda-bf16": record, "cuda-fp16": record})
    assert describe(found.engine) == "cuda-fp32"
    assert len(built) == 3
    assert left == [None] * 3


def settings():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture
def tf32():
    """A process in which TF32 is allowed for all, as in a job."""
    before = settings()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures("tf32")
def test_float32_is_captured_without_tf32_and_the_setting_is_the_same_as_before_afterwards(gpu, monkeypatch):
    seen = []

    class Watched(cuda._Forward):
        def __call__(self, pixels):
            seen.append(settings())
            return super().__call__(pixels)

    monkeypatch.setattr(cuda, "_Forward", Watched)
    make_engine()
    assert set(seen) == {(False, False)}
    assert settings() == (True, True)


@pytest.mark.usefixtures("tf32")
def test_the_setting_comes_back_when_computing_fails():
    def compute():
        with exact_float32():
            assert settings() == (False, False)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        compute()
    assert settings() == (True, True)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize(("device", "expected"), [("cuda", (False, False)), ("cpu", (True, True))])
def test_the_reference_is_float32_on_a_gpu_too(device, expected):
    seen = []
    model = make_model()
    model.register_forward_hook(lambda *_: seen.append(settings()))
    engine = PlainEngine(model, SPEC)
    engine._device = SimpleNamespace(type=device)
    images = SimpleNamespace(to=lambda _: choice.draw(SPEC.size_px))
    assert engine.score(images).shape == (2, 5)
    assert seen == [expected]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_a_model_answers_while_others_are_loaded_and_deleted():
    model = make_model("resnet18")
    images = choice.draw(SPEC.size_px, count=5)
    engine = CudaEngine(model, SPEC, "fp32")
    expected = engine.score(images)
    stop, answers, errors = threading.Event(), [], []

    def ask():
        try:
            while not stop.is_set():
                answers.append(engine.score(images))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        CudaEngine(model, SPEC, "fp32").score(images)
        loading.release_memory()
    stop.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not errors
    assert answers
    assert all(torch.allclose(answer, expected, rtol=0, atol=1e-5) for answer in answers)
