"""What is taken out of the image, and that a library which something still names is not."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "container" / "slim.py"
ELF = b"\x7fELF"


@pytest.fixture(scope="module")
def slim():
    specification = importlib.util.spec_from_file_location("slim", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def site_packages(tmp_path):
    """An environment in which nothing names what is to go."""
    for name, content in {
        "torch/include/torch.h": b"#pragma once",
        "torch/lib/libtorch_cuda.so": ELF + b"\0libcusolver.so.12\0",
        "torch/bin/ptxas": ELF,
        "torch/bin/torch_shm_manager": ELF,
        "nvidia/cu13/include/cuda.h": b"#pragma once",
        "nvidia/cu13/lib/libcudart_static.a": b"!<arch>",
        "nvidia/cu13/lib/libcusolver.so.12": ELF + b"\0libcusolver.so.12\0",
        "nvidia/cu13/lib/libcusolverMg.so.12": ELF + b"\0libcusolverMg.so.12\0libcusolver.so.12\0",
        "nvidia/cu13/lib/libnvrtc.so.13": ELF + b"\0libnvrtc-builtins.so\0",
        "nvidia/cu13/lib/libnvrtc.alt.so.13": ELF + b"\0libnvrtc-builtins.alt.so\0",
        "nvidia/cu13/lib/libnvrtc-builtins.alt.so.13.0": ELF,
        "matplotlib/_path.cpython-311-x86_64-linux-gnu.so": ELF,
        "other/names.so.txt": b"libcusolverMg.so.12",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path


def files(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_what_needs_a_compiler_and_what_nothing_names_goes(slim, site_packages):
    before = sum(file.stat().st_size for file in site_packages.rglob("*") if file.is_file())
    removed = slim.slim(site_packages)
    assert files(site_packages) == [
        "nvidia/cu13/lib/libcusolver.so.12",
        "nvidia/cu13/lib/libnvrtc.so.13",
        "other/names.so.txt",
        "torch/bin/torch_shm_manager",
        "torch/lib/libtorch_cuda.so",
    ]
    assert removed == before - sum(file.stat().st_size for file in site_packages.rglob("*") if file.is_file())


@pytest.mark.parametrize("text", [b"libcusolverMg.so.12", b"libcusolverMg.so", b"libcusolverMg"])
def test_a_library_that_a_binary_still_names_ends_the_build_with_everything_in_place(site_packages, text):
    (site_packages / "torch/lib/libtorch_cuda_linalg.so").write_bytes(ELF + b"\0" + text + b"\0")
    before = files(site_packages)
    done = subprocess.run([sys.executable, SCRIPT, site_packages], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "libtorch_cuda_linalg.so names libcusolverMg, which was to go: take it off the list" in done.stderr
    assert files(site_packages) == before


def test_an_environment_without_cuda_is_slimmed_too(slim, tmp_path):
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "lib" / "libtorch_cpu.so").write_bytes(ELF)
    assert slim.slim(tmp_path) == 0
