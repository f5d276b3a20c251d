from __future__ import annotations

import pytest
import torch

from dogbreed.errors import HyperparameterError
from dogbreed.training import compute

needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="states what holds without a GPU")


@needs_cpu
@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_a_cpu_computes_in_the_precision_asked_for(precision: str, dtype: torch.dtype) -> None:
    chosen = compute.choose(precision)
    assert chosen.device.type == "cpu"
    with chosen.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is dtype
    assert not chosen.make_scaler().is_enabled()


@needs_cpu
def test_fp16_without_a_gpu_is_refused_with_what_to_use() -> None:
    with pytest.raises(HyperparameterError, match=r"precision=fp16 needs a GPU .* use auto, fp32 or bf16"):
        compute.choose("fp16")
