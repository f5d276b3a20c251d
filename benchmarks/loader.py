"""How fast images are loaded here, and by the plain loader: nothing but loading.

    python benchmarks/loader.py --data DOGS

The plain loader is the one that people write first: ImageFolder, PIL transforms, ToTensor, Normalize, a DataLoader with
worker processes. Ours is the job's own, with as many threads, with and without its store of decoded images. Both take
random crops of the same sizes. timm's loader takes part where timm is installed. Each run is a process of its own that
goes through the photos several times: the first epoch, and the median of the later ones. Runs take turns, round by
round; what counts is CPU time, of the process and its workers, and images per second.

The photos are those of DATA, and the same enlarged to the size of a photo (with a little noise, so that a file has the
usual size), because small ones say little about decoding. Ours hands over bytes, to be normalised on the device that
trains; `with normalising` adds what that costs on the CPU.

Prints a table and writes the same figures to build/bench/loader.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "bench" / "loader.json"
PHOTOS = ROOT / "build" / "bench" / "photos"

SIDE = 224
STORED_SIDE = 256
SMALLEST_CROP = 0.35


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the photos.

    Attributes:
        cpu_ms: user and system time per image, worker processes included.
        images_per_s: by the wall.
    """

    cpu_ms: float
    images_per_s: float


def main() -> int:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, or with one folder per class")
    parser.add_argument("--sizes", nargs="*", default=["500x375"], help="to which the photos are enlarged as well")
    parser.add_argument("--photos", type=int, default=750, help="how many of them, at most")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loader", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.loader:
        print(json.dumps([asdict(epoch) for epoch in LOADERS[chosen.loader](chosen)]))
        return 0
    data = chosen.data / "train" if (chosen.data / "train").is_dir() else chosen.data
    rows = []
    for name, folder in {
        "as they are": data,
        **{size: enlarge(data, size, chosen.photos) for size in chosen.sizes},
    }.items():
        runs: dict[str, list[list[Epoch]]] = {loader: [] for loader in LOADERS if available(loader)}
        for number in range(chosen.rounds):
            for loader, done in runs.items():
                done.append(run(loader, folder, chosen))
                print(f"{name} {loader} round {number + 1}: {done[-1]}", file=sys.stderr)
        rows += [describe(name, loader, done, runs["plain"]) for loader, done in runs.items()]
    print_table(rows, chosen)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"arguments": vars(chosen), "rows": rows}, default=str, indent=2))
    return 0


def available(loader: str) -> bool:
    """Whether the libraries of a loader are installed."""
    return loader != "timm" or importlib.util.find_spec("timm") is not None


def enlarge(data: Path, size: str, photos: int) -> Path:
    """A folder with the photos at another size, one in four of them upright; made once."""
    import numpy as np
    from PIL import Image

    width, height = (int(side) for side in size.split("x"))
    out = PHOTOS / f"{size}-{photos}"
    files = sorted(data.rglob("*.jpg"))
    for number, file in enumerate(files[:: max(1, len(files) // photos)][:photos]):
        target = out / file.parent.name / file.name
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            shape = (height, width) if number % 4 == 0 else (width, height)
            pixels = np.asarray(image.convert("RGB").resize(shape, Image.Resampling.BICUBIC), dtype=np.float64)
        noisy = pixels + np.random.default_rng(number).normal(0, 4, pixels.shape)
        partial = target.with_suffix(".partial")
        Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)).save(partial, "JPEG", quality=85)
        partial.replace(target)
    return out


def run(loader: str, folder: Path, chosen: argparse.Namespace) -> list[Epoch]:
    """One process from start to end; its own figures leave out Python's start."""
    command = [sys.executable, __file__, "--loader", loader, "--data", str(folder)]
    for option in ("epochs", "batch_size", "workers"):
        command += [f"--{option.replace('_', '-')}", str(getattr(chosen, option))]
    # What the user has put there may be timm.
    path = os.pathsep.join(filter(None, [str(ROOT / "container"), os.environ.get("PYTHONPATH")]))
    environ = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)  # noqa: S603  our own
    if done.returncode:
        sys.exit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return [Epoch(**epoch) for epoch in json.loads(done.stdout.splitlines()[-1])]


def plain(chosen: argparse.Namespace) -> list[Epoch]:
    """ImageFolder, PIL transforms and a DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    crop = transforms.RandomResizedCrop(SIDE, scale=(SMALLEST_CROP, 1.0))
    view = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalise])
    batches: DataLoader[object] = DataLoader(
        ImageFolder(chosen.data, transform=view),
        batch_size=chosen.batch_size,
        shuffle=True,
        num_workers=chosen.workers,
    )
    return measure(lambda _: batches, chosen)


def timm(chosen: argparse.Namespace) -> list[Epoch]:
    """timm's loader, which normalises on the device as well."""
    import torch
    from timm.data import create_dataset, create_loader  # type: ignore[import-not-found]

    batches = create_loader(
        create_dataset("", root=str(chosen.data)),
        input_size=(3, SIDE, SIDE),
        batch_size=chosen.batch_size,
        is_training=True,
        scale=(SMALLEST_CROP, 1.0),
        color_jitter=None,
        num_workers=chosen.workers,
        pin_memory=False,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    return measure(lambda _: batches, chosen)


def ours(chosen: argparse.Namespace) -> list[Epoch]:
    """The job's loader; every file is decoded in every epoch."""
    return _ours(chosen, stored=False, normalise=False)


def ours_stored(chosen: argparse.Namespace) -> list[Epoch]:
    """The job's loader with its store, which is empty at first."""
    return _ours(chosen, stored=True, normalise=False)


def ours_stored_normalised(chosen: argparse.Namespace) -> list[Epoch]:
    """The same, and the batches normalised on the CPU."""
    return _ours(chosen, stored=True, normalise=True)


def _ours(chosen: argparse.Namespace, *, stored: bool, normalise: bool) -> list[Epoch]:
    from dogbreed.preprocessing import PreprocessSpec
    from dogbreed.training.compute import keep_freed_memory
    from dogbreed.training.crops import RandomCrop
    from dogbreed.training.data import Batch, DecodedImages, make_loader
    from dogbreed.training.images import ReducedImages
    from dogbreed.training.sources import find_splits

    keep_freed_memory()
    splits = find_splits({"train": chosen.data}, validation_fraction=0.01, seed=0)
    samples = [*splits.train, *splits.validation]
    spec = PreprocessSpec.for_size(SIDE)
    with tempfile.TemporaryDirectory(dir=ROOT / "build" / "bench") as folder:
        loader = make_loader(
            samples,
            RandomCrop(SIDE, smallest=SMALLEST_CROP),
            batch_size=chosen.batch_size,
            workers=chosen.workers,
            seed=0,
            shuffle=True,
            pin=False,
            images=ReducedImages(samples, STORED_SIDE, Path(folder)) if stored else DecodedImages(samples),
        )

        def epoch(number: int) -> Iterable[object]:
            def finished(batch: Batch) -> object:
                return spec.normalise(batch.images) if normalise else batch.images

            return map(finished, loader.epoch(number))

        return measure(epoch, chosen)


LOADERS: dict[str, Callable[[argparse.Namespace], list[Epoch]]] = {
    "plain": plain,
    "timm": timm,
    "ours": ours,
    "ours, store": ours_stored,
    "ours, store, with normalising": ours_stored_normalised,
}


def measure(epoch: Callable[[int], Iterable[object]], chosen: argparse.Namespace) -> list[Epoch]:
    """Goes through the epochs and throws the batches away."""
    images = len(list(chosen.data.rglob("*.jpg")))
    found = []
    for number in range(1, chosen.epochs + 1):
        before, started = cpu_seconds(), time.perf_counter()
        for _ in epoch(number):
            pass
        wall, cpu = time.perf_counter() - started, cpu_seconds() - before
        found.append(Epoch(1000 * cpu / images, images / wall))
    return found


def cpu_seconds() -> float:
    """Of this process and of its workers that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def describe(photos: str, loader: str, done: list[list[Epoch]], plain: list[list[Epoch]]) -> dict[str, object]:
    """One row: medians over the rounds, and medians of the ratios round by round."""
    row: dict[str, object] = {"photos": photos, "loader": loader, "rounds": [[asdict(e) for e in run] for run in done]}
    for part, of in (("first", lambda run: run[0]), ("later", _later)):
        mine, theirs = [of(run) for run in done], [of(run) for run in plain]
        pairs = list(zip(mine, theirs, strict=True))
        row |= {
            f"{part}_cpu_ms": statistics.median(one.cpu_ms for one in mine),
            f"{part}_images_per_s": statistics.median(one.images_per_s for one in mine),
            f"{part}_times_less_cpu": statistics.median(b.cpu_ms / a.cpu_ms for a, b in pairs),
            f"{part}_times_faster": statistics.median(a.images_per_s / b.images_per_s for a, b in pairs),
        }
    return row


def _later(run: list[Epoch]) -> Epoch:
    return Epoch(
        statistics.median(epoch.cpu_ms for epoch in run[1:]), statistics.median(epoch.images_per_s for epoch in run[1:])
    )


def print_table(rows: list[dict[str, object]], chosen: argparse.Namespace) -> None:
    """The table in Markdown."""
    print(f"\nbatch {chosen.batch_size}, {chosen.workers} workers, medians of {chosen.rounds} interleaved rounds\n")
    print(
        "| photos | loader | CPU ms per image, first epoch | later | images/s, first epoch | later "
        "| times less CPU, first | later | times faster, first | later |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['photos']} | {row['loader']} | {row['first_cpu_ms']:.2f} | {row['later_cpu_ms']:.2f} "
            f"| {row['first_images_per_s']:.0f} | {row['later_images_per_s']:.0f} "
            f"| {row['first_times_less_cpu']:.1f} | {row['later_times_less_cpu']:.1f} "
            f"| {row['first_times_faster']:.1f} | {row['later_times_faster']:.1f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
