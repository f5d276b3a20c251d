"""What a worker loads: as many requests let in as the engine takes, and the network that heat maps need, or none."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch
from tests.contract.serving import save_bundle

from dogbreed.engines import openvino_cpu
from dogbreed.serving import loading
from dogbreed.serving.heatmap import NoMapError
from dogbreed.serving.metrics import Metrics


def test_the_network_is_that_of_the_served_bundle(tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path)
    network = loading._load_again(tmp_path / "model", loading._state_of(tmp_path / "model"))
    for name, weights in network.state_dict().items():
        torch.testing.assert_close(weights, bundle.weights[name])


def test_files_that_have_changed_since_are_not_explained(tmp_path: Path) -> None:
    save_bundle(tmp_path)
    again = partial(loading._load_again, tmp_path / "model", loading._state_of(tmp_path / "model"))
    save_bundle(tmp_path, classes=5)
    with pytest.raises(NoMapError, match="the model's files have changed since it was loaded; start the server again"):
        again()


def test_files_that_have_gone_are_a_sentence(tmp_path: Path) -> None:
    save_bundle(tmp_path)
    state = loading._state_of(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(NoMapError, match="cannot be loaded again for heat maps"):
        loading._load_again(tmp_path / "model", state)


@pytest.mark.parametrize(
    ("engine", "concurrent"),
    [
        pytest.param(
            "openvino",
            2 * 3,  # three compute, three wait in its queue
            marks=pytest.mark.skipif(not openvino_cpu.is_installed(), reason="the openvino package is not installed"),
        ),
        ("torch", 3 * 4),  # each gathers up to four
    ],
)
def test_as_many_requests_are_let_in_as_the_engine_takes(tmp_path: Path, engine: str, concurrent: int) -> None:
    save_bundle(tmp_path)
    threads = torch.get_num_threads()
    try:
        loaded = loading.load_predictor(tmp_path / "model", Metrics(None), max_pixels=10**6, engine=engine, streams=3)
    finally:
        torch.set_num_threads(threads)
    assert loaded.concurrent == concurrent


@pytest.mark.skipif(not openvino_cpu.is_installed(), reason="the openvino package is not installed")
@pytest.mark.parametrize("low_latency", [True, False])
def test_a_lone_image_gets_all_cpus_unless_that_is_switched_off(tmp_path: Path, *, low_latency: bool) -> None:
    save_bundle(tmp_path)
    threads = torch.get_num_threads()
    try:
        loaded = loading.load_predictor(
            tmp_path / "model", Metrics(None), max_pixels=10**6, engine="openvino", streams=2, low_latency=low_latency
        )
    finally:
        torch.set_num_threads(threads)
    engine = cast(openvino_cpu.OpenVinoEngine, loaded._engine)
    assert (engine._lone is not engine._free) == low_latency


def test_the_device_that_is_told_is_the_engines_and_not_whatever_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_bundle(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    metrics = Metrics(None)
    threads = torch.get_num_threads()
    try:
        loading.load_predictor(tmp_path / "model", metrics, max_pixels=10**6, engine="torch")
    finally:
        torch.set_num_threads(threads)
    text = metrics.render()[0]
    assert 'device="cpu",engine="torch-fp32"' in (text.decode() if isinstance(text, bytes) else text)


def test_of_several_gpus_a_model_goes_to_the_one_with_most_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_bundle(tmp_path)
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ([5, 9, 7][index], 16))
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    threads = torch.get_num_threads()
    try:
        loading.load_predictor(tmp_path / "model", Metrics(None), max_pixels=10**6, engine="torch")
    finally:
        torch.set_num_threads(threads)
    assert taken == [1]


_BLOCKS = """
import ctypes, sys
from dogbreed.serving import loading
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free(libc.malloc(30 * 2**20))  # from now on glibc maps none smaller than this
blocks = []
for _ in range(20):
    blocks.append(libc.malloc(16 * 2**20))
    libc.memset(blocks[-1], 1, 16 * 2**20)
    libc.memset(libc.malloc(200_000), 1, 200_000)  # stays, above the block
for block in blocks:
    libc.free(block)
if sys.argv[1] == "True":
    loading.trim_memory()
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries do so by themselves, or cannot be told")
def test_the_blocks_of_large_images_go_back_to_the_system() -> None:
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", _BLOCKS, told], capture_output=True, check=True, text=True).stdout)
        for told in ("False", "True")
    )
    assert kept - returned > 200  # MiB
