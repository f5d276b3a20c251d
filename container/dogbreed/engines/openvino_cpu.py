"""OpenVINO on the CPU: up to twice torch's speed. Optional: the `openvino` package may be absent.

The network is traced and converted in memory, in 0.3 s (ResNet-18) to 2 s (DenseNet-121); nothing is written.
OpenVINO's own entry point, `convert_model`, reports its use to its makers over the network, so its parts are called
directly; the import of the package alone does that too, and is kept from it.

Into an engine go pixels as they are, uint8 and channels last, and the graph normalises them; into a network what its
module takes.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
import queue
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dogbreed.engines.engine import Precision, UnsuitableError, cpu_multiplies_bf16, log_softmax
from dogbreed.engines.solitude import Solitude
from dogbreed.preprocessing import PreprocessSpec

_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}

_IMAGES = 4  # dimensions: N, C, H, W

# Images of one request of a network: larger ones take an eighth more for each (MobileNetV2, 4 and 16).
_CHUNK = 4

# How far a compiled network may be from its module on one example, of the length of the output.
_NEAR: dict[Precision, float] = {"fp32": 1e-3, "bf16": 0.1}


def is_installed() -> bool:
    """Whether the package is there; imports nothing."""
    return importlib.util.find_spec("openvino") is not None


def version() -> str:
    """Of the installed package, without importing it."""
    return importlib.metadata.version("openvino")


class _Request(NamedTuple):
    """One place to compute in, with the memory that belongs to it for good.

    Attributes:
        infer: computes `logits_1K` from `pixels_1SSC`, without the interpreter's lock.
    """

    infer: Callable[[], object]
    pixels_1SSC: Tensor
    logits_1K: Tensor


class OpenVinoEngine:
    """One compiled network; as many requests as there are streams compute at once, one thread each, and as many wait.

    Those that wait are in OpenVINO's own queue. Python would have to wake three threads, one after the other, before
    the next began to compute: with 8 clients two cores were idle for 6% of the time, and are for 1%.

    An image that comes while nothing is computed can have the threads of all streams, in the network compiled once more
    with a single stream: the answer takes 0.6 of the time on two cores, and 1.1 to 1.3 times the CPU time. See
    `Solitude` for when it does.

    Images are computed one by one: of a graph with the number of images left open, OpenVINO derives all shapes anew at
    each request, which takes MobileNetV2 2 to 3% longer. Four at once would be no quicker with it and 4% with ResNet-18
    (AVX2; what AMX would gain is not known).

    Args:
        model: normalised images -> logits; in eval mode, on the CPU.
        spec: how images are normalised.
        precision: fp32, or bf16 where the CPU has instructions for it.
        streams: requests that compute at once.
        low_latency: answer a lone image with all threads; takes the memory of the weights once more. Several images in
            one call keep to one thread each.

    Raises:
        UnsuitableError: the package is absent, or cannot convert this network.
    """

    name = "openvino"
    batch = 1
    gathers = False

    def __init__(
        self,
        model: nn.Module,
        spec: PreprocessSpec,
        precision: Precision = "fp32",
        *,
        streams: int = 1,
        low_latency: bool = False,
    ) -> None:
        self.precision = precision
        self.ahead = streams
        self._solitude = Solitude()
        example = torch.zeros(1, 3, spec.size_px, spec.size_px)
        wanted = [streams, 1] if low_latency and streams > 1 else [streams]
        compiled = _compile(model, example, precision, wanted, pixels=spec)
        self._free = _requests(compiled[0], streams + self.ahead)
        self._lone = _requests(compiled[1], 1) if len(compiled) > 1 else self._free

    def score(self, images_NCHW: Tensor) -> Tensor:
        """See `engine.Engine`."""
        alone = self._solitude.begin()
        try:
            if len(images_NCHW) > 1:
                return torch.cat([_score(image_CHW, self._free) for image_CHW in images_NCHW])
            return _score(images_NCHW[0], self._lone if alone and self._solitude.lasts else self._free)
        finally:
            self._solitude.end(alone=alone)


def _requests(compiled: Any, count: int) -> queue.SimpleQueue[_Request]:  # noqa: ANN401  optional package
    """So many requests of a compiled network, free to take."""
    free: queue.SimpleQueue[_Request] = queue.SimpleQueue()
    for _ in range(count):
        request = compiled.create_infer_request()
        pixels, logits = request.get_input_tensor().data, request.get_output_tensor().data
        free.put(
            _Request(partial(request.infer, share_outputs=True), torch.from_numpy(pixels), torch.from_numpy(logits))
        )
    return free


def _score(image_CHW: Tensor, free: queue.SimpleQueue[_Request]) -> Tensor:
    """One image, uint8 [3, S, S] -> float32 [1, K], with a request that is taken and given back."""
    request = free.get()
    try:
        request.pixels_1SSC[0].copy_(image_CHW.permute(1, 2, 0))
        request.infer()
        return log_softmax(request.logits_1K)
    finally:
        free.put(request)


class OpenVinoNetwork(nn.Module):
    """A network that does not learn, compiled: takes and gives what its module does, in float32.

    A batch is divided among the streams. Its answers on the example are held against the module's.

    Args:
        module: in eval mode, on the CPU; stays as it is.
        example: float32 input [N, ...]; of others the batch alone may differ.
        precision: of the arithmetic, fp32 or bf16.
        streams: threads that compute.

    Raises:
        UnsuitableError: the package is absent, cannot convert this module, or computes something else.
    """

    def __init__(self, module: nn.Module, example: Tensor, precision: Precision, *, streams: int) -> None:
        super().__init__()
        self._streams = streams
        (compiled,) = _compile(module, example[:1], precision, [streams])
        self._tensor = _import_openvino().Tensor
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(streams):
            self._free.put(compiled.create_infer_request())
        self._pool = ThreadPoolExecutor(streams)
        with torch.no_grad():
            expected = module(example)
        far = float((self(example) - expected).norm() / expected.norm().clamp(min=1e-12))
        if not far <= _NEAR[precision]:  # also of a NaN
            raise UnsuitableError(f"OpenVINO computes something else in {precision}: {far:.2g} of it differs")

    def forward(self, inputs: Tensor) -> Tensor:
        """Computes a batch, float32 [N, ...] -> float32 [N, ...]."""
        chunk = min(_CHUNK, math.ceil(len(inputs) / self._streams))
        return torch.cat(list(self._pool.map(self._infer, torch.split(inputs, chunk))))

    def _infer(self, inputs: Tensor) -> Tensor:
        laid_out = inputs.permute(0, 2, 3, 1) if inputs.dim() == _IMAGES else inputs
        request = self._free.get()
        try:
            tensor = self._tensor(laid_out.contiguous().numpy(), shared_memory=True)
            (outputs,) = request.infer(tensor, share_outputs=True).values()
            # The request's own memory, which its next call overwrites.
            return torch.from_numpy(outputs).clone()
        finally:
            self._free.put(request)


def _import_openvino() -> Any:  # noqa: ANN401  optional package
    """The package, without the one that reports its import to its makers and leaves a file in the home folder."""
    # None makes an import fail, and OpenVINO goes on without (importlib, "sys.modules").
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def _compile(
    module: nn.Module,
    example: Tensor,
    precision: Precision,
    streams: Sequence[int],
    *,
    pixels: PreprocessSpec | None = None,
) -> list[Any]:
    """The module, compiled once for each number of streams, among which the threads are divided.

    Images go in channels last.

    Args:
        module: in eval mode, on the CPU.
        example: one float32 input [1, ...].
        precision: of the arithmetic.
        streams: requests that compute at once. The largest number is also that of the threads.
        pixels: take one image as uint8 pixels [1, S, S, 3] and normalise it so; None takes any number of inputs as the
            module does.

    Raises:
        UnsuitableError: see `OpenVinoEngine`.
    """
    if not is_installed():
        raise UnsuitableError("the openvino package is not installed")
    if precision not in _HINTS:
        raise UnsuitableError(f"OpenVINO computes in fp32 or bf16 on a CPU, not in {precision}")
    if precision == "bf16" and not cpu_multiplies_bf16():
        raise UnsuitableError("this CPU has no instructions for bfloat16 (AMX or AVX512-BF16)")
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": str(max(streams)),
        # The container's CPUs are not known to be the machine's first.
        "ENABLE_CPU_PINNING": False,
    }
    try:
        openvino = _import_openvino()
        graph, kept_alive = _convert(module, example)
        graph.reshape([-1 if pixels is None else 1, *example.shape[1:]])
        if example.dim() == _IMAGES:
            graph = _take_images(graph, pixels)
        core = openvino.Core()
        compiled = [core.compile_model(graph, "CPU", settings | {"NUM_STREAMS": str(count)}) for count in streams]
        del kept_alive
    except Exception as error:  # whatever of a foreign network cannot be traced, converted or compiled
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsuitableError(f"OpenVINO cannot convert this network: {first_line[:200]}") from error
    return compiled


def _convert(module: nn.Module, example: Tensor) -> tuple[Any, object]:
    """OpenVINO's graph of a module, and what it reads from until it is compiled: it does not keep that alive."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.no_grad():
        # torch's warnings of its own deprecations and of a trace that holds for one size of image, as is meant.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        decoder = TorchScriptPythonDecoder(traced, example_input=example)
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder)), decoder


def _take_images(graph: Any, pixels: PreprocessSpec | None) -> Any:  # noqa: ANN401  optional package
    """The same graph for images in channels last, as they mostly lie in memory."""
    openvino = _import_openvino()
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(graph)
    steps.input().tensor().set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    if pixels is not None:
        steps.input().tensor().set_element_type(openvino.Type.u8)
        steps.input().preprocess().convert_element_type(openvino.Type.f32).mean(
            [255 * mean for mean in pixels.mean]
        ).scale([255 * std for std in pixels.std])
    return steps.build()
