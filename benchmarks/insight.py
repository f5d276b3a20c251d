"""What insight adds to an epoch: the same job with it and without.

    python benchmarks/insight.py --data DOGS --weights mobilenet_v2=mobilenet_v2.pth

Two jobs are measured: a head on stored features, whose steps are the shortest there are, and fine-tuning of the whole
network. Each is the real job, in a process of its own, once with `insight=true`, its default, and once with
`insight=false`; they take turns, round by round, and share one cache of features. What counts is the CPU time, user and
system, of all threads, over all epochs but the first one: an epoch is a training and a validation pass and what stands
between two. What a job costs once (the import of smdebug, the last verdicts, the report) is in the column beside it.

Prints a table and writes the same figures to build/bench/insight.json. `--check 1.03` makes a greater ratio an error.
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

from training import lay_out

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "bench" / "insight.json"
JOBS = {
    "a head on stored features": {"trainable": "head", "lr": "0.001"},
    "fine-tuning, a small network": {"model": "tiny", "pretrained": "false", "trainable": "all", "image-size": "64"},
}


@dataclass(frozen=True, slots=True)
class Run:
    """One job.

    Attributes:
        epochs_cpu_s: user and system time of all epochs but the first.
        rest_cpu_s: of all else, imports and the first epoch included.
    """

    epochs_cpu_s: float
    rest_cpu_s: float


def main() -> int:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, valid and test")
    parser.add_argument("--weights", metavar="MODEL=FILE", help="of the head's backbone; random ones say the same")
    parser.add_argument("--jobs", nargs="*", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--epochs", type=int, nargs=2, default=(60, 6), help="of the head's job, and of the other")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", type=float, metavar="RATIO", help="fail when a job's median ratio is greater")
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for job in chosen.jobs:
            epochs = chosen.epochs[list(JOBS).index(job)]
            runs: dict[bool, list[Run]] = {False: [], True: []}
            run(job, epochs, Path(scratch), chosen, insight=False)  # fills the caches
            for number in range(chosen.rounds):
                # Which goes first changes from round to round.
                for insight in (False, True) if number % 2 else (True, False):
                    runs[insight].append(run(job, epochs, Path(scratch), chosen, insight=insight))
                    print(f"{job}, insight={insight}, round {number + 1}: {runs[insight][-1]}", file=sys.stderr)
            rows.append(describe(job, epochs, runs))
    print_table(rows, chosen.rounds)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"arguments": vars(chosen), "rows": rows}, default=str, indent=2))
    over = [row for row in rows if chosen.check and float(str(row["ratio"])) > chosen.check]
    return 1 if over else 0


def run(job: str, epochs: int, scratch: Path, chosen: argparse.Namespace, *, insight: bool) -> Run:
    """One job from start to end."""
    settings = {"epochs": str(epochs), "patience": "0", "insight": str(insight).lower(), **JOBS[job]}
    file = None
    if "model" not in settings:
        model, _, path = (chosen.weights or "mobilenet_v2=").partition("=")
        file = Path(path).resolve() if path else None
        settings |= {"model": model, "pretrained": str(bool(file)).lower()}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        environ = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "DOGBREED_CACHE_DIR": str(scratch / "cache")}
        environ["SAGEMAKER_BASE_DIR"] = str(lay_out(Path(folder), file, settings, chosen.data))
        done = subprocess.run(  # noqa: S603  our own
            [sys.executable, __file__, "--job", "--data", str(chosen.data)],
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        sys.exit(f"{job}, insight={insight}, exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    told: dict[str, list[float]] = json.loads(done.stderr.splitlines()[-1])
    spent = told["ends"][-1] - told["ends"][0]
    return Run(spent, told["all"][0] - spent)


def one_job() -> int:
    """The real job, with a console that also notes the CPU time at each epoch's end."""
    from dogbreed.training import job
    from dogbreed.training.console import Console
    from dogbreed.training.state import EpochResult

    ends: list[float] = []

    class Clock(Console):
        def on_epoch_end(self, result: EpochResult) -> None:
            super().on_epoch_end(result)
            ends.append(time.process_time())

    job.Console = Clock  # type: ignore[misc]
    code = job.main()
    print(json.dumps({"ends": ends, "all": [time.process_time()]}), file=sys.stderr)
    return code


def describe(job: str, epochs: int, runs: dict[bool, list[Run]]) -> dict[str, object]:
    """One row: medians over the rounds, and the median of the ratios round by round."""
    measured = epochs - 1
    ratios = [on.epochs_cpu_s / off.epochs_cpu_s for on, off in zip(runs[True], runs[False], strict=True)]
    once = [on.rest_cpu_s - off.rest_cpu_s for on, off in zip(runs[True], runs[False], strict=True)]
    return {
        "job": job,
        "epochs": measured,
        "off_ms": statistics.median(1000 * one.epochs_cpu_s / measured for one in runs[False]),
        "on_ms": statistics.median(1000 * one.epochs_cpu_s / measured for one in runs[True]),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "once_s": statistics.median(once),
        "rounds": {str(insight): [asdict(one) for one in done] for insight, done in runs.items()},
    }


def print_table(rows: list[dict[str, object]], rounds: int) -> None:
    """The table in Markdown."""
    print(f"\nCPU time of an epoch; {rounds} interleaved rounds\n")
    print("| job | epochs | off, ms | on, ms | ratio (range) | once, s |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['job']} | {row['epochs']} | {row['off_ms']:.1f} | {row['on_ms']:.1f} | {row['ratio']:.3f} "
            f"({row['lowest']:.3f} to {row['highest']:.3f}) | {row['once_s']:.1f} |"
        )


if __name__ == "__main__":
    sys.exit(one_job() if "--job" in sys.argv else main())
