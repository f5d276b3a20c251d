from __future__ import annotations

import platform

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_can_be_kept() -> None:
    assert compute.keep_freed_memory()


def test_a_c_library_without_the_switch_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute.ctypes, "CDLL", lambda _: object())
    assert not compute.keep_freed_memory()


@pytest.mark.parametrize("instructions", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_depthwise_networks_learn_in_full_precision_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, instructions: str
) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == instructions)
    plain, depthwise = torch.nn.Conv2d(64, 64, 3), torch.nn.Conv2d(64, 64, 3, groups=64)
    cpu = torch.device("cpu")
    assert compute.frozen_dtype("auto", cpu) is torch.bfloat16
    assert compute.frozen_dtype("fp32", cpu) is torch.float32
    assert compute.choose("auto", plain).dtype is torch.bfloat16
    assert compute.choose("auto", depthwise).dtype is torch.float32
    assert compute.choose("auto", torch.nn.Conv2d(64, 16, 3)).dtype is torch.float32, "narrow"
    assert compute.choose("auto", plain, image_px=192).dtype is torch.float32, "small images"
    assert compute.choose("auto").dtype is torch.float32, "a head"
    monkeypatch.setattr(torch.cpu, instructions, lambda: False)
    assert compute.frozen_dtype("auto", cpu) is torch.float32
    assert compute.choose("auto", plain).dtype is torch.float32
