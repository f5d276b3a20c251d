"""The GPU engine: half precision, channels last, and one CUDA graph for each size of batch.

A graph replays a whole forward pass with one call, so that a small batch costs the GPU's time and not the launching of
a hundred kernels from Python. A batch is padded to the next size for which there is a graph.
"""

from __future__ import annotations

import copy
import threading
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dogbreed.engines.engine import Precision, UnsuitableError
from dogbreed.folding import accelerated
from dogbreed.preprocessing import PreprocessSpec

SIZES = (1, 2, 4, 8, 16, 32)
"""Batches for which there is a graph."""

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A graph may only be captured when its memory and its kernels have been chosen.
_WARM_UP_PASSES = 3


@dataclass(frozen=True, slots=True)
class _Graph:
    replayed: torch.cuda.CUDAGraph
    pixels_NHWC: Tensor
    scores_NK: Tensor


class CudaEngine:
    """torch on a GPU.

    One batch at a time goes through: a GPU works on one graph as fast as on two.

    Args:
        model: normalised images -> logits; in eval mode. A copy of it goes to the GPU.
        spec: how images are normalised.
        precision: bf16 needs the Ampere generation or later.
        device: the GPU.

    Raises:
        UnsuitableError: there is no GPU, it does not compute in that precision, or its memory is too small.
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
        if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UnsuitableError("this GPU has no instructions for bfloat16 (Ampere or later)")
        self.precision = precision
        self._side_px = spec.size_px
        self._dtype = _DTYPES[precision]
        self._device = device or torch.device("cuda", torch.cuda.current_device())
        # Made here: nothing may come from the CPU while a graph is captured.
        self._mean = 255 * torch.tensor(spec.mean, device=self._device).view(1, 3, 1, 1)
        self._std = 255 * torch.tensor(spec.std, device=self._device).view(1, 3, 1, 1)
        self._lock = threading.Lock()
        example = torch.randn(1, 3, spec.size_px, spec.size_px, generator=torch.Generator().manual_seed(0))
        self._network = accelerated(copy.deepcopy(model).to(self._device), self._dtype, example.to(self._device))
        self._graphs: dict[int, _Graph] = {}
        try:
            pool = torch.cuda.graph_pool_handle()
            # The largest first: the others fit into its memory.
            for size in reversed(SIZES):
                self._graphs[size] = self._capture(size, pool)
        except torch.OutOfMemoryError as error:
            raise UnsuitableError("the GPU's memory is too small for this network") from error

    def score(self, images_NCHW: Tensor) -> Tensor:
        """See `engine.Engine`; more images than the largest graph takes go through in parts."""
        starts = range(0, len(images_NCHW), self.batch)
        return torch.cat([self._score(images_NCHW[start : start + self.batch]) for start in starts])

    @torch.inference_mode()
    def _score(self, images_NCHW: Tensor) -> Tensor:
        count = len(images_NCHW)
        pixels_NHWC = images_NCHW.permute(0, 2, 3, 1).contiguous().pin_memory()
        with self._lock, torch.cuda.device(self._device):
            graph = self._graphs[next_size(count)]
            # What is left in the other rows are images of before; their scores are not looked at.
            graph.pixels_NHWC[:count].copy_(pixels_NHWC, non_blocking=True)
            graph.replayed.replay()
            # Waits for the GPU. Within the lock: the next replay writes to the same memory.
            return graph.scores_NK[:count].cpu()

    def _capture(self, size: int, pool: Any) -> _Graph:  # noqa: ANN401  torch keeps the type to itself
        side = self._side_px
        with torch.inference_mode(), torch.cuda.device(self._device):
            pixels_NHWC = torch.zeros(size, side, side, 3, dtype=torch.uint8, device=self._device)
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UP_PASSES):
                    self._compute(pixels_NHWC)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                scores_NK = self._compute(pixels_NHWC)
        return _Graph(graph, pixels_NHWC, scores_NK)

    def _compute(self, pixels_NHWC: Tensor) -> Tensor:
        inputs = self._normalise(pixels_NHWC.permute(0, 3, 1, 2))
        logits: Tensor = self._network(inputs.to(self._dtype))
        return logits.float().log_softmax(dim=1)

    def _normalise(self, images_NCHW: Tensor) -> Tensor:
        return (images_NCHW.float() - self._mean) / self._std


def next_size(count: int) -> int:
    """The smallest size of a graph that takes so many images, 1 to the largest size."""
    return SIZES[bisect_left(SIZES, count)]
