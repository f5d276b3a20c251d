"""What a search costs, in trainings: 20 trials here beside one job, and beside 20 runs of the plain loop.

    python benchmarks/tuning.py --data DOGS --weights mobilenet_v2=mobilenet_v2.pth

In turn, round by round, each with an empty cache and as whole processes: one job with the defaults; the same job with
`search-trials`; `launch.py tune --local` one trial at a time, and with a trial per core. What counts is CPU time, user
and system, of the command and of all that it starts.

The plain loop is that of training.py: ImageFolder, PIL, a DataLoader, a frozen backbone through which every image goes
in every epoch. It is run for one epoch and for three; the difference gives what an epoch, and so an image, costs it,
and the rest what a start costs. 20 plain runs are computed from these two, not run: for 5 epochs as earlier projects
had, for as many as the trials ran on average before early stopping ended them, and for the 20 that they may run.

Prints two tables and writes the same figures to build/bench/tuning.json. `--check 2` makes it an error when the search
costs more trainings.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import bytecode
from training import lay_out
from training import run as run_plain

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "bench" / "tuning.json"
JOB, IN_JOB, TUNE, TUNE_PARALLEL = "one job", "one job, search-trials", "tune --local", "tune --local --parallel"
EARLIER_EPOCHS, DEFAULT_EPOCHS = 5, 20
PLAIN_EPOCHS = (1, 3)


@dataclass(frozen=True, slots=True)
class Run:
    """One command.

    Attributes:
        cpu_s: user and system time, children included.
        wall_s: elapsed.
        validation_accuracy: of what it ended with, in [0, 1].
        epochs: that its trials ran, or the job.
        trials: how many have ended.
    """

    cpu_s: float
    wall_s: float
    validation_accuracy: float
    epochs: int
    trials: int


def main() -> int:
    """Runs the rounds and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, valid and test")
    parser.add_argument("--weights", metavar="MODEL=FILE", required=True, help="real weights of the backbone")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=[JOB, IN_JOB, TUNE, TUNE_PARALLEL], help="what is run")
    parser.add_argument("--without-plain", action="store_true", help="leave the plain loop out")
    parser.add_argument("--check", type=float, metavar="RATIO", help="fail when the search costs more trainings")
    chosen = parser.parse_args()
    bytecode.prepare()
    chosen.model, file = chosen.weights.split("=", 1)
    chosen.data, chosen.file = chosen.data.resolve(), Path(file).resolve()
    cores = len(os.sched_getaffinity(0))
    ways: Mapping[str, Callable[[Path, int], Run]] = {
        JOB: partial(run_job, chosen, 0),
        IN_JOB: partial(run_job, chosen, chosen.trials),
        TUNE: partial(run_search, chosen, 1),
        TUNE_PARALLEL: partial(run_search, chosen, cores),
    }
    runs: dict[str, list[Run]] = {name: [] for name in ways if name in {JOB, *chosen.ways}}
    for seed in range(chosen.rounds):
        for name, done in runs.items():
            with tempfile.TemporaryDirectory() as scratch:
                done.append(ways[name](Path(scratch), seed))
            print(f"{name} round {seed + 1}: {done[-1]}", file=sys.stderr)
    rows = [describe(name, done, runs[JOB]) for name, done in runs.items()]
    plain = None if chosen.without_plain else measure_plain(chosen)
    print_tables(rows, plain, chosen, cores)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"arguments": vars(chosen), "rows": rows, "plain": plain}, default=str, indent=2))
    worst = max((float(str(row["trainings"])) for row in rows if row["way"] == TUNE), default=0.0)
    return int(chosen.check is not None and worst > chosen.check)


def run_job(chosen: Namespace, trials: int, scratch: Path, seed: int) -> Run:
    """One job, with a search inside it or without."""
    ml = lay_out(
        scratch, chosen.file, {"model": chosen.model, "seed": str(seed), "search-trials": str(trials)}, chosen.data
    )
    environ = {"SAGEMAKER_BASE_DIR": str(ml), "DOGBREED_CACHE_DIR": f"{scratch}/cache", "OMP_WAIT_POLICY": "PASSIVE"}
    cpu_s, wall_s, log = timed([sys.executable, str(ROOT / "container" / "train")], environ, scratch)
    metrics = json.loads((ml / "model" / "bundle.json").read_text())["metrics"]
    return Run(cpu_s, wall_s, metrics["validation_accuracy"], count_epochs(log), max(trials, 1))


def run_search(chosen: Namespace, parallel: int, scratch: Path, seed: int) -> Run:
    """`launch.py tune --local`, whose features and study are in the working directory."""
    command = [sys.executable, str(ROOT / "scripts" / "launch.py"), "tune", "--local", "--data", str(chosen.data)]
    command += [
        "--weights",
        str(chosen.file),
        "--hp",
        f"model={chosen.model}",
        f"seed={seed}",
        "--trials",
        str(chosen.trials),
    ]
    command += ["--parallel", str(parallel), "--seed", str(seed), "--name", "bench"]
    cpu_s, wall_s, _ = timed(command, {}, scratch)
    folder = scratch / "build" / "tuning"
    logs = [file.read_text() for file in (folder / "bench").glob("trial-*/log")]
    best = json.loads((folder / "bench.json").read_text())["value"]
    return Run(cpu_s, wall_s, best, sum(map(count_epochs, logs)), len(logs))


def timed(command: list[str], environ: Mapping[str, str], folder: Path) -> tuple[float, float, str]:
    """CPU seconds, elapsed seconds and output of a command; what it starts is in its own children."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    merged = {**os.environ, **environ}
    done = subprocess.run(command, env=merged, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    wall_s, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu_s, wall_s, done.stdout + done.stderr


def count_epochs(log: str) -> int:
    """Epochs that a job has printed."""
    return len(re.findall(r"\bepoch=\d+;", log))


def measure_plain(chosen: Namespace) -> dict[str, float]:
    """CPU seconds of a start and of an epoch of the plain loop, medians over the rounds."""
    starts, epochs = [], []
    for seed in range(chosen.rounds):
        short, long = (
            run_plain(
                "plain",
                chosen.model,
                chosen.file,
                seed,
                Namespace(data=chosen.data, epochs=count, batch_size=32),
            )
            for count in PLAIN_EPOCHS
        )
        epochs.append((long.cpu_s - short.cpu_s) / (PLAIN_EPOCHS[1] - PLAIN_EPOCHS[0]))
        starts.append(short.cpu_s - PLAIN_EPOCHS[0] * epochs[-1])
        print(f"plain round {seed + 1}: {short}, {long}", file=sys.stderr)
    images = sum(1 for split in ("train", "valid") for file in (chosen.data / split).rglob("*") if file.is_file())
    return {
        "start_cpu_s": statistics.median(starts),
        "epoch_cpu_s": statistics.median(epochs),
        "images": images,
        "image_cpu_ms": statistics.median(epochs) / images * 1000,
    }


def describe(name: str, done: list[Run], job: list[Run]) -> dict[str, object]:
    """One row: medians over the rounds, and the median of the ratios round by round."""
    return {
        "way": name,
        "cpu_s": statistics.median(one.cpu_s for one in done),
        "wall_s": statistics.median(one.wall_s for one in done),
        "trainings": statistics.median(one.cpu_s / single.cpu_s for one, single in zip(done, job, strict=True)),
        "epochs": statistics.median(one.epochs / one.trials for one in done),
        "validation_accuracy": statistics.mean(one.validation_accuracy for one in done),
        "rounds": [asdict(one) for one in done],
    }


def print_tables(rows: list[dict[str, object]], plain: dict[str, float] | None, chosen: Namespace, cores: int) -> None:
    """Both tables in Markdown."""
    print(
        f"\n{chosen.trials} trials, {cores} cores, {chosen.rounds} interleaved rounds, whole processes, empty caches\n"
    )
    print("| way | CPU s | wall s | trainings | validation accuracy |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['way']} | {row['cpu_s']:.1f} | {row['wall_s']:.1f} | {row['trainings']:.2f} "
            f"| {row['validation_accuracy']:.3f} |"
        )
    if plain is None:
        return
    print(
        f"\nA plain run: {plain['start_cpu_s']:.1f} CPU s for its start and its test, and {plain['image_cpu_ms']:.1f} "
        f"ms per image and epoch, {plain['epoch_cpu_s']:.1f} s per epoch of {plain['images']:.0f} images. "
        f"{chosen.trials} of them, computed from that:\n"
    )
    searches = [row for row in rows if row["way"] != JOB]
    print("| epochs of each | CPU s |" + "".join(f" times {row['way']} |" for row in searches))
    print("|---|---|" + "---|" * len(searches))
    ran = statistics.median(float(str(row["epochs"])) for row in searches if row["way"] != IN_JOB) if searches else 0.0
    for label, epochs in (
        (f"{EARLIER_EPOCHS}, as earlier projects", float(EARLIER_EPOCHS)),
        (f"{ran:.1f}, as the trials on average", ran),
        (f"{DEFAULT_EPOCHS}, as the trials at most", float(DEFAULT_EPOCHS)),
    ):
        cpu_s = chosen.trials * (plain["start_cpu_s"] + epochs * plain["epoch_cpu_s"])
        print(f"| {label} | {cpu_s:.0f} |" + "".join(f" {cpu_s / float(str(row['cpu_s'])):.0f} |" for row in searches))


if __name__ == "__main__":
    sys.exit(main())
