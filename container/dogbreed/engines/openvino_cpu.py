"""OpenVINO on the CPU: about twice torch's speed at one image. Optional: the `openvino` package may be absent.

The network is traced and converted in memory, in a second or less; nothing is written. OpenVINO's own entry point for
that, `convert_model`, reports its use to its makers over the network, so its parts are called directly; the import of
the package alone does that too, and is kept from it.

Pixels go in as they are, uint8 and channels last; the graph normalises them.
"""

from __future__ import annotations

import importlib
import importlib.util
import queue
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dogbreed.engines.engine import Precision, UnsuitableError, cpu_multiplies_bf16, log_softmax
from dogbreed.preprocessing import PreprocessSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}


def is_installed() -> bool:
    """Whether the package is there; imports nothing."""
    return importlib.util.find_spec("openvino") is not None


class OpenVinoEngine:
    """One compiled network and as many requests as may run at once, one thread each.

    Args:
        model: normalised images -> logits; in eval mode, on the CPU.
        spec: how images are normalised.
        precision: fp32, or bf16 where the CPU has instructions for it.
        streams: requests that compute at once; a further one waits.

    Raises:
        UnsuitableError: the package is absent, or cannot convert this network.
    """

    name = "openvino"
    # One thread, AMD EPYC, one image against eight: resnet18 32 and 32 images/s, in bf16 60 and 60.
    batch = 4
    gathers = False

    def __init__(
        self, model: nn.Module, spec: PreprocessSpec, precision: Precision = "fp32", *, streams: int = 1
    ) -> None:
        if not is_installed():
            raise UnsuitableError("the openvino package is not installed")
        if precision not in _HINTS:
            raise UnsuitableError(f"OpenVINO computes in fp32 or bf16 on a CPU, not in {precision}")
        if precision == "bf16" and not cpu_multiplies_bf16():
            raise UnsuitableError("this CPU has no instructions for bfloat16 (AMX or AVX512-BF16)")
        self.precision = precision
        try:
            compiled = _compile(model, spec, _HINTS[precision], streams)
        except Exception as error:  # whatever of a foreign network cannot be traced, converted or compiled
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UnsuitableError(f"OpenVINO cannot convert this network: {first_line[:200]}") from error
        self._tensor = _import_openvino().Tensor
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(streams):
            self._requests.put(compiled.create_infer_request())

    def score(self, images_NCHW: Tensor) -> Tensor:
        """See `engine.Engine`."""
        pixels_NHWC = images_NCHW.permute(0, 2, 3, 1).contiguous().numpy()
        with self._request() as request:
            (logits,) = request.infer({0: self._tensor(pixels_NHWC, shared_memory=True)}).values()
        return log_softmax(torch.from_numpy(logits))

    @contextmanager
    def _request(self) -> Iterator[Any]:
        request = self._requests.get()
        try:
            yield request
        finally:
            self._requests.put(request)


def _import_openvino() -> Any:  # noqa: ANN401  optional package
    """The package, without the one that reports its import to its makers and leaves a file in the home folder."""
    # None makes an import fail, and OpenVINO goes on without (importlib, "sys.modules").
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def _compile(model: nn.Module, spec: PreprocessSpec, hint: str, streams: int) -> Any:  # noqa: ANN401  optional package
    """The network, compiled: uint8 [N, S, S, 3] -> logits [N, K], N open."""
    openvino = _import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    from openvino.preprocess import PrePostProcessor

    side = spec.size_px
    example = torch.zeros(1, 3, side, side)
    with warnings.catch_warnings(), torch.no_grad():
        # torch's warnings of its own deprecations and of a trace that holds for one size of image, as is meant.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, example, check_trace=False)  # type: ignore[no-untyped-call]
        # By a name of its own: the graph does not keep it alive, and reads from it until it is compiled.
        decoder = TorchScriptPythonDecoder(traced, example_input=example)
        frontend = FrontEndManager().load_by_framework("pytorch")
        graph = frontend.convert(frontend.load(decoder))
    graph.reshape([-1, 3, side, side])
    steps = PrePostProcessor(graph)
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(openvino.Type.f32).mean([255 * mean for mean in spec.mean]).scale(
        [255 * std for std in spec.std]
    )
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(streams),
        # The container's CPUs are not known to be the machine's first.
        "ENABLE_CPU_PINNING": False,
    }
    return openvino.Core().compile_model(steps.build(), "CPU", settings)
