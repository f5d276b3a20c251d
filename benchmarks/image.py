"""How large an image is, how soon it trains, and how soon it answers.

    python benchmarks/image.py dogbreed:latest

Starts real containers without a network, in turn: a job on a few drawn photos with the tiny network, whose own work is
next to nothing, and an endpoint with the bundle that the job left. The clock runs from `docker run` until the losses of
the first training step are saved, and until `/ping` answers 200. The first round finds the image's files cold or
warm, as the machine has them; medians are of all rounds.

Prints two tables and writes the same figures to build/bench/image.json.
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
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "bench" / "image.json"
HYPERPARAMETERS = {
    "model": "tiny",
    "pretrained": "false",
    "trainable": "all",
    "image-size": "32",
    "epochs": "2",
    "batch-size": "8",
}
PATIENCE_S = 600.0


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="tag or digest of an image that the engine has")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "drawn"
        draw = ["--classes", "3", "--train", "12", "--valid", "6", "--test", "6", "--size", "48"]
        subprocess.run(  # noqa: S603  our own
            [sys.executable, str(ROOT / "local_test" / "make_data.py"), str(data), *draw],
            check=True,
            capture_output=True,
        )
        for image in chosen.images:
            rounds = []
            for number in range(chosen.rounds):
                rounds.append(measure(image, data, Path(scratch) / uuid.uuid4().hex))
                print(f"{image} round {number + 1}: {rounds[-1]}", file=sys.stderr)
            rows.append(describe(image, rounds))
    print_tables(rows, chosen.rounds)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "processors": os.cpu_count()}
    OUT.write_text(json.dumps({**facts, "rows": rows}, indent=2))
    return 0


def docker(*arguments: str) -> str:
    """Runs the docker client and returns what it printed; ends the program with its complaint when it fails."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode:
        sys.exit(f"docker {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def measure(image: str, data: Path, ml: Path) -> dict[str, float]:
    """One job and one endpoint: seconds to the first step, to the end of the job, and to the first 200 of /ping."""
    for folder in ("input/config", "model", "output"):
        (ml / folder).mkdir(parents=True)
    (ml / "input" / "config" / "hyperparameters.json").write_text(json.dumps(HYPERPARAMETERS))
    # smdebug's file of step 0, which it closes when the step is over.
    first = ml / "output" / "tensors" / "events" / "000000000000"
    mounts = [
        f"--mount=type=bind,source={ml},target=/opt/ml",
        f"--mount=type=bind,source={data},target=/opt/ml/input/data/train,readonly",
    ]
    name = start([*mounts, "--network=none", image, "train"])
    try:
        began = time.monotonic()
        step_s = wait(lambda: first.is_dir() and any(first.glob("*.tfevents")), began, name)
        code = docker("wait", name)
        job_s = time.monotonic() - began
        if code != "0":
            sys.exit(f"the job in {image} exited with {code}:\n{docker('logs', name)}")
    finally:
        docker("rm", "--force", name)
    model = f"--mount=type=bind,source={ml / 'model'},target=/opt/ml/model,readonly"
    began = time.monotonic()
    name = start([model, "--publish=127.0.0.1::8080", image, "serve"])
    try:
        url = f"http://{docker('port', name, '8080/tcp').splitlines()[0]}/ping"
        ping_s = wait(lambda: answers(url), began, name)
    finally:
        docker("rm", "--force", name)
    return {"first_step_s": round(step_s, 2), "job_s": round(job_s, 2), "ping_s": round(ping_s, 2)}


def start(arguments: list[str]) -> str:
    """Starts a container and returns its name."""
    name = f"dogbreed-bench-{uuid.uuid4().hex[:12]}"
    docker("run", "--detach", "--name", name, *arguments)
    return name


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  our own server
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def wait(condition: Callable[[], bool], began: float, name: str) -> float:
    """Seconds since ``began`` when the condition holds; ends the program if the container ends first."""
    looked = time.monotonic()
    while not condition():
        now = time.monotonic()
        if now - looked > 5:
            looked = now
            if docker("inspect", "--format={{.State.Running}}", name) != "true" and not condition():
                sys.exit(f"the container has ended:\n{docker('logs', name)}")
        if now - began > PATIENCE_S:
            sys.exit(f"not there after {PATIENCE_S:.0f} s:\n{docker('logs', name)}")
        time.sleep(0.02)
    return time.monotonic() - began


def describe(image: str, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """One row: size, layers, and medians over the rounds."""
    history = docker("history", "--no-trunc", "--human=false", "--format={{.Size}}\t{{.CreatedBy}}", image)
    layers = [
        (int(size), step) for size, _, step in (line.partition("\t") for line in history.splitlines()) if int(size)
    ]
    return {
        "image": image,
        "bytes": int(docker("image", "inspect", "--format={{.Size}}", image)),
        "layers": [{"bytes": size, "step": step} for size, step in reversed(layers)],
        **{key: statistics.median(one[key] for one in rounds) for key in rounds[0]},
        "rounds": rounds,
    }


def print_tables(rows: list[dict[str, Any]], rounds: int) -> None:
    """Both tables in Markdown."""
    print(f"\n{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} processors, medians of {rounds} rounds\n")
    print("| image | size | `docker run` to the first training step | to the end of the job | to `/ping` 200 |")
    print("|---|---|---|---|---|")
    for row in rows:
        times = " | ".join(f"{row[key]:.1f} s" for key in ("first_step_s", "job_s", "ping_s"))
        print(f"| {row['image']} | {size_text(row['bytes'])} | {times} |")
    print("\n| image | layer | size |\n|---|---|---|")
    for row in rows:
        for layer in row["layers"]:
            step = " ".join(layer["step"].split())[:60] or "base"
            print(f"| {row['image']} | `{step}` | {size_text(layer['bytes'])} |")


def size_text(size: int) -> str:
    """Bytes in the unit that Docker prints: 1 GB is 1e9 bytes."""
    return next(
        f"{size / unit:.3g} {name}" for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if size >= unit
    )


if __name__ == "__main__":
    sys.exit(main())
