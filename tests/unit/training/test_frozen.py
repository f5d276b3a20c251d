from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dogbreed import backbones
from dogbreed.backbones import HeadSpec
from dogbreed.engines.engine import UnsuitableError
from dogbreed.engines.openvino_cpu import OpenVinoNetwork
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training import compute, frozen
from dogbreed.training.augment import stored_views
from dogbreed.training.data import EpochLoader, Sample, View, find_splits, make_loader
from dogbreed.training.distributed import Team
from dogbreed.training.features import STOPPED
from dogbreed.training.frozen import FrozenPart
from dogbreed.training.loop import CorruptImages, Loop

SPEC = PreprocessSpec.for_size(32)
T = TypeVar("T")


class Table:
    """Where threads that stand for processes meet."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.values: list[Any] = [None] * size


@dataclass(frozen=True)
class Threads(Team):
    """A thread's place among others in one process."""

    table: Table = field(default_factory=lambda: Table(1))

    def gather(self, value: T) -> list[T]:
        self.table.values[self.rank] = value
        self.table.barrier.wait()
        found = list(self.table.values)
        self.table.barrier.wait()
        return found

    def total(self, *counts: int) -> tuple[int, ...]:
        return tuple(map(sum, zip(*self.gather(counts), strict=True)))

    def hand_out(self, tensor: Tensor, source: int) -> Tensor:
        return tensor.copy_(self.gather(tensor)[source])


class Case:
    """A network with a frozen part, a split, and what runs the one over the other."""

    def __init__(self, data: Path, folder: Path, *, trainable: str = "head", name: str = "tiny") -> None:
        self.samples = find_splits({"train": data}, validation_fraction=0.2, seed=0).train
        torch.manual_seed(0)
        self.model = backbones.build(name, HeadSpec(3), image_size_px=32)
        self.model.freeze(trainable, 32)  # type: ignore[arg-type]
        cut = backbones.cut(self.model, 32)
        assert cut is not None
        self.part = FrozenPart(cut, name, SPEC, torch.float32, torch.device("cpu"), len(self.samples), folder)
        self.passes = 0
        self.loop = Loop(
            model=self.model,
            prepare=SPEC.normalise,
            classes=3,
            criterion=nn.CrossEntropyLoss(),
            compute=compute.choose("fp32"),
            observers=[],
            corrupt=CorruptImages(18, 0.5),
            stop_requested=lambda: False,
        )

    def batches(self, samples: Sequence[Sample], view: View, first: int = 0) -> EpochLoader:
        self.passes += 1
        return make_loader(samples, view, first, batch_size=7, workers=0, seed=0, shuffle=False, pin=False)

    def store(self, views: str = "none", seed: int = 0) -> frozen.FeatureStore:
        found = frozen.store_outputs(
            self.part,
            self.loop,
            samples=self.samples,
            views=stored_views(views, SPEC, 2),
            make_batches=self.batches,
            seed=seed,
        )
        assert found is not STOPPED
        return found


@pytest.mark.parametrize("trainable", ["head", "last_stage"])
def test_the_rest_on_stored_outputs_answers_as_the_whole_network_does(
    drawn_data: Path, tmp_path: Path, trainable: str
) -> None:
    case = Case(drawn_data, tmp_path, trainable=trainable)
    store = case.store()
    images = torch.cat([batch.images for batch in case.batches(case.samples, SPEC.centre_view).epoch(0)])
    case.model.eval()
    case.part.cut.rest.eval()
    with torch.no_grad():
        whole = case.model(SPEC.normalise(images))
        rest = case.part.cut.rest(torch.from_numpy(np.asarray(store.outputs[0])).float())
    torch.testing.assert_close(rest, whole, rtol=1e-2, atol=1e-2)


def test_the_second_job_finds_what_the_first_has_stored(drawn_data: Path, tmp_path: Path) -> None:
    first = Case(drawn_data, tmp_path)
    outputs = np.asarray(first.store().outputs)
    assert first.passes == 1
    second = Case(drawn_data, tmp_path)
    assert np.array_equal(second.store().outputs, outputs)
    assert second.passes == 0


def test_flip_stores_the_centre_and_its_mirror_image(drawn_data: Path, tmp_path: Path) -> None:
    case = Case(drawn_data, tmp_path)
    outputs = case.store("flip").outputs
    assert outputs.shape[:2] == (2, 18)
    assert not np.array_equal(outputs[0], outputs[1])


def test_random_crops_belong_to_their_seed(drawn_data: Path, tmp_path: Path) -> None:
    case = Case(drawn_data, tmp_path)
    case.store("crop", seed=0)
    assert case.passes == 2
    case.store("crop", seed=0)
    assert case.passes == 2
    case.store("crop", seed=1)
    assert case.passes == 4


def run_together(data: Path, folder: Path, size: int, views: str) -> tuple[list[Case], list[frozen.FeatureStore]]:
    """So many processes of one host, and what each of them gets."""
    table = Table(size)
    cases = []
    for _ in range(size):
        cases.append(Case(data, folder))
        # In turn, as torch draws weights from one generator, and traces modules for one thread at a time.
        assert cases[-1].part.network

    def run(rank: int) -> frozen.FeatureStore:
        cases[rank].loop = replace(cases[rank].loop, team=Threads(rank, size, rank, size, table=table))
        try:
            return cases[rank].store(views)
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return cases, list(pool.map(run, range(size)))


@pytest.mark.parametrize("views", ["none", "crop"])
def test_what_is_stored_depends_on_no_number_of_processes(drawn_data: Path, tmp_path: Path, views: str) -> None:
    alone = Case(drawn_data, tmp_path / "alone").store(views)
    for size in (2, 3):
        for together in run_together(drawn_data, tmp_path / str(size), size, views)[1]:
            assert together.digest == alone.digest
            assert together.indices.tolist() == alone.indices.tolist()
            np.testing.assert_allclose(together.outputs, alone.outputs, rtol=1e-2, atol=1e-3)
        assert len(list((tmp_path / str(size)).glob("*.f16"))) == 1, "no share is left"


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Files that cannot be read, as long as they are in it."""
    found: set[Path] = set()
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path in found:
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    return found


@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_could_not_be_read_is_tried_again_by_the_next_job(
    drawn_data: Path, tmp_path: Path, unreadable: set[Path], processes: int
) -> None:
    def store() -> tuple[int, frozen.FeatureStore]:
        cases, stores = run_together(drawn_data, tmp_path, processes, "none")
        assert len({len(one.indices) for one in stores}) == 1
        assert {case.loop.corrupt.found for case in cases} == {stores[0].problems}
        return sum(case.passes for case in cases), stores[0]

    victim = Case(drawn_data, tmp_path).samples[4].path
    unreadable.add(victim)
    passes, first = store()
    assert (passes, len(first.indices)) == (processes, 17)
    assert first.unread == (f"{victim} ([Errno 5] Input/output error)",)
    assert first.corrupt == ()
    assert store()[0] == 0, "and it still cannot be read"
    unreadable.clear()
    passes, whole = store()
    assert (passes, len(whole.indices), whole.problems) == (processes, 18, ())
    assert store()[0] == 0


def test_photos_that_others_of_the_same_size_replace_are_computed_again(drawn_data: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(drawn_data, tmp_path / "data"))
    one, other = (Case(data, tmp_path).samples[position].path for position in (4, 9))
    size = max(file.stat().st_size for file in (one, other))
    pictures = [file.read_bytes().ljust(size, b"\0") for file in (one, other)]
    one.write_bytes(pictures[0])
    other.write_bytes(pictures[1])
    before = Case(data, tmp_path).store().outputs
    one.write_bytes(pictures[1])
    other.write_bytes(pictures[0])
    after = Case(data, tmp_path).store().outputs
    assert np.array_equal(before[0, [4, 9]], after[0, [9, 4]])
    assert not np.array_equal(before[0, 4], after[0, 4])


def test_an_image_that_cannot_be_decoded_is_not_tried_again(drawn_data: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(drawn_data, tmp_path / "data"))
    victim = Case(data, tmp_path).samples[4].path
    victim.write_bytes(b"no image")
    assert Case(data, tmp_path).store().unread == ()
    again = Case(data, tmp_path)
    assert len(again.store().corrupt) == 1
    assert again.passes == 0


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the few small images were worth it."""
    monkeypatch.setattr(frozen, "_WORTH_COMPILING_PX", 0)


@pytest.mark.parametrize("trainable", ["head", "last_stage"])
@pytest.mark.usefixtures("compiling")
def test_a_compiled_frozen_part_gives_the_outputs_of_torch(drawn_data: Path, tmp_path: Path, trainable: str) -> None:
    case = Case(drawn_data, tmp_path, trainable=trainable)
    compiled = np.asarray(case.store().outputs[0], dtype=np.float32)
    assert isinstance(case.part.network, OpenVinoNetwork)
    images = torch.cat([batch.images for batch in case.batches(case.samples, SPEC.centre_view).epoch(0)])
    with torch.no_grad():
        expected = case.part.cut.frozen.eval()(SPEC.normalise(images))
    np.testing.assert_allclose(compiled, expected.numpy(), rtol=2e-3, atol=2e-3)


def test_stores_of_torch_and_of_openvino_are_not_taken_for_each_other(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Case(drawn_data, tmp_path).store()
    monkeypatch.setattr(frozen, "_WORTH_COMPILING_PX", 0)
    other = Case(drawn_data, tmp_path)
    other.store()
    assert other.passes == 1


@pytest.mark.usefixtures("compiling")
def test_what_openvino_cannot_compute_torch_computes(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UnsuitableError("OpenVINO cannot convert this network: of odd shape")

    monkeypatch.setattr(frozen, "OpenVinoNetwork", refuse)
    with caplog.at_level("INFO"):
        network = Case(drawn_data, tmp_path).part.network
    assert isinstance(network, nn.Module)
    assert "of odd shape; torch computes what is frozen" in caplog.text


@pytest.mark.usefixtures("compiling")
def test_a_test_pass_computes_in_float32_what_the_model_does(drawn_data: Path, tmp_path: Path) -> None:
    case = Case(drawn_data, tmp_path)
    case.model.eval()
    whole = frozen.whole(case.part.cut, SPEC, torch.device("cpu"), 100)
    assert isinstance(whole[0], OpenVinoNetwork)
    images = SPEC.normalise(torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8))
    with torch.no_grad():
        torch.testing.assert_close(whole(images), case.model(images), rtol=1e-4, atol=1e-4)
