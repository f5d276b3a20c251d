"""How much quicker a head is trained here than by the plain loop, at which accuracy.

    python benchmarks/training.py --data DOGS --weights mobilenet_v2=mobilenet_v2.pth

The plain loop is the one that people write first, and that earlier projects ran: ImageFolder, PIL transforms, a
DataLoader, a frozen backbone in a network in train mode, every epoch through the whole network. Ours is the real job,
in its own process, with an empty cache. Both run as whole processes in turn, round by round, with the same data,
backbone, weights, batch size, epochs and number of loader processes; what counts is CPU time, their own and their
children's. Random weights show the cost only; accuracy is compared where weights are given.

With --last-stage it compares jobs of ours instead, all in float32 and with images mirrored at random. Two teach the
last stage and the head: one runs the whole network in every epoch (cache=false), one runs what is frozen once. In the
third the whole network learns in every epoch. Their optimizer, rate and epochs are the same.

With --whole-network every layer learns: torchvision's reference recipe for classification (random crops and flips,
float32, SGD with momentum, train mode, every image decoded each epoch) against our job with the same optimizer, views
and epochs.

Prints a table and writes the same figures to build/bench/training.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import bytecode

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "bench" / "training.json"
LAST_STAGE = {
    name: {
        "trainable": trainable,
        "cache": cache,
        "augment": "flip",
        "lr": "0.0001",
        "precision": "fp32",
        "head-epochs": "0",
    }
    for name, trainable, cache in (
        ("last stage learns, whole network every epoch", "last_stage", "false"),
        ("last stage learns, on stored maps", "last_stage", "true"),
        ("whole network learns every epoch", "all", "false"),
    )
}
SGD = {"lr": 0.005, "momentum": 0.9, "weight-decay": 1e-4}
WHOLE_NETWORK: dict[str, dict[str, str]] = {
    "reference": {},
    "ours, everything learns": {
        "trainable": "all",
        "optimizer": "sgd",
        "schedule": "constant",
        "head-epochs": "0",
        "augment": "crop",
        "crop-scale": "0.08",
        "warmup-epochs": "0",
        "batch-statistics": "learn",
        **{name: str(value) for name, value in SGD.items()},
    },
}


@dataclass(frozen=True, slots=True)
class Run:
    """One process.

    Attributes:
        cpu_s: user and system time, children included.
        wall_s: elapsed.
        test_accuracy: in [0, 1].
    """

    cpu_s: float
    wall_s: float
    test_accuracy: float


def main() -> int:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, valid and test")
    parser.add_argument("--weights", nargs="*", default=[], metavar="MODEL=FILE", help="real weights, for accuracy")
    parser.add_argument(
        "--models", nargs="*", default=["resnet18", "densenet121"], help="with random weights, for cost"
    )
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--views", nargs="*", default=["none", "flip"], help="augment of ours: none is K=1, flip K=2")
    parser.add_argument("--last-stage", action="store_true", help="compare jobs that teach the last stage")
    parser.add_argument("--whole-network", action="store_true", help="compare with torchvision's reference recipe")
    parser.add_argument("--peer", choices=("plain", "reference"), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peer:
        print(json.dumps({"test_accuracy": plain_loop(chosen, whole_network=chosen.peer == "reference")}))
        return 0
    bytecode.prepare()
    weights = dict(pair.split("=", 1) for pair in chosen.weights)
    rows = []
    for model in [*weights, *chosen.models]:
        names = ["plain", *(f"ours, {view}" for view in chosen.views)]
        names = [*LAST_STAGE] if chosen.last_stage else [*WHOLE_NETWORK] if chosen.whole_network else names
        runs: dict[str, list[Run]] = {name: [] for name in names}
        for seed in range(chosen.rounds):
            for name, done in runs.items():
                file = Path(weights[model]).resolve() if model in weights else None
                done.append(run(name, model, file, seed, chosen))
                print(f"{model} {name} round {seed + 1}: {done[-1]}", file=sys.stderr)
        first = next(iter(runs.values()))
        rows += [describe(model, name, done, first, real=model in weights) for name, done in runs.items()]
    print_table(rows, chosen)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(
        json.dumps({"arguments": {**vars(chosen), "data": str(chosen.data)}, "rows": rows}, default=str, indent=2)
    )
    return 0


def run(name: str, model: str, file: Path | None, seed: int, chosen: argparse.Namespace) -> Run:
    """One process from start to end: Python, imports and all."""
    with tempfile.TemporaryDirectory() as scratch:
        environ = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        peer = name in ("plain", "reference")
        if peer:
            command = [sys.executable, __file__, "--peer", name, "--data", str(chosen.data), "--model", model]
            command += ["--epochs", str(chosen.epochs), "--batch-size", str(chosen.batch_size), "--seed", str(seed)]
            command += ["--file", str(file)] if file else []
        else:
            settings = {
                "model": model,
                "pretrained": str(bool(file)).lower(),
                "epochs": str(chosen.epochs),
                "batch-size": str(chosen.batch_size),
                "seed": str(seed),
                "patience": "0",
                **({**LAST_STAGE, **WHOLE_NETWORK}.get(name) or {"augment": name.removeprefix("ours, ")}),
            }
            ml = lay_out(Path(scratch), file, settings, chosen.data)
            environ |= {"SAGEMAKER_BASE_DIR": str(ml), "DOGBREED_CACHE_DIR": f"{scratch}/cache"}
            command = [sys.executable, str(ROOT / "container" / "train")]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)  # noqa: S603  our own
        wall = time.monotonic() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
        if peer:
            accuracy = json.loads(done.stdout.splitlines()[-1])["test_accuracy"]
        else:
            accuracy = json.loads((ml / "model" / "bundle.json").read_text())["metrics"]["test_accuracy"]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(cpu, wall, accuracy)


def lay_out(scratch: Path, file: Path | None, settings: dict[str, str], data: Path) -> Path:
    """A folder that stands for /opt/ml."""
    ml = scratch / "ml"
    (ml / "input" / "config").mkdir(parents=True)
    (ml / "input" / "data").mkdir()
    (ml / "input" / "data" / "train").symlink_to(data.resolve())
    if file:
        (ml / "input" / "data" / "pretrained").mkdir()
        (ml / "input" / "data" / "pretrained" / file.name).symlink_to(file)
    (ml / "input" / "config" / "hyperparameters.json").write_text(json.dumps(settings))
    return ml


def plain_loop(chosen: argparse.Namespace, *, whole_network: bool) -> float:
    """Trains the plain way, and returns the accuracy on the test images after the last epoch.

    A head with Adam; or the whole network as torchvision's references/classification/train.py does, but for its
    learning rate, which is of training from scratch.
    """
    import torch
    import torchvision
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    torch.manual_seed(chosen.seed)
    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    training = transforms.Compose(
        [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalise]
    )
    evaluation = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalise]
    )
    loaders = {
        split: DataLoader(
            ImageFolder(chosen.data / split, transform=training if split == "train" else evaluation),
            batch_size=chosen.batch_size,
            shuffle=split == "train",
            num_workers=1,
        )
        for split in ("train", "valid", "test")
    }
    network = torchvision.models.get_model(chosen.model, weights=None)
    if chosen.file:
        network.load_state_dict(torch.load(chosen.file, weights_only=True))
    network.requires_grad_(whole_network)
    classes = len(loaders["train"].dataset.classes)  # type: ignore[attr-defined]
    name, old = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    network.set_submodule(name, nn.Linear(old.in_features, classes))
    learning = [one for one in network.parameters() if one.requires_grad]
    optimizer: torch.optim.Optimizer
    if whole_network:
        optimizer = torch.optim.SGD(learning, lr=SGD["lr"], momentum=SGD["momentum"], weight_decay=SGD["weight-decay"])
    else:
        optimizer = torch.optim.Adam(learning, lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    for _ in range(chosen.epochs):
        # Most loops around a frozen network called train(), which moves BatchNorm's statistics; eval() is kinder.
        network.train(whole_network)
        for images, indices in loaders["train"]:
            optimizer.zero_grad()
            criterion(network(images), indices).backward()
            optimizer.step()
        network.eval()
        _accuracy(network, loaders["valid"])
    return _accuracy(network, loaders["test"])


def _accuracy(network: object, batches: object) -> float:
    import torch

    correct = count = 0
    with torch.no_grad():
        for images, indices in batches:  # type: ignore[attr-defined]
            correct += int((network(images).argmax(dim=1) == indices).sum())  # type: ignore[operator]
            count += len(indices)
    return correct / count


def describe(model: str, name: str, done: list[Run], plain: list[Run], *, real: bool) -> dict[str, object]:
    """One row: medians over the rounds, and the median of the ratios round by round."""
    return {
        "model": model,
        "run": name,
        "cpu_s": statistics.median(one.cpu_s for one in done),
        "wall_s": statistics.median(one.wall_s for one in done),
        "times_less_cpu": statistics.median(a.cpu_s / b.cpu_s for a, b in zip(plain, done, strict=True)),
        "times_less_wall": statistics.median(a.wall_s / b.wall_s for a, b in zip(plain, done, strict=True)),
        "test_accuracy": statistics.mean(one.test_accuracy for one in done) if real else None,
        "rounds": [asdict(one) for one in done],
    }


def print_table(rows: list[dict[str, object]], chosen: argparse.Namespace) -> None:
    """The table in Markdown."""
    print(f"\n{chosen.epochs} epochs, batch {chosen.batch_size}, {chosen.rounds} interleaved rounds, whole processes\n")
    print("| backbone | run | CPU s | wall s | times less CPU | times less wall | test accuracy |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        accuracy = "" if row["test_accuracy"] is None else f"{row['test_accuracy']:.3f}"
        print(
            f"| {row['model']} | {row['run']} | {row['cpu_s']:.1f} | {row['wall_s']:.1f} | {row['times_less_cpu']:.1f} "
            f"| {row['times_less_wall']:.1f} | {accuracy} |"
        )


if __name__ == "__main__":
    sys.exit(main())
