"""The CPU engine that is always there: torch, with BatchNorm folded and channels last."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dogbreed.engines.engine import Precision, UnsuitableError, cpu_multiplies_bf16, log_softmax
from dogbreed.folding import accelerated
from dogbreed.preprocessing import PreprocessSpec

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchCpuEngine:
    """torch on the CPU. How many threads it uses is the process's setting, `torch.set_num_threads`.

    Args:
        model: normalised images -> logits; in eval mode, on the CPU. A copy of it is changed.
        spec: how images are normalised.
        precision: fp32, or bf16 where the CPU has instructions for it.

    Raises:
        UnsuitableError: the CPU does not compute in that precision.
    """

    name = "torch"
    # One thread, AMD EPYC, one image, four, eight: resnet18 22, 28, 29 images/s, in bf16 41, 52, 55. In the server 8
    # clients cost 45 instead of 51 CPU-ms a request, 32 clients 41 instead of 53.
    batch = 4
    gathers = True
    ahead = 0

    def __init__(self, model: nn.Module, spec: PreprocessSpec, precision: Precision = "fp32") -> None:
        if precision not in _DTYPES:
            raise UnsuitableError(f"torch computes in fp32 or bf16 on a CPU, not in {precision}")
        if precision == "bf16" and not cpu_multiplies_bf16():
            raise UnsuitableError("this CPU has no instructions for bfloat16 (AMX or AVX512-BF16)")
        self.precision = precision
        self._spec = spec
        self._dtype = _DTYPES[precision]
        example = torch.randn(1, 3, spec.size_px, spec.size_px, generator=torch.Generator().manual_seed(0))
        self._network = accelerated(model, self._dtype, example)

    @torch.inference_mode()
    def score(self, images_NCHW: Tensor) -> Tensor:
        """See `engine.Engine`."""
        return log_softmax(self._network(self._spec.normalise(images_NCHW).to(self._dtype)))
