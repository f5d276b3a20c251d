"""The lock of the CPU image is the lock of the image, without CUDA and what comes from torch's CPU index."""

import re
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
ELSEWHERE = re.compile(r"(nvidia|cuda)-.*|triton|torch|torchvision")


def pins(name: str) -> dict[str, str]:
    """Each pinned line with its hashes, under the package's name and version."""
    text = re.sub(r"(?m)^ *#.*\n?", "", (REQUIREMENTS / name).read_text())
    return {entry.split(" ", 1)[0]: entry for entry in re.split(r"\n(?=[a-z])", text.strip())}


def test_the_cpu_lock_is_the_lock_without_cuda_and_torch():
    kept = {pin: entry for pin, entry in pins("runtime.txt").items() if not ELSEWHERE.fullmatch(pin.split("==")[0])}
    assert len(kept) > 20
    assert {pin: entry.strip() for pin, entry in pins("cpu.txt").items()} == {
        pin: entry.strip() for pin, entry in kept.items()
    }


def test_torch_and_torchvision_have_versions_that_the_dockerfile_reads():
    lines = (REQUIREMENTS / "runtime.txt").read_text().splitlines()
    found = [line for line in lines if re.match(r"(torch|torchvision)==[0-9.]+( |$)", line)]
    assert len(found) == 2
