"""Takes out of a virtual environment what the image can never use; the Dockerfile runs it: `python slim.py FOLDER`.

A container without a compiler has no use for headers, static libraries and tools of a compiler, and some of CUDA's
libraries are there for programs of another kind. That a shared library is not used is not believed but looked up: the
run fails if any other binary that stays names it, be it in its list of needed libraries or in a text for dlopen.
"""

from __future__ import annotations

import mmap
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

# Below site-packages. Triton goes as a whole, by pip: it compiles with a C compiler, and the image has none.
UNUSED = (
    # For compiling against.
    "torch/include",
    "torch/share/cmake",
    "nvidia/*/include",
    "nvidia/**/*.a",
    "nvidia/nvshmem/lib/libnvshmem_device.bc",
    # For compiling with.
    "torch/bin/protoc*",
    "torch/bin/ptxas",
    # A second build of NVRTC, for programs that ask for it by this name.
    "nvidia/**/libnvrtc.alt.so.*",
    "nvidia/**/libnvrtc-builtins.alt.so.*",
    # cuSOLVER over several GPUs; cuFFT and cuBLAS in the guise of FFTW and BLAS.
    "nvidia/**/libcusolverMg.so.*",
    "nvidia/**/libcufftw.so.*",
    "nvidia/**/libnvblas.so.*",
    # Of CUPTI, what torch's profiler is not built with.
    "nvidia/**/libcheckpoint.so",
    "nvidia/**/libnvperf_target.so",
    "nvidia/**/libpcsamplingutil.so",
    # A package's tests of itself.
    "pandas/tests",
    # Captum draws on screens by it; heat maps are pixels (serving/heatmap.py).
    "matplotlib",
    "mpl_toolkits",
    "fontTools",
    "kiwisolver",
    "contourpy",
    # Tells the makers of OpenVINO that it is used, over the network.
    "openvino_telemetry",
)


class StillNamedError(Exception):
    """A library that was to go is named by one that stays."""


def slim(site_packages: Path, patterns: Iterable[str] = UNUSED) -> int:
    """Removes what the patterns match.

    Returns:
        Bytes removed.

    Raises:
        StillNamedError: a binary that stays names a library that was to go; nothing is removed then.
    """
    found = sorted({path for pattern in patterns for path in site_packages.glob(pattern)})
    files = {file for path in found for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()}
    check_unnamed([file for file in files if ".so" in file.suffixes], _binaries(site_packages, without=files))
    size = sum(file.stat().st_size for file in files)
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return size


def check_unnamed(libraries: Sequence[Path], binaries: Iterable[Path]) -> None:
    """Raises StillNamedError if one of the binaries holds the name of one of the libraries, up to its `.so`."""
    names = {library.name.partition(".so")[0].encode() for library in libraries}
    for binary in binaries:
        with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for name in sorted(names):
                if content.find(name) >= 0:
                    raise StillNamedError(f"{binary} names {name.decode()}, which was to go: take it off the list")


def _binaries(folder: Path, *, without: set[Path]) -> list[Path]:
    return [file for file in sorted(folder.rglob("*.so*")) if file not in without and _is_elf(file)]


def _is_elf(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as content:
        return content.read(4) == b"\x7fELF"


def main(arguments: Sequence[str]) -> int:
    """Slims the environment's site-packages; 1 with one sentence where that cannot be done."""
    try:
        removed = slim(Path(arguments[0]))
    except StillNamedError as error:
        print(f"slim: {error}", file=sys.stderr)
        return 1
    print(f"slim: removed {removed / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
