"""The GPU engine: channels last, one precision, and one CUDA graph for each size of batch.

A graph replays a whole forward pass with one call, so that a small batch costs the GPU's time and not the launching of
a hundred kernels from Python. A batch is padded to the next size for which there is a graph.

Other threads may compute with their engines while one is built. They copy and replay, on streams of their own and
between buffers that were there before: that is allowed beside a capture in CUDA's thread-local mode, and no more is.
Whatever else concerns a whole device or process (capturing, pinned memory, emptying torch's caches) has one lock.

Sources: CUDA C++ Programming Guide, CUDA Graphs, Prohibited and Unhandled Operations; CUDA Runtime API,
cudaThreadExchangeStreamCaptureMode; torch's notes on CUDA semantics, CUDA Graphs.
"""

from __future__ import annotations

import gc
import logging
import threading
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dogbreed.engines.engine import FullError, Precision, UnsuitableError, exact_float32
from dogbreed.folding import accelerated
from dogbreed.preprocessing import PreprocessSpec

_LOGGER = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 32)
"""Batches for which there is a graph."""

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A graph may only be captured when its memory and its kernels have been chosen.
_WARM_UP_PASSES = 3
# The process's, as is what it guards: of two captures at once, or a capture and an emptied cache, one fails.
_ONE_AT_A_TIME = threading.Lock()


def release_unused() -> None:
    """Gives back the GPU's memory that torch holds and nobody uses, when no engine is being built; never raises."""
    if not torch.cuda.is_available():
        return
    with _ONE_AT_A_TIME:
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:  # also after a capture that failed: torch counts it as going on
            _LOGGER.warning("the GPU's memory cannot be given back: %s", _first_line(error))


@dataclass(frozen=True, slots=True)
class _Graph:
    replayed: torch.cuda.CUDAGraph
    pixels_NHWC: Tensor
    scores_NK: Tensor


@dataclass(frozen=True, slots=True)
class _Built:
    """What is on the GPU, and the way there.

    Attributes:
        stream: on which all of it was captured and is replayed.
        staged_NHWC: pinned memory for the largest batch, uint8 [N, S, S, 3]; from there the GPU copies by itself.
        forward: pixels -> scores; held because a graph knows addresses only.
        graphs: by size of batch.
    """

    device: torch.device
    stream: torch.cuda.Stream
    staged_NHWC: Tensor
    forward: Callable[[Tensor], Tensor]
    graphs: dict[int, _Graph]


class CudaEngine:
    """torch on a GPU.

    One batch at a time goes through: a GPU works on one graph as fast as on two. In fp32 convolutions and products are
    of float32 as well, and not of TF32, which torch would take for convolutions: nobody has held that against float32.

    Args:
        model: normalised images -> logits; in eval mode, on the CPU. A copy of it goes to the GPU.
        spec: how images are normalised.
        precision: bf16 needs the Ampere generation or later.
        device: the GPU; None is the thread's current one.

    Raises:
        UnsuitableError: there is no GPU, it does not compute in that precision, its memory is too small, or the network
            cannot be captured. Nothing of it is left on the GPU then.
    """

    name = "cuda"
    batch = SIZES[-1]
    gathers = True
    ahead = 0

    def __init__(
        self,
        model: nn.Module,
        spec: PreprocessSpec,
        precision: Precision = "fp16",
        *,
        device: torch.device | None = None,
    ) -> None:
        if not torch.cuda.is_available():
            raise UnsuitableError("there is no GPU that torch can use")
        self.precision = precision
        self._lock = threading.Lock()
        refusal: UnsuitableError | None = None
        try:
            with _ONE_AT_A_TIME:
                # An engine that was passed over may still be there: traced networks refer to themselves.
                gc.collect()
                self._built = _build(model, spec, precision, device)
        except torch.OutOfMemoryError:
            refusal = FullError("the GPU's memory is too small for this network")
        except RuntimeError as error:
            _LOGGER.warning("the network cannot be had on the GPU", exc_info=error)
            refusal = UnsuitableError(f"the network cannot be captured on this GPU: {_first_line(error)}")
        if refusal is not None:
            # Not from the error, and outside of its handler: its frames hold what was built so far.
            gc.collect()
            release_unused()
            raise refusal

    def score(self, images_NCHW: Tensor) -> Tensor:
        """See `engine.Engine`; more images than the largest graph takes go through in parts."""
        starts = range(0, len(images_NCHW), self.batch)
        return torch.cat([self._score(images_NCHW[start : start + self.batch]) for start in starts])

    @torch.inference_mode()
    def _score(self, images_NCHW: Tensor) -> Tensor:
        count = len(images_NCHW)
        built = self._built
        graph = built.graphs[next_size(count)]
        with self._lock, torch.cuda.device(built.device), torch.cuda.stream(built.stream):
            staged_NHWC = built.staged_NHWC[:count]
            staged_NHWC.copy_(images_NCHW.permute(0, 2, 3, 1))
            # What is left in the other rows are images of before; their scores are not looked at.
            graph.pixels_NHWC[:count].copy_(staged_NHWC, non_blocking=True)
            graph.replayed.replay()
            # Waits for the stream. Within the lock: the next call writes to the same memory, the pinned one included.
            return graph.scores_NK[:count].cpu()


class _Forward:
    """Pixels on the GPU, uint8 [N, S, S, 3] -> log-probabilities, float32 [N, K]."""

    def __init__(self, network: nn.Module, spec: PreprocessSpec, dtype: torch.dtype, device: torch.device) -> None:
        self._network = network
        self._dtype = dtype
        # Made here: nothing may come from the CPU while a graph is captured.
        self._mean = 255 * torch.tensor(spec.mean, device=device).view(1, 3, 1, 1)
        self._std = 255 * torch.tensor(spec.std, device=device).view(1, 3, 1, 1)

    def __call__(self, pixels_NHWC: Tensor) -> Tensor:
        inputs = (pixels_NHWC.permute(0, 3, 1, 2).float() - self._mean) / self._std
        logits: Tensor = self._network(inputs.to(self._dtype))
        return logits.float().log_softmax(dim=1)


def next_size(count: int) -> int:
    """The smallest size of a graph that takes so many images, 1 to the largest size."""
    return SIZES[bisect_left(SIZES, count)]


def _build(model: nn.Module, spec: PreprocessSpec, precision: Precision, device: torch.device | None) -> _Built:
    """Copies a network to the GPU and captures its graphs.

    Raises:
        UnsuitableError: the GPU does not compute in that precision.
        RuntimeError: CUDA refuses something; of a kind of its own where memory is short.
    """
    device = device or torch.device("cuda", torch.cuda.current_device())
    dtype, side = _DTYPES[precision], spec.size_px
    # Its own: torch's for captures is on whichever GPU was first, and of another GPU nothing would be captured. Graphs
    # that share memory must share one, and the work of others is not waited for.
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.device(device), torch.cuda.stream(stream):
        if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UnsuitableError("this GPU has no instructions for bfloat16 (Ampere or later)")
        example = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        # Folded on the CPU, which has the memory for a second network.
        network = accelerated(model, dtype, example).to(device)
        staged_NHWC = _pinned(SIZES[-1], side, side, 3)
        with torch.inference_mode(), exact_float32():
            forward = _Forward(network, spec, dtype, device)
            pool = torch.cuda.graph_pool_handle()
            # The largest first: the others fit into its memory.
            graphs = {size: _capture(forward, size, side, stream, pool) for size in reversed(SIZES)}
        stream.synchronize()
    return _Built(device, stream, staged_NHWC, forward, graphs)


def _capture(
    forward: Callable[[Tensor], Tensor],
    size: int,
    side_px: int,
    stream: torch.cuda.Stream,
    pool: Any,  # noqa: ANN401  torch keeps the type to itself
) -> _Graph:
    pixels_NHWC = torch.zeros(size, side_px, side_px, 3, dtype=torch.uint8, device=stream.device)
    for _ in range(_WARM_UP_PASSES):
        forward(pixels_NHWC)
    graph = torch.cuda.CUDAGraph()
    # By default anything unsafe that any other thread does, as allocating, would end both that and the capture.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        scores_NK = forward(pixels_NHWC)
    # What fails only here fails while another engine can still be taken, and no request waits for the first launch.
    graph.replay()
    return _Graph(graph, pixels_NHWC, scores_NK)


def _pinned(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
