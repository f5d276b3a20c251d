"""Our server against what one would put in its place, as requests per second, tails, CPU and memory.

    python benchmarks/serving.py                                 # a quick look: one round of 3 s
    python benchmarks/serving.py --rounds 5 --seconds 10 --rates 0.5 0.7 0.9 3

    python benchmarks/serving.py --together --rounds 15 --seconds 2.5   # where the machine's speed comes and goes

All servers hold the same network (a bundle; by default one of resnet18 with random weights) and are sent the same
photos (by default drawn ones of 500x375). They run one at a time, in turns, round by round; each is started anew in
each round. With --together they are started once and are asked in turns, seconds apart instead of a minute: memory and
starts are then those of servers side by side. Peers run with their own libraries in build/bench/peers, made at the
first run, which needs a package index.

In the same run: how many images per second as many bare processes as there are CPUs decode, score, and do both. The
last is the limit of any server. Rates of the open loop are shares of our own closed loop with 8 clients.

Prints tables of medians and writes all figures to build/bench/serving.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bytecode
import psutil

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
OUT = BUILD / "serving.json"
PEERS = ROOT / "benchmarks" / "peers"
PEERS_VENV = BUILD / "peers"
START_TIMEOUT_S = 180
BASE_CLIENTS = 8
"""Of the closed loop that the open loop's rates are shares of."""
CPUS = len(os.sched_getaffinity(0))

_GUNICORN = [sys.executable, "-m", "gunicorn", "--chdir", str(PEERS), "--log-level", "error"]
_PEERS_PYTHON = str(PEERS_VENV / "bin" / "python")


@dataclass(frozen=True, slots=True)
class Server:
    """How one server is started.

    Attributes:
        command: `{port}` stands for the port.
        variables: of its environment, beside those that all get.
    """

    command: Sequence[str]
    variables: Mapping[str, str]


OURS = Server([sys.executable, str(ROOT / "container" / "serve")], {})
SERVERS: dict[str, Server] = {
    "ours": OURS,
    "ours, a process per CPU": Server(OURS.command, {"SAGEMAKER_MODEL_SERVER_WORKERS": str(CPUS)}),
    "ours, torch": Server(OURS.command, {"DOGBREED_ENGINE": "torch"}),
    "classic sample": Server([*_GUNICORN, "--bind", "127.0.0.1:{port}", "-w", str(CPUS), "classic:app"], {}),
    "classic sample, one torch thread": Server(
        [*_GUNICORN, "--bind", "127.0.0.1:{port}", "-w", str(CPUS), "classic:app"], {"OMP_NUM_THREADS": "1"}
    ),
    "LitServe, defaults": Server([_PEERS_PYTHON, str(PEERS / "litserve_app.py"), "usual"], {}),
    "LitServe, our engine": Server([_PEERS_PYTHON, str(PEERS / "litserve_app.py"), "ours"], {}),
    "FastAPI, our engine": Server([_PEERS_PYTHON, str(PEERS / "fastapi_app.py")], {}),
    "Mosec, our engine": Server([_PEERS_PYTHON, str(PEERS / "mosec_app.py")], {}),
    "TorchServe, our engine": Server([_PEERS_PYTHON, str(PEERS / "torchserve_app.py")], {}),
}


def main() -> int:
    """Runs the rounds and prints the tables."""
    chosen = read_arguments()
    if chosen.limit:
        print(json.dumps(run_limit(chosen.limit, chosen.model, chosen.photos, chosen.seconds)))
        return 0
    bytecode.prepare()
    # So that whoever stops this stops the server that runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    BUILD.mkdir(parents=True, exist_ok=True)
    model = chosen.model or make_bundle(chosen.backbone)
    photos = chosen.photos or draw_photos(24)
    names = chosen.servers or list(SERVERS)
    if any(_PEERS_PYTHON in SERVERS[name].command for name in names):
        install_peers()
    results: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        alive = [stack.enter_context(running(name, model, photos)) for name in names] if chosen.together else []
        for number in range(1, chosen.rounds + 1):
            measure_limits(results, number, model, photos, chosen.seconds)
            if chosen.together:
                ask_in_turns(results, number, [server for server in alive if server is not None], photos, chosen)
                continue
            for name in names:
                for figures in run_server(name, model, photos, chosen, rate_base(results, number)):
                    keep(results, {"round": number, "server": name, **figures})
    arguments = {key: str(value) for key, value in vars(chosen).items()}
    OUT.write_text(json.dumps({"arguments": arguments, "cpus": CPUS, "results": results}, indent=2))
    print_tables(results, names)
    return 0


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a bundle")
    parser.add_argument("--backbone", default="resnet18", help="with random weights, where no --model is given")
    parser.add_argument("--photos", type=Path, help="folder of .jpg files")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--rates", type=float, nargs="*", default=[0.7], help="shares of our maximum, open loop")
    parser.add_argument("--together", action="store_true", help="start all servers once, and ask them in turns")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--servers", nargs="*", choices=list(SERVERS), metavar="NAME", help="; ".join(SERVERS))
    parser.add_argument("--limit", choices=("decode", "model", "serial"), help=argparse.SUPPRESS)
    return parser.parse_args()


def keep(results: list[dict[str, Any]], figures: dict[str, Any]) -> None:
    """Notes one measurement and shows that something happens."""
    results.append(figures)
    print(
        {key: round(value, 2) if isinstance(value, float) else value for key, value in figures.items()},
        file=sys.stderr,
        flush=True,
    )


def make_bundle(backbone: str) -> Path:
    """A bundle of random weights; made once."""
    folder = BUILD / "models" / backbone
    if (folder / "bundle.json").is_file():
        return folder
    import torch

    from dogbreed import artifacts, backbones
    from dogbreed.labels import Labels
    from dogbreed.preprocessing import PreprocessSpec

    torch.manual_seed(0)
    head = backbones.HeadSpec(classes=120)
    artifacts.save(
        artifacts.Bundle(
            backbone=backbone,
            head=head,
            labels=Labels.from_folders([f"{index:03d}.Class_{index}" for index in range(head.classes)]),
            preprocessing=PreprocessSpec.for_size(224),
            weights=artifacts.clone_weights(backbones.build(backbone, head)),
            hyperparameters={},
            metrics={},
            data_fingerprint="none",
        ),
        folder,
    )
    return folder


def draw_photos(count: int) -> Path:
    """Noisy drawn photos of 500x375, about as large as real ones; drawn once."""
    folder = BUILD / "photos-500x375"
    if len(list(folder.glob("*.jpg"))) >= count:
        return folder
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        source = np.random.default_rng(number)
        coarse = Image.fromarray(source.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float64)
        noisy = smooth + source.normal(0, 6, smooth.shape)
        pixels = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.jpg", quality=88)
    return folder


def install_peers() -> None:
    """A virtual environment with the peers, and our own libraries behind theirs; made once."""
    marker = PEERS_VENV / ".installed"
    wanted = (PEERS / "requirements.txt").read_text()
    if marker.is_file() and marker.read_text() == wanted:
        return
    print("installing the peers into build/bench/peers", file=sys.stderr)
    venv.create(PEERS_VENV, with_pip=True, clear=True)
    pip = [_PEERS_PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r"]
    subprocess.run([*pip, str(PEERS / "requirements.txt")], check=True)  # noqa: S603  our own
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (next(PEERS_VENV.glob("lib/python*/site-packages")) / "zz_project.pth").write_text(ours + "\n")
    marker.write_text(wanted)


def environment(model: Path, port: int, variables: Mapping[str, str]) -> dict[str, str]:
    """What every server is started with."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "container"), os.environ.get("PYTHONPATH")])),
        "SAGEMAKER_BASE_DIR": str(model.parent),
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "DOGBREED_HOST": "127.0.0.1",
        "SM_LOG_LEVEL": "WARNING",
        "BENCH_MODEL": str(model),
        "BENCH_PORT": str(port),
        **variables,
    }


@dataclass(frozen=True, slots=True)
class Running:
    """A server that has answered.

    Attributes:
        first_s: seconds from its start to its first answer.
    """

    name: str
    process: subprocess.Popen[bytes]
    port: int
    first_s: float


@contextlib.contextmanager
def running(name: str, model: Path, photos: Path) -> Iterator[Running | None]:
    """Starts one server and ends it; None when it does not answer, with a line that says why."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = SERVERS[name]
    # The layout that our server reads: ROOT/model.
    staged = BUILD / "staged"
    staged.mkdir(parents=True, exist_ok=True)
    link = staged / "model"
    link.unlink(missing_ok=True)
    link.symlink_to(model.resolve(), target_is_directory=True)
    command = [part.format(port=port) for part in server.command]
    log = BUILD / f"server-{port}.log"
    began = time.perf_counter()
    with log.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603  our own
            command,
            env=environment(link, port, server.variables),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        try:
            first_s = wait_for_answer(port, photos, process, began, log)
        except ServerFailed as error:
            print(f"{name}: {error}", file=sys.stderr)
            yield None
            return
        yield Running(name, process, port, first_s)
    finally:
        end(process)
        log.unlink()


def run_server(
    name: str, model: Path, photos: Path, chosen: argparse.Namespace, base_rate: float | None
) -> list[dict[str, Any]]:
    """Starts one server, measures it under every load, and ends it."""
    found: list[dict[str, Any]] = []
    with running(name, model, photos) as server:
        if server is None:
            return found
        ours_rate = base_rate
        for clients in chosen.clients:
            send(server.port, photos, 1.0, ["--clients", str(clients)])  # warm-up
            found.append(ask(server, f"{clients} clients", photos, chosen.seconds, ["--clients", str(clients)]))
            if name == "ours" and clients == BASE_CLIENTS:
                ours_rate = found[-1]["requests_per_s"]
        for share in chosen.rates if ours_rate else []:
            rate = share * ours_rate
            figures = ask(server, f"rate {share:g}", photos, chosen.seconds, ["--rate", str(rate)])
            found.append({"rate": rate, **figures})
    return found


def ask_in_turns(
    results: list[dict[str, Any]], number: int, servers: Sequence[Running], photos: Path, chosen: argparse.Namespace
) -> None:
    """One round of all loads, each of all servers; another one begins in each round."""
    first = (number - 1) % max(1, len(servers))
    order = [*servers[first:], *servers[:first]]
    for clients in chosen.clients:
        for server in order:
            if number == 1:
                send(server.port, photos, 1.0, ["--clients", str(clients)])  # warm-up
            figures = ask(server, f"{clients} clients", photos, chosen.seconds, ["--clients", str(clients)])
            keep(results, {"round": number, "server": server.name, **figures})
    base = rate_base(results, number)
    for share in chosen.rates if base else []:
        for server in order:
            figures = ask(server, f"rate {share:g}", photos, chosen.seconds, ["--rate", str(share * base)])
            keep(results, {"round": number, "server": server.name, "rate": share * base, **figures})


def ask(server: Running, load: str, photos: Path, seconds: float, options: Sequence[str]) -> dict[str, Any]:
    """One measurement of one server."""
    figures = measure(server.process.pid, server.port, photos, seconds, options)
    return {"load": load, "start_s": server.first_s, **figures}


class ServerFailed(Exception):
    """A server did not answer; it is left out, with a line that says so."""


def wait_for_answer(port: int, photos: Path, process: subprocess.Popen[bytes], began: float, log: Path) -> float:
    """Seconds from the start to the first 200 for an image."""
    body = sorted(photos.rglob("*.jpg"))[0].read_bytes()
    while time.perf_counter() - began < START_TIMEOUT_S:
        if process.poll() is not None:
            raise ServerFailed(f"exited with {process.returncode}: {log.read_text()[-500:]}")
        request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "image/jpeg"})
        try:
            with urllib.request.urlopen(request, timeout=START_TIMEOUT_S) as answer:  # noqa: S310
                if answer.status == 200:
                    return time.perf_counter() - began
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.05)
    raise ServerFailed(f"no 200 within {START_TIMEOUT_S} s: {log.read_text()[-500:]}")


def send(port: int, photos: Path, seconds: float, load: Sequence[str]) -> dict[str, Any]:
    """One run of the load generator."""
    command = [sys.executable, str(ROOT / "benchmarks" / "load.py"), "--port", str(port), "--body", str(photos)]
    done = subprocess.run(  # noqa: S603  our own
        [*command, "--seconds", str(seconds), *load], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(pid: int, port: int, photos: Path, seconds: float, load: Sequence[str]) -> dict[str, Any]:
    """The load generator's figures, and the CPU and memory of the server's processes."""
    before = cpu_seconds(pid)
    figures = send(port, photos, seconds, load)
    used_s = cpu_seconds(pid) - before
    figures["cpu_ms"] = 1000 * used_s / max(1, figures["answered"])
    figures["pss_mib"] = sum(one.memory_full_info().pss for one in tree(pid)) / 2**20
    return figures


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    """Of all processes of a server that live now."""
    times = [process.cpu_times() for process in tree(pid)]
    return sum(one.user + one.system for one in times)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a server and whatever it started; it has a session of its own."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measure_limits(results: list[dict[str, Any]], number: int, model: Path, photos: Path, seconds: float) -> None:
    """What no server can be quicker than."""
    for limit in ("decode", "model", "serial"):
        figures = measure_limit(limit, model, photos, seconds)
        keep(results, {"round": number, "server": f"limit: {limit}", "load": "bare processes", **figures})
    keep(results, {"round": number, "server": "limit: start", "load": "start", **measure_start(model)})


def measure_limit(limit: str, model: Path, photos: Path, seconds: float) -> dict[str, float]:
    """One bare process for each CPU, at once; images per second in all."""
    command = [sys.executable, __file__, "--limit", limit, "--model", str(model), "--photos", str(photos)]
    processes = [
        subprocess.Popen(  # noqa: S603  our own
            [*command, "--seconds", str(seconds)], env=environment(model, 0, {}), stdout=subprocess.PIPE, text=True
        )
        for _ in range(CPUS)
    ]
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    return {
        "requests_per_s": sum(one["images_per_s"] for one in found),
        "cpu_ms": statistics.fmean(one["cpu_ms"] for one in found),
    }


def run_limit(limit: str, model: Path, photos: Path, seconds: float) -> dict[str, float]:
    """In one process: decode, score, or both, as often as it goes."""
    from dogbreed.preprocessing import MAX_PIXELS
    from dogbreed.serving.loading import load_predictor
    from dogbreed.serving.metrics import Metrics

    predictor = load_predictor(
        model,
        Metrics(),
        max_pixels=MAX_PIXELS,
        engine=os.environ.get("DOGBREED_ENGINE", "auto"),
        precision=os.environ.get("DOGBREED_PRECISION", "auto"),
    )
    bodies = [file.read_bytes() for file in sorted(photos.rglob("*.jpg"))]
    views = [predictor.view(body) for body in bodies[:8]]

    def work(turn: int) -> None:
        if limit == "decode":
            predictor.view(bodies[turn % len(bodies)])
        elif limit == "model":
            predictor.score([views[turn % len(views)]])
        else:
            predictor.predict([bodies[turn % len(bodies)]])

    for turn in range(5):
        work(turn)
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        work(count)
        count += 1
    return {
        "images_per_s": count / (time.perf_counter() - began),
        "cpu_ms": 1000 * (time.process_time() - cpu) / count,
    }


def measure_start(model: Path) -> dict[str, float]:
    """Seconds of a process that imports torch, loads the weights and runs one forward pass."""
    code = (
        "import sys, torch; from pathlib import Path; from dogbreed import artifacts; torch.set_num_threads(1);"
        "bundle = artifacts.load(Path(sys.argv[1])); side = bundle.preprocessing.size_px;"
        "torch.no_grad().__enter__(); bundle.build()(torch.zeros(1, 3, side, side))"
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, str(model)], env=environment(model, 0, {}), check=True)  # noqa: S603
    return {"start_s": time.perf_counter() - began}


def rate_base(results: Sequence[Mapping[str, Any]], number: int) -> float | None:
    """Our requests per second with `BASE_CLIENTS` in this round, once they are known."""
    for row in results:
        if (row["round"], row["server"], row["load"]) == (number, "ours", f"{BASE_CLIENTS} clients"):
            return float(row["requests_per_s"])
    return None


def median(results: Sequence[Mapping[str, Any]], server: str, load: str, figure: str) -> float:
    """Over the rounds; NaN where there is none."""
    values = [row[figure] for row in results if (row["server"], row["load"]) == (server, load) and figure in row]
    return statistics.median(values) if values else math.nan


def print_tables(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Markdown, one table for each load."""
    serial = median(results, "limit: serial", "bare processes", "requests_per_s")
    print(f"\n{CPUS} CPUs; medians. Limits, images/s of {CPUS} bare processes:", end=" ")
    print(
        ", ".join(
            f"{limit} {median(results, f'limit: {limit}', 'bare processes', 'requests_per_s'):.0f}"
            for limit in ("decode", "model", "serial")
        ),
        end="; ",
    )
    print(f"import torch, load and one forward pass: {median(results, 'limit: start', 'start', 'start_s'):.1f} s")
    loads = dict.fromkeys(str(row["load"]) for row in results if row["server"] in names)
    for load in loads:
        print(f"\n{load}\n")
        print(
            "| server | requests/s | of the serial limit | p50 ms | p99 ms | p99.9 ms | /ping max ms "
            "| CPU ms per request | PSS MiB | first 200, s | other answers |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        for name in names:
            if not any((row["server"], row["load"]) == (name, load) for row in results):
                continue
            figure = {
                key: median(results, name, load, key)
                for key in (
                    "requests_per_s",
                    "p50_ms",
                    "p99_ms",
                    "p999_ms",
                    "ping_max_ms",
                    "cpu_ms",
                    "pss_mib",
                    "start_s",
                )
            }
            others: dict[str, int] = {}
            for row in results:
                if (row["server"], row["load"]) == (name, load):
                    for status, count in row["statuses"].items():
                        if status != "200":
                            others[status] = others.get(status, 0) + count
            print(
                f"| {name} | {figure['requests_per_s']:.1f} | {figure['requests_per_s'] / serial:.2f} "
                f"| {figure['p50_ms']:.0f} | {figure['p99_ms']:.0f} | {figure['p999_ms']:.0f} "
                f"| {figure['ping_max_ms']:.0f} | {figure['cpu_ms']:.1f} | {figure['pss_mib']:.0f} "
                f"| {figure['start_s']:.1f} | {', '.join(f'{n} x {s}' for s, n in others.items()) or '-'} |"
            )


if __name__ == "__main__":
    sys.exit(main())
