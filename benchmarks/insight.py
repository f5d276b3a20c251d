"""What insight adds to an epoch: the same job with it and without.

    python benchmarks/insight.py --data DOGS --weights mobilenet_v2=mobilenet_v2.pth

Two jobs are measured: a head on stored features, whose steps are the shortest there are, and fine-tuning of a small
network. Each is the real job, in a process of its own, once with `insight=true`, its default, and once with
`insight=false`. The two processes of a round take turns of about a second each: only one of them works at a time, and
what else the machine does meets both alike. What counts is the CPU time, user and system, of all threads, while it is a
process's turn; an epoch is a training and a validation pass and what stands between two. The first epochs are not
counted. A round's ratio is that of its totals, so that what happens seldom (a look of the rules, a file) counts as
often as it happens. What a job costs once (the import of smdebug, the last verdicts, the report) is in the last column.

Prints a table and writes the same figures to build/bench/insight.json. `--check 1.03` makes a greater ratio an error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO, cast

import bytecode
from training import lay_out

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "bench" / "insight.json"
MARK = "turn over: "
JOBS = {
    "a head on stored features": {"trainable": "head", "lr": "0.001"},
    "fine-tuning, a small network": {"model": "tiny", "pretrained": "false", "trainable": "all", "image-size": "64"},
}


@dataclass(frozen=True, slots=True)
class Run:
    """One job.

    Attributes:
        epochs_cpu_s: user and system time of the epochs that count.
        rest_cpu_s: of all else, imports and the first epochs included.
    """

    epochs_cpu_s: float
    rest_cpu_s: float


def main() -> int:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, valid and test")
    parser.add_argument("--weights", metavar="MODEL=FILE", help="of the head's backbone; random ones say the same")
    parser.add_argument("--jobs", nargs="*", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--epochs", type=int, nargs=2, default=(400, 24), help="of the head's job, and of the other")
    parser.add_argument("--turn", type=int, nargs=2, default=(20, 3), help="epochs of a turn, of the same")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--check", type=float, metavar="RATIO", help="fail when a job's median ratio is greater")
    chosen = parser.parse_args()
    bytecode.prepare()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for job in chosen.jobs:
            number = list(JOBS).index(job)
            turns = Turns(chosen.turn[number], chosen.epochs[number] // chosen.turn[number])
            with Job(job, turns, Path(scratch), chosen, insight=False) as alone:  # fills the caches
                take_turns([alone])
            rounds = []
            for count in range(chosen.rounds):
                with (
                    Job(job, turns, Path(scratch), chosen, insight=False) as off,
                    Job(job, turns, Path(scratch), chosen, insight=True) as on,
                ):
                    # Which goes first changes from round to round.
                    take_turns([off, on] if count % 2 else [on, off])
                    rounds.append((off.run(), on.run()))
                print(f"{job}, round {count + 1}: off {rounds[-1][0]}, on {rounds[-1][1]}", file=sys.stderr)
            rows.append(describe(job, turns, rounds))
    print_table(rows, chosen.rounds)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"arguments": vars(chosen), "rows": rows}, default=str, indent=2))
    over = [row for row in rows if chosen.check and float(str(row["ratio"])) > chosen.check]
    return 1 if over else 0


@dataclass(frozen=True, slots=True)
class Turns:
    """Of a job.

    Attributes:
        epochs: of a turn.
        count: turns; the first one does not count.
    """

    epochs: int
    count: int


class Job:
    """A job in a process of its own, that works when it is told to.

    Args:
        name: of `JOBS`.
        turns: that it takes.
        scratch: folder for its files, and for the features that all jobs share.
        chosen: the command line.
        insight: on or off.
    """

    def __init__(self, name: str, turns: Turns, scratch: Path, chosen: argparse.Namespace, *, insight: bool) -> None:
        self._name = f"{name}, insight={insight}"
        settings = {"epochs": str(turns.epochs * turns.count), "patience": "0", **JOBS[name]}
        settings["insight"] = str(insight).lower()
        file = None
        if "model" not in settings:
            model, _, path = (chosen.weights or "mobilenet_v2=").partition("=")
            file = Path(path).resolve() if path else None
            settings |= {"model": model, "pretrained": str(bool(file)).lower()}
        self._folder = tempfile.TemporaryDirectory(dir=scratch)
        self._errors = Path(self._folder.name, "errors")
        environ = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "DOGBREED_CACHE_DIR": str(scratch / "cache")}
        environ["SAGEMAKER_BASE_DIR"] = str(lay_out(Path(self._folder.name), file, settings, chosen.data))
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(  # noqa: S603  our own
                [sys.executable, __file__, "--job", str(turns.epochs), "--data", str(chosen.data)],
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._lines = cast(TextIO, self._process.stdout)
        self._turns = turns
        self._told: list[float] = []

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def turn(self) -> bool:
        """Lets the process work for one turn, or to its start or its end; False when it has ended."""
        with contextlib.suppress(BrokenPipeError):
            print("go", file=self._process.stdin, flush=True)
        for line in self._lines:
            if line.startswith(MARK):
                self._told.append(float(line.removeprefix(MARK)))
                if len(self._told) <= self._turns.count:
                    return True
        if self._process.wait():
            sys.exit(f"{self._name}, exited with {self._process.returncode}:\n{self._errors.read_text()}")
        return False

    def run(self) -> Run:
        """What an ended job has used."""
        *turns, everything = self._told
        spent = sum(turns[1:])
        return Run(spent, everything - spent)


def take_turns(jobs: list[Job]) -> None:
    """Lets the jobs work one after the other, until all have ended."""
    while jobs:
        jobs = [job for job in jobs if job.turn()]


def one_job(epochs: int) -> int:
    """The real job, with a console that also waits for its turn at an epoch's end, and tells what the last one took."""
    sys.stdin.readline()
    from dogbreed.training import job
    from dogbreed.training.console import Console
    from dogbreed.training.state import EpochResult

    class Clock(Console):
        began = 0.0

        def on_epoch_end(self, result: EpochResult) -> None:
            super().on_epoch_end(result)
            if result.epoch % epochs == 0:
                print(f"{MARK}{time.process_time() - self.began}", flush=True)
                sys.stdin.readline()
                self.began = time.process_time()

    job.Console = Clock  # type: ignore[misc]
    code = job.main()
    print(f"{MARK}{time.process_time()}", flush=True)
    return code


def describe(job: str, turns: Turns, rounds: list[tuple[Run, Run]]) -> dict[str, object]:
    """One row: medians over the rounds."""
    measured = turns.epochs * (turns.count - 1)
    ratios = [on.epochs_cpu_s / off.epochs_cpu_s for off, on in rounds]
    return {
        "job": job,
        "epochs": measured,
        "off_ms": statistics.median(1000 * off.epochs_cpu_s / measured for off, _ in rounds),
        "on_ms": statistics.median(1000 * on.epochs_cpu_s / measured for _, on in rounds),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "once_s": statistics.median(on.rest_cpu_s - off.rest_cpu_s for off, on in rounds),
        "rounds": [{"off": asdict(off), "on": asdict(on)} for off, on in rounds],
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
    sys.exit(one_job(int(sys.argv[2])) if sys.argv[1:2] == ["--job"] else main())
