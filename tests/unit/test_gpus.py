"""Which GPUs a server shares out, from what NVML and CUDA_VISIBLE_DEVICES say."""

from __future__ import annotations

import pytest

from dogbreed.gpus import find_gpus, told_gpus, visible_gpus


class NVMLError(Exception):
    pass


class Library:
    """What of pynvml is used: GPUs by UUID; of one that is divided, its instances, None for an empty place."""

    NVMLError = NVMLError

    def __init__(self, *gpus: str | list[str | None], driver: bool = True) -> None:
        self.gpus, self.driver, self.open = gpus, driver, 0

    def nvmlInit(self):
        if not self.driver:
            raise NVMLError("driver not loaded")
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.gpus[index]

    def nvmlDeviceGetMigMode(self, handle):
        if handle == "GPU-old":
            raise NVMLError("not supported")
        return int(isinstance(handle, list)), 0

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):
        return len(handle)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, index):
        if handle[index] is None:
            raise NVMLError("not found")
        return handle[index]

    def nvmlDeviceGetUUID(self, handle):
        if handle == "GPU-lost":
            raise NVMLError("GPU is lost")
        return handle.encode() if handle == "GPU-old" else handle


@pytest.mark.parametrize(
    ("gpus", "names"),
    [
        ((), ()),
        (("GPU-a",), ("GPU-a",)),
        (("GPU-a", "GPU-old"), ("GPU-a", "GPU-old")),
        ((["MIG-1", None, "MIG-2"], "GPU-b"), ("MIG-1", "MIG-2", "GPU-b")),
        (("GPU-a", "GPU-lost"), ()),
    ],
    ids=["none", "one", "one that cannot be divided", "a divided one", "a broken one"],
)
def test_all_gpus_by_uuid(gpus, names):
    library = Library(*gpus)
    assert visible_gpus(library=library) == names
    assert library.open == 0


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ("1,0", ("1", "0")),
        (" 0 , GPU-b", ("0", "GPU-b")),
        ("0,2,1", ("0",)),
        ("-1", ()),
        ("0,-1,1", ("0",)),
        ("", ()),
    ],
)
def test_the_gpus_that_cuda_is_told_up_to_the_first_that_is_none(told, names):
    assert visible_gpus(told, library=Library("GPU-a", "GPU-b")) == names


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (None, ["MIG-1", "MIG-2", "GPU-b", "GPU-lost"]),
        (("1", "0"), ["GPU-b", "MIG-1"]),
        (("GPU-b", "2", "3"), ["GPU-b", "GPU-lost"]),
        (("2", "b"), ["GPU-lost", "GPU-b"]),
        (("MIG-2", "GPU-c"), ["MIG-2"]),
        ((), []),
    ],
)
def test_nvmls_handles_of_what_cuda_names(names, found):
    library = Library(["MIG-1", None, "MIG-2"], "GPU-b", "GPU-lost")
    assert find_gpus(names, library=library) == found
    assert told_gpus("0,-1,1", library=library) == ("0",)
    assert told_gpus(None, library=library) is None


def test_without_a_driver_there_is_none_whatever_cuda_is_told():
    assert visible_gpus("0,1", library=Library("GPU-a", driver=False)) == ()


def test_without_the_library_there_is_none(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert visible_gpus() == ()
