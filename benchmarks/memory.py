"""How the memory of a training job grows with the number of its images.

    python benchmarks/memory.py --data DOGS

The job runs with one, four and sixteen times the photos (the same ones under several names) and an empty cache. Images
and stored outputs are mapped from files: what a job holds itself is what is not shared with a file; mapped pages are
the kernel's to take back.

Prints a table and writes the same figures to build/bench/memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "bench" / "memory.json"
JOBS = {
    "head": {"trainable": "head", "epochs": "2"},
    "last stage": {"trainable": "last_stage", "epochs": "2", "head-epochs": "0"},
    "everything": {"trainable": "all", "epochs": "2", "head-epochs": "0"},
}


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that was held at any look, in MiB.

    Attributes:
        images: of all splits.
        anonymous: memory of the job's own.
        mapped: pages of files, libraries included.
        stored: size of the files in the cache folder at the end.
    """

    images: int
    anonymous: float
    mapped: float
    stored: float


def main() -> int:
    """Runs the jobs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train")
    parser.add_argument("--model", default="mobilenet_v2", help="with random weights")
    parser.add_argument("--jobs", nargs="*", choices=JOBS, default=["head", "last stage"])
    parser.add_argument("--photos", type=int, default=120, help="files to begin with")
    parser.add_argument("--times", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--hp", nargs="*", default=[], metavar="NAME=VALUE", help="further hyperparameters of the jobs")
    chosen = parser.parse_args()
    rows: dict[str, list[Peak]] = {}
    for job in chosen.jobs:
        rows[job] = []
        for times in chosen.times:
            peaks = [run(JOBS[job], times, chosen) for _ in range(chosen.rounds)]
            rows[job].append(
                Peak(
                    peaks[0].images,
                    statistics.median(one.anonymous for one in peaks),
                    statistics.median(one.mapped for one in peaks),
                    peaks[0].stored,
                )
            )
            print(f"{job}, {times} times: {rows[job][-1]}", file=sys.stderr)
    print(f"\n{chosen.model}, peaks in MiB, {chosen.rounds} rounds\n")
    print("| what learns | images | the job's own memory | mapped files in memory | stored outputs |")
    print("|---|---|---|---|---|")
    for job, done in rows.items():
        for one in done:
            print(f"| {job} | {one.images} | {one.anonymous:.0f} | {one.mapped:.0f} | {one.stored:.1f} |")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(
        json.dumps(
            {"arguments": vars(chosen), "rows": {job: [asdict(one) for one in done] for job, done in rows.items()}},
            default=str,
            indent=2,
        )
    )
    return 0


def run(settings: dict[str, str], times: int, chosen: argparse.Namespace) -> Peak:
    """One job from start to end, looked at twenty times a second."""
    with tempfile.TemporaryDirectory() as scratch:
        ml, cache = Path(scratch) / "ml", Path(scratch) / "cache"
        images = multiply(chosen.data, ml / "input" / "data" / "train", chosen.photos, times)
        config = ml / "input" / "config"
        config.mkdir(parents=True)
        config.joinpath("hyperparameters.json").write_text(
            json.dumps(
                {
                    "model": chosen.model,
                    "pretrained": "false",
                    "patience": "0",
                    **settings,
                    **dict(pair.split("=", 1) for pair in chosen.hp),
                }
            )
        )
        environ = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "SAGEMAKER_BASE_DIR": str(ml)}
        process = subprocess.Popen(  # noqa: S603  our own
            [sys.executable, str(ROOT / "container" / "train")],
            env={**environ, "DOGBREED_CACHE_DIR": str(cache)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        anonymous = mapped = 0.0
        while process.poll() is None:
            held = _held(process.pid)
            anonymous, mapped = max(anonymous, held[0]), max(mapped, held[1])
            time.sleep(0.05)
        if process.returncode:
            sys.exit((process.stderr.read() if process.stderr else "")[-2000:])
        stored = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) / 2**20
    return Peak(images, anonymous, mapped, stored)


def multiply(data: Path, out: Path, photos: int, times: int) -> int:
    """Fills a folder with so many of the photos, so many times; returns how many that are."""
    files = sorted((data / "train").rglob("*.jpg"))
    files = files[:: max(1, len(files) // photos)][:photos]
    for copy in range(times):
        for file in files:
            target = out / file.parent.name / f"{copy:03d}-{file.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return len(files) * times


def _held(pid: int) -> tuple[float, float]:
    """Anonymous and mapped memory of a process now, in MiB; zeros when it has just ended."""
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.NoSuchProcess:
        return 0.0, 0.0
    return (memory.rss - memory.shared) / 2**20, memory.shared / 2**20


if __name__ == "__main__":
    sys.exit(main())
