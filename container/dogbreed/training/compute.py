"""Where and in which arithmetic a job computes."""

from __future__ import annotations

import ctypes
import resource
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from dogbreed.engines.engine import cpu_multiplies_bf16
from dogbreed.errors import HyperparameterError

_LARGE_PX = 224
_WIDE = 32


@dataclass(frozen=True, slots=True)
class Compute:
    """A device and the precision of the forward pass.

    Attributes:
        device: the first GPU where there is one, else the CPU.
        dtype: of autocast; float32 means no autocast.
    """

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """Context for the forward pass and the loss."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32)

    def make_scaler(self) -> GradScaler:
        """Loss scaling for fp16, whose gradients would underflow; does nothing otherwise."""
        return GradScaler(self.device.type, enabled=self.dtype is torch.float16)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return f"{name}, {str(self.dtype).removeprefix('torch.')}"


def keep_freed_memory() -> bool:
    """Tells glibc to keep the memory that a step frees for the next step, instead of giving it back to the kernel.

    A network's activations are large, and each would be mapped, zeroed page by page and unmapped again. Measured on a
    frozen pass of MobileNetV2: 5 s of system time instead of 13, for a tenth more peak memory. Other C libraries have
    no such switch.

    Returns:
        Whether it was possible (mallopt(3)).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    m_trim_threshold, m_mmap_max = -1, -4
    return bool(mallopt(m_mmap_max, 0)) and bool(mallopt(m_trim_threshold, 2**31 - 1))


def peak_memory() -> str:
    """The most memory that this process, its largest child and the GPU have held, in words; GiB."""
    own, child = (resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    parts = [f"{own:.1f} GiB"]
    if child:
        parts.append(f"{child:.1f} GiB in the largest child process")
    if torch.cuda.is_available():
        parts.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB on the GPU")
    return ", ".join(parts)


def frozen_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Arithmetic for a part that does not learn, whose rounding errors do not add up over steps.

    Explicit precisions are kept. ``auto`` is bfloat16 on a GPU, and on a CPU with instructions for it. CPU time over
    folded float32 with channels_last, batches of 32 on two cores: with AMX, MobileNetV2 1.26x less, ResNet-18 3.65x,
    DenseNet-121 2.3x; with AVX512-BF16 alone 1.65x, 1.83x and 1.80x. Heads taught on either answer equally well
    (docs/performance.md).
    """
    if precision != "auto":
        return choose(precision).dtype
    if device.type == "cuda":
        return choose("auto").dtype
    return torch.bfloat16 if cpu_multiplies_bf16() else torch.float32


def _gains_by_bf16(network: nn.Module, image_px: int) -> bool:
    """Whether a step of learning is quicker in bfloat16 here.

    oneDNN's backward pass is not made for small or narrow maps: with AVX512-BF16 alone, 32 images and ResNet-18, a
    step in bfloat16 takes 0.73 of the time in float32 at 224 pixels, 0.96 at 192, 1.2 at 160, 2.3 at 128 and 4.3 at
    64; one of a network with 16 channels 5 times as long at 224. Depthwise convolutions are quicker in float32.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    return (
        cpu_multiplies_bf16()
        and image_px >= _LARGE_PX
        and all(one.groups == 1 and one.out_channels >= _WIDE for one in convolutions)
    )


def choose(precision: str, network: nn.Module | None = None, *, image_px: int = _LARGE_PX) -> Compute:
    """Picks the device, and the arithmetic by the `precision` hyperparameter.

    Args:
        precision: ``auto`` is bfloat16, or float16, on a GPU; on a CPU bfloat16 for a network that gains by it, else
            float32.
        network: whose convolutions learn, or None for a head, which has none.
        image_px: side of its input.

    Raises:
        HyperparameterError: the device cannot compute in that precision.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        automatic = torch.bfloat16 if has_bf16 else torch.float16
    else:
        has_bf16 = True
        automatic = torch.bfloat16 if network is not None and _gains_by_bf16(network, image_px) else torch.float32
    if precision == "fp16" and device.type == "cpu":
        raise HyperparameterError("precision=fp16 needs a GPU and this machine has none; use auto, fp32 or bf16")
    if precision == "bf16" and not has_bf16:
        raise HyperparameterError(
            "precision=bf16 needs a GPU of the Ampere generation or later; use auto, fp32 or fp16"
        )
    return Compute(
        device,
        {"auto": automatic, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision],
    )
