"""What computes a network's answers: the interface that all engines share, and the plain network they are held against.

Knows torch and preprocessing; nothing of bundles, requests or jobs. Both sides use engines: a server answers with
one, and a job measures at its end whether the quick ones may be used.

Legend: N batch, S image side, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from dogbreed.preprocessing import PreprocessSpec

Precision = Literal["fp32", "bf16", "fp16"]


class UnsuitableError(Exception):
    """An engine cannot be had for this network on this machine; the message says why, in one sentence."""


class FullError(UnsuitableError):
    """The device's memory is too small for the network, at least for now."""


class Engine(Protocol):
    """A network in the form in which it is quickest. Several threads may ask at once.

    Attributes:
        name: of the library that computes: torch, openvino, cuda.
        precision: of the arithmetic.
        batch: images that it is given at once at most; more cost memory.
        gathers: several images at once are quicker than one by one, so that it pays to let requests wait for company.
        ahead: calls that it takes in besides those that compute, and begins the moment one of them ends.
    """

    name: str
    precision: Precision
    batch: int
    gathers: bool
    ahead: int

    def score(self, images_NCHW: Tensor) -> Tensor:
        """Scores prepared images.

        Args:
            images_NCHW: uint8 [N, 3, S, S] on the CPU; best in channels_last order, which costs no copy.

        Returns:
            float32 [N, K] on the CPU: natural logarithms of the softmax.
        """


class PlainEngine:
    """The network as it was trained, in float32 on one device: the reference for all others.

    Args:
        model: normalised images -> logits; in eval mode.
        spec: how images are normalised.
    """

    name = "plain"
    precision: Precision = "fp32"
    batch = 16
    gathers = False
    ahead = 0

    def __init__(self, model: nn.Module, spec: PreprocessSpec) -> None:
        self._model = model
        self._spec = spec
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def score(self, images_NCHW: Tensor) -> Tensor:
        """See `Engine`."""
        with exact_float32() if self._device.type == "cuda" else nullcontext():
            return log_softmax(self._model(self._spec.normalise(images_NCHW.to(self._device))))


@contextmanager
def exact_float32() -> Iterator[None]:
    """Lets a GPU compute float32 as float32, not as TF32, which has 10 bits of mantissa where that has 23.

    It is a setting of the process, looked at when a kernel is chosen: a CUDA graph keeps those with which it was
    captured. Nobody else may change it meanwhile.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def log_softmax(logits_NK: Tensor) -> Tensor:
    """Logits of any precision and device -> float32 log-probabilities on the CPU."""
    return logits_NK.float().log_softmax(dim=1).cpu()


def describe(engine: Engine) -> str:
    """Name and precision, as the log and the bundle write them: ``torch-bf16``."""
    return f"{engine.name}-{engine.precision}"


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 (AMX or AVX512-BF16); without them it is emulated, slowly."""
    return any(
        bool(getattr(torch.cpu, name, bool)()) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
