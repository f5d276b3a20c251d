"""Which engine serves a model, and why.

What the user names is taken, or refused with the reason. ``auto`` takes the quickest engine that can be had: on a GPU
`cuda`, on a CPU OpenVINO before torch; half precision only where the bundle records that the validation images showed
no loss beyond the bound (`agreement`), else float32. Whatever is taken must first answer a drawn batch as the plain
network does.

Knows the engines and the record of a bundle; nothing of requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dogbreed.engines.agreement import Agreement
from dogbreed.engines.cuda import CudaEngine
from dogbreed.engines.engine import Engine, FullError, PlainEngine, Precision, UnsuitableError, describe
from dogbreed.engines.openvino_cpu import OpenVinoEngine
from dogbreed.engines.torch_cpu import TorchCpuEngine
from dogbreed.errors import ConfigurationError
from dogbreed.preprocessing import PreprocessSpec

TOLERANCE = 1e-3
"""By how much a probability of a float32 engine may differ from the plain network's, on any image."""

HALF_TOLERANCE = 0.5
"""The same for half precision, whose rounding the validation images judge: this only finds what is broken."""

_DRAWN_IMAGES = 2


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user wants.

    Attributes:
        engine: by name, or auto.
        precision: of its arithmetic, or auto.
    """

    engine: str = "auto"
    precision: str = "auto"


AUTO = Wish()


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine that works, and one sentence on how it came to be chosen."""

    engine: Engine
    reason: str


def choose(
    model: nn.Module,
    spec: PreprocessSpec,
    agreements: Mapping[str, Agreement | str],
    *,
    wish: Wish = AUTO,
    streams: int = 1,
    low_latency: bool = False,
    shared: bool = False,
) -> Choice:
    """Takes the best engine for a network on this machine.

    Args:
        model: normalised images -> logits; on the CPU, in eval mode.
        spec: how images are normalised.
        agreements: `engine.describe` -> what the job found of it, or why it found nothing; see the bundle.
        wish: what the user wants.
        streams: images that are to be computed side by side on a CPU.
        low_latency: a lone image may have the CPUs of all streams, for more memory.
        shared: other models are on the same devices, and may be unloaded: one that is full is not passed over.

    Raises:
        ConfigurationError: what the user wants cannot be had; says why.
        MemoryError: a shared device is full.
    """
    has_gpu = torch.cuda.is_available()
    images = draw(spec.size_px)
    expected = PlainEngine(model, spec).score(images)
    passed_over: list[str] = []
    for name, precision in _candidates(wish, has_gpu=has_gpu):
        forced = wish.engine == name and wish.precision == precision
        wanted = f"{name}-{precision}"
        try:
            if precision not in ("fp32", wish.precision):
                _demand_record(agreements.get(wanted))
            engine = _proven(
                build(name, precision, model, spec, streams=streams, low_latency=low_latency), images, expected
            )
        except UnsuitableError as error:
            if shared and isinstance(error, FullError):
                raise MemoryError(str(error)) from error
            passed_over.append(f"{wanted}: {error}")
            continue
        because = "as DOGBREED_ENGINE and DOGBREED_PRECISION say" if forced else "the quickest that may be used here"
        record = agreements.get(wanted)
        found = f"; the job found: {record}" if isinstance(record, Agreement) else ""
        rest = f" ({'; '.join(passed_over)})" if passed_over else ""
        return Choice(engine, f"{because}{found}{rest}")
    raise ConfigurationError(
        f"DOGBREED_ENGINE={wish.engine} with DOGBREED_PRECISION={wish.precision} cannot be had: "
        f"{'; '.join(passed_over)}; set both to auto"
    )


def candidates(*, has_gpu: bool) -> tuple[tuple[str, Precision], ...]:
    """All engines and precisions, the quickest first."""
    on_gpu: tuple[tuple[str, Precision], ...] = (("cuda", "bf16"), ("cuda", "fp16"), ("cuda", "fp32"))
    # On a CPU torch's bf16 is about as quick as OpenVINO's float32, which is exact.
    on_cpu: tuple[tuple[str, Precision], ...] = (
        ("openvino", "bf16"),
        ("openvino", "fp32"),
        ("torch", "bf16"),
        ("torch", "fp32"),
    )
    return (*on_gpu, *on_cpu) if has_gpu else on_cpu


def build(
    name: str,
    precision: Precision,
    model: nn.Module,
    spec: PreprocessSpec,
    *,
    streams: int = 1,
    low_latency: bool = False,
) -> Engine:
    """One engine by name.

    Args:
        name: torch, openvino or cuda.
        precision: of its arithmetic.
        model: normalised images -> logits; on the CPU, in eval mode.
        spec: how images are normalised.
        streams: images that are to be computed side by side on a CPU.
        low_latency: a lone image may have the CPUs of all streams, for more memory.

    Raises:
        UnsuitableError: it cannot be had here.
    """
    if name == "cuda":
        return CudaEngine(model, spec, precision)
    if name == "openvino":
        return OpenVinoEngine(model, spec, precision, streams=streams, low_latency=low_latency)
    return TorchCpuEngine(model, spec, precision)


def draw(side_px: int, count: int = _DRAWN_IMAGES) -> Tensor:
    """Smooth coloured noise, nearer to photos than noise by the pixel: uint8 [N, 3, S, S], always the same."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator) * 255
    fine = interpolate(coarse, (side_px, side_px), mode="bicubic").clamp(0, 255)
    return fine.to(torch.uint8).contiguous(memory_format=torch.channels_last)


def _candidates(wish: Wish, *, has_gpu: bool) -> list[tuple[str, Precision]]:
    known = [
        (name, precision)
        for name, precision in candidates(has_gpu=has_gpu or wish.engine == "cuda")
        if wish.engine in ("auto", name)
    ]
    if wish.precision == "auto":
        return known
    wanted = cast(Precision, wish.precision)
    # Also where no engine of this machine has it: each says so itself.
    return [(name, wanted) for name in dict.fromkeys(name for name, _ in known)]


def _demand_record(record: Agreement | str | None) -> None:
    if record is None:
        raise UnsuitableError("the bundle holds no comparison with float32")
    if isinstance(record, str):
        raise UnsuitableError(f"the job compared nothing: {record}")
    objection = record.objection()
    if objection is not None:
        raise UnsuitableError(objection)


def _proven(engine: Engine, images: Tensor, expected: Tensor) -> Engine:
    """The engine, where it answers as is expected. One that does not is held by nobody when the next is built.

    Raises:
        UnsuitableError: it answers otherwise.
    """
    # Together and one by one: an engine may have something else for each.
    scores = torch.cat([engine.score(images), *(engine.score(image[None]) for image in images)])
    expected = expected.repeat(2, 1)
    if not expected.isfinite().all():  # the self-test says so of whatever engine it meets
        return engine
    change = float((scores.exp() - expected.exp()).abs().max()) if scores.isfinite().all() else float("nan")
    tolerance = TOLERANCE if engine.precision == "fp32" else HALF_TOLERANCE
    if not change <= tolerance:
        raise UnsuitableError(
            f"{describe(engine)} moves a probability of a drawn image by {change:.3g}, allowed is {tolerance:g}"
        )
    return engine
