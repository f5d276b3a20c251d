"""How near the frozen pass and a step of fine-tuning come to what the machine can do.

    python benchmarks/passes.py --data DOGS

The frozen pass is measured three ways in turn, round by round, in one process: the loader alone, the network alone on
batches that are in memory, and both together as a job runs them, images in and a stored file out. Where the CPU does
both, the most that is possible is one after the other on all cores (`in series`). Efficiency is what the job reaches
over that.

A step of fine-tuning is forward, backward and AdamW over the whole network on one batch, in plain float32 as torch
does it by default, in float32 with channels last, and in the arithmetic that `precision=auto` chooses.

Weights are random: they change nothing of the cost. Prints tables and writes the same figures to
build/bench/passes.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from dogbreed import backbones
from dogbreed.backbones import HeadSpec
from dogbreed.folding import accelerated
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training import compute, frozen
from dogbreed.training.data import EpochLoader, Sample, View, find_splits, make_loader
from dogbreed.training.frozen import FrozenPart
from dogbreed.training.loop import CorruptImages, Loop

OUT = Path(__file__).resolve().parent.parent / "build" / "bench" / "passes.json"
SIDE = 224
SPEC = PreprocessSpec.for_size(SIDE)


@dataclass(frozen=True, slots=True)
class Cost:
    """What some images cost.

    Attributes:
        cpu_ms: user and system time per image.
        wall_ms: elapsed per image.
    """

    cpu_ms: float
    wall_ms: float


def main() -> int:
    """Runs the rounds and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, or with one folder per class")
    parser.add_argument("--models", nargs="*", default=["resnet18", "densenet121", "mobilenet_v2"])
    parser.add_argument("--photos", type=int, default=256, help="of the frozen pass, at most")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("frozen", "steps"), help="one of the two tables")
    chosen = parser.parse_args()
    compute.keep_freed_memory()
    measured: dict[str, dict[str, dict[str, Cost]]] = {}
    if chosen.only != "steps":
        measured["frozen"] = {model: compare(frozen_pass(model, chosen), chosen.rounds) for model in chosen.models}
        print_frozen(measured["frozen"], chosen)
    if chosen.only != "frozen":
        measured["steps"] = {model: compare(steps(model, chosen), chosen.rounds) for model in chosen.models}
        print_steps(measured["steps"], chosen)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    rows = {
        table: {model: {name: asdict(cost) for name, cost in row.items()} for model, row in models.items()}
        for table, models in measured.items()
    }
    OUT.write_text(json.dumps({"arguments": vars(chosen), **rows}, default=str, indent=2))
    return 0


def compare(candidates: dict[str, Callable[[], int]], rounds: int) -> dict[str, Cost]:
    """Medians over the rounds; each round runs every candidate once, after one that is not counted."""
    costs: dict[str, list[Cost]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            images = run()
            wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            if number:
                costs[name].append(Cost(1000 * cpu / images, 1000 * wall / images))
        print(f"round {number}: {[(name, one[-1:]) for name, one in costs.items()]}", file=sys.stderr)
    return {
        name: Cost(statistics.median(one.cpu_ms for one in done), statistics.median(one.wall_ms for one in done))
        for name, done in costs.items()
    }


def frozen_pass(model: str, chosen: argparse.Namespace) -> dict[str, Callable[[], int]]:
    """The loader alone, the network alone, and the pass of a job; each returns the number of its images."""
    samples = find_splits({"train": chosen.data}, validation_fraction=0.1, seed=0).train[: chosen.photos]
    network = backbones.build(model, HeadSpec(2), image_size_px=SIDE, weights=None)
    network.freeze("head", SIDE)
    loop = Loop(
        model=network,
        prepare=lambda images: SPEC.normalise(images).contiguous(memory_format=torch.channels_last),
        classes=2,
        criterion=nn.CrossEntropyLoss(),
        compute=compute.choose("fp32"),
        observers=[],
        corrupt=CorruptImages(len(samples), 0.0),
        stop_requested=lambda: False,
    )
    cut = backbones.cut(network, SIDE)
    if cut is None:
        sys.exit(f"{model} cannot be cut at its head")
    dtype = compute.frozen_dtype("auto", loop.compute.device)
    cpus = len(psutil.Process().cpu_affinity())

    def batches(of: Sequence[Sample], view: View, first: int = 0, *, workers: int = max(1, cpus // 2)) -> EpochLoader:
        return make_loader(
            of, view, first, batch_size=chosen.batch_size, workers=workers, seed=0, shuffle=False, pin=False
        )

    def load() -> int:
        return sum(len(batch.indices) for batch in batches(samples, SPEC.centre_view, workers=cpus).epoch(0))

    network_alone = accelerated(cut.frozen, dtype, torch.randn(1, 3, SIDE, SIDE))
    ready = [batch.images for batch in batches(samples, SPEC.centre_view).epoch(0)]

    @torch.no_grad()
    def run_network() -> int:
        for images in ready:
            network_alone(loop.prepare(images).to(dtype))
        return len(samples)

    def run_job() -> int:
        with tempfile.TemporaryDirectory() as folder:
            part = FrozenPart(cut, model, SPEC, dtype, loop.compute.device, len(samples), Path(folder))
            frozen.store_outputs(
                part, loop, samples=samples, views=[("centre", SPEC.centre_view)], make_batches=batches, seed=0
            )
        return len(samples)

    return {"loader": load, "network": run_network, "job": run_job}


def steps(model: str, chosen: argparse.Namespace) -> dict[str, Callable[[], int]]:
    """A step of fine-tuning in each arithmetic."""
    batch = SPEC.normalise(torch.randint(0, 256, (chosen.batch_size, 3, SIDE, SIDE), dtype=torch.uint8))
    indices = torch.arange(chosen.batch_size) % 2

    def make(memory: torch.memory_format, arithmetic: compute.Compute | None) -> Callable[[], int]:
        torch.manual_seed(0)
        network = backbones.build(model, HeadSpec(2), image_size_px=SIDE, weights=None)
        network.to(memory_format=memory)  # type: ignore[call-overload]
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        images = batch.contiguous(memory_format=memory)

        def context() -> AbstractContextManager[object]:
            return arithmetic.autocast() if arithmetic else nullcontext()

        def step() -> int:
            optimizer.zero_grad()
            with context():
                loss: Tensor = nn.functional.cross_entropy(network(images), indices)
            loss.backward()
            optimizer.step()
            return chosen.batch_size

        return step

    automatic = compute.choose("auto", backbones.build(model, HeadSpec(2), image_size_px=SIDE, weights=None))
    return {
        "plain": make(torch.contiguous_format, None),
        "channels last": make(torch.channels_last, None),
        "bfloat16": make(torch.channels_last, compute.choose("bf16")),
        f"auto ({str(automatic.dtype).removeprefix('torch.')})": make(torch.channels_last, automatic),
    }


def print_frozen(rows: dict[str, dict[str, Cost]], chosen: argparse.Namespace) -> None:
    """The table of the frozen pass, in Markdown."""
    print(
        f"\nthe frozen pass, {chosen.photos} photos, batch {chosen.batch_size}, {chosen.rounds} rounds; ms per image\n"
    )
    print("| backbone | loader | network | in series | job | efficiency, wall | CPU ms of the job | efficiency, CPU |")
    print("|---|---|---|---|---|---|---|---|")
    for model, (loader, network, job) in _triples(rows):
        series = loader.wall_ms + network.wall_ms
        print(
            f"| {model} | {loader.wall_ms:.2f} | {network.wall_ms:.2f} | {series:.2f} | {job.wall_ms:.2f} "
            f"| {series / job.wall_ms:.2f} | {job.cpu_ms:.2f} | {(loader.cpu_ms + network.cpu_ms) / job.cpu_ms:.2f} |"
        )


def _triples(rows: dict[str, dict[str, Cost]]) -> Iterator[tuple[str, tuple[Cost, Cost, Cost]]]:
    for model, row in rows.items():
        yield model, (row["loader"], row["network"], row["job"])


def print_steps(rows: dict[str, dict[str, Cost]], chosen: argparse.Namespace) -> None:
    """The table of the steps, in Markdown."""
    print(f"\na step of fine-tuning, batch {chosen.batch_size}, {chosen.rounds} rounds; CPU ms per image\n")
    print("| backbone | arithmetic | CPU ms | wall ms | times less CPU than plain |\n|---|---|---|---|---|")
    for model, row in rows.items():
        for name, cost in row.items():
            times = row["plain"].cpu_ms / cost.cpu_ms
            print(f"| {model} | {name} | {cost.cpu_ms:.1f} | {cost.wall_ms:.1f} | {times:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
