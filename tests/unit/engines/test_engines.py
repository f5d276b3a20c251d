"""Every engine answers as the plain network does, and what cannot be had says why."""

import os
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dogbreed import backbones
from dogbreed.backbones import HeadSpec
from dogbreed.engines import choice, cuda, openvino_cpu, torch_cpu
from dogbreed.engines.engine import PlainEngine, UnsuitableError, cpu_multiplies_bf16, describe
from dogbreed.engines.openvino_cpu import OpenVinoEngine, OpenVinoNetwork
from dogbreed.engines.torch_cpu import TorchCpuEngine
from dogbreed.preprocessing import PreprocessSpec

SPEC = PreprocessSpec.for_size(64)
needs_openvino = pytest.mark.skipif(not openvino_cpu.is_installed(), reason="the openvino package is not installed")
needs_bf16 = pytest.mark.skipif(not cpu_multiplies_bf16(), reason="this CPU has no instructions for bfloat16")


def make_model(name=backbones.TINY):
    torch.manual_seed(0)
    model = backbones.build(name, HeadSpec(5), image_size_px=64).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("name", [backbones.TINY, "resnet18"])
@pytest.mark.parametrize("build", [TorchCpuEngine, pytest.param(OpenVinoEngine, marks=needs_openvino)])
def test_float32_answers_are_those_of_the_plain_network(name, build):
    model = make_model(name)
    images = choice.draw(64, count=5)
    expected = PlainEngine(model, SPEC).score(images)
    engine = build(model, SPEC, "fp32")
    assert engine.precision == "fp32"
    torch.testing.assert_close(engine.score(images), expected, rtol=0, atol=1e-4)
    # In whatever order the pixels are stored, and one by one.
    torch.testing.assert_close(engine.score(images.contiguous()), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(engine.score(images[2:3]), expected[2:3], rtol=0, atol=1e-4)
    assert expected.std(0).max() > 1e-3  # the images do differ for this network


@needs_bf16
@pytest.mark.parametrize("build", [TorchCpuEngine, pytest.param(OpenVinoEngine, marks=needs_openvino)])
def test_bf16_answers_are_near_and_not_the_same(build):
    model = make_model("resnet18")
    images = choice.draw(64, count=5)
    expected = PlainEngine(model, SPEC).score(images)
    found = build(model, SPEC, "bf16").score(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp(), expected.exp(), rtol=0, atol=0.05)
    assert not torch.equal(found, expected)


@needs_openvino
def test_openvino_takes_in_as_many_calls_as_compute():
    engine = OpenVinoEngine(make_model(), SPEC, streams=2)
    assert engine.ahead == 2
    inside = [engine._free.get_nowait() for _ in range(4)]
    with pytest.raises(queue.Empty):
        engine._free.get_nowait()
    images = choice.draw(64, count=4)
    expected = PlainEngine(make_model(), SPEC).score(images)
    for request, image in zip(inside, images, strict=True):
        request.pixels_1SSC[0].copy_(image.permute(1, 2, 0))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda request: request.infer(), inside))
    found = torch.cat([request.logits_1K for request in inside]).log_softmax(dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@needs_openvino
def test_a_lone_image_gets_all_threads_and_several_get_one_each(monkeypatch):
    model = make_model("resnet18")
    engine = OpenVinoEngine(model, SPEC, streams=2, low_latency=True)
    taken = []

    def watched(name):
        free = getattr(engine, name)

        def get():
            taken.append(name)
            return free.get()

        monkeypatch.setattr(engine, name, SimpleNamespace(get=get, put=free.put))

    watched("_lone")
    watched("_free")
    images = choice.draw(64, count=3)
    expected = PlainEngine(model, SPEC).score(images)
    for which, queues in ((slice(0, 1), ["_lone"]), (slice(0, 3), ["_free"] * 3), (slice(1, 2), ["_lone"])):
        taken.clear()
        torch.testing.assert_close(engine.score(images[which]), expected[which], rtol=0, atol=1e-4)
        assert taken == queues
    # Beside another one it gets what is its own.
    taken.clear()
    alone = engine._solitude.begin()
    torch.testing.assert_close(engine.score(images[2:]), expected[2:], rtol=0, atol=1e-4)
    engine._solitude.end(alone=alone)
    assert taken == ["_free"]


@needs_openvino
@pytest.mark.parametrize(("streams", "low_latency"), [(1, True), (2, False)])
def test_nothing_is_compiled_twice_where_it_would_be_of_no_use(streams, low_latency):
    engine = OpenVinoEngine(make_model(), SPEC, streams=streams, low_latency=low_latency)
    assert engine._lone is engine._free


@needs_openvino
def test_the_network_for_lone_images_has_one_stream_of_all_threads():
    compiled = openvino_cpu._compile(make_model(), torch.zeros(1, 3, 64, 64), "fp32", [2, 1], pixels=SPEC)
    found = [(each.get_property("NUM_STREAMS"), each.get_property("INFERENCE_NUM_THREADS")) for each in compiled]
    assert found == [(2, 2), (1, 2)]


@needs_openvino
def test_scores_of_openvino_stay_when_the_next_are_computed():
    images = choice.draw(64, count=2)
    engine = OpenVinoEngine(make_model(), SPEC)
    first = engine.score(images[:1])
    kept = first.clone()
    engine.score(images[1:])
    engine.score(images[1:])
    assert torch.equal(first, kept)


@needs_openvino
def test_openvino_answers_several_threads_at_once():
    model = make_model()
    images = choice.draw(64, count=16)
    expected = PlainEngine(model, SPEC).score(images)
    engine = OpenVinoEngine(model, SPEC, streams=2)
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda i: engine.score(images[i % 16 : i % 16 + 1]), range(200)))
    for i, row in enumerate(rows):
        torch.testing.assert_close(row, expected[i % 16 : i % 16 + 1], rtol=0, atol=1e-4)


@needs_openvino
@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_a_compiled_network_gives_what_its_module_does_in_the_same_order(count):
    module = make_model().backbone
    images = torch.randn(count, 3, 64, 64)
    compiled = OpenVinoNetwork(module, images, "fp32", streams=2)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), module(images), rtol=1e-4, atol=1e-4)


@needs_openvino
def test_a_network_that_computes_something_else_when_compiled_is_refused():
    class Noisy(nn.Module):
        def forward(self, inputs):
            return inputs * torch.rand_like(inputs)

    with pytest.raises(UnsuitableError, match="computes something else in fp32"):
        OpenVinoNetwork(Noisy(), torch.randn(1, 3, 8, 8), "fp32", streams=1)


def test_openvino_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr(openvino_cpu, "is_installed", lambda: False)
    with pytest.raises(UnsuitableError, match="the openvino package is not installed"):
        OpenVinoEngine(make_model(), SPEC)


def test_a_cpu_without_bfloat16_says_so(monkeypatch):
    monkeypatch.setattr(torch_cpu, "cpu_multiplies_bf16", lambda: False)
    with pytest.raises(UnsuitableError, match="no instructions for bfloat16"):
        TorchCpuEngine(make_model(), SPEC, "bf16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_says_so():
    with pytest.raises(UnsuitableError, match="no GPU"):
        cuda.CudaEngine(make_model(), SPEC)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_gpu_answers_as_the_plain_network_does(precision):
    model = make_model("resnet18")
    images = choice.draw(64, count=45)
    expected = PlainEngine(model, SPEC).score(images)
    engine = cuda.CudaEngine(model, SPEC, precision)
    tolerance = 1e-3 if precision == "fp32" else 0.05
    for count in (1, 3, 32, 45, 2):
        torch.testing.assert_close(engine.score(images[:count]).exp(), expected[:count].exp(), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 2), (3, 4), (9, 16), (32, 32)])
def test_a_batch_is_padded_to_the_next_graph(count, size):
    assert cuda.next_size(count) == size


def test_an_engine_is_described_by_name_and_precision():
    assert describe(TorchCpuEngine(make_model(), SPEC)) == "torch-fp32"


@needs_openvino
def test_openvino_reports_to_nobody_that_it_is_used(tmp_path):
    """Its import alone would send an event and leave an identifier in the home folder."""
    script = """
import sys
from dogbreed import backbones
from dogbreed.backbones import HeadSpec
from dogbreed.engines.openvino_cpu import OpenVinoEngine
from dogbreed.preprocessing import PreprocessSpec
OpenVinoEngine(backbones.build("tiny", HeadSpec(2), image_size_px=32).eval(), PreprocessSpec.for_size(32))
assert "openvino.tools.ovc" in sys.modules
assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]
"""
    environ = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
