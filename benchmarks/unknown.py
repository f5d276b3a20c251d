"""Which score tells best that an image shows none of the model's classes.

    python benchmarks/unknown.py --data DOGS --weights mobilenet_v2.pth

Heads are taught by real jobs, in processes of their own. What the model should not know is, from easy to hard:

    drawn       shapes of local_test/make_data.py
    scrambled   the known test photos with their phases drawn anew: the same colours and spectrum, and nothing to see
    others      the photos in --others, if given: anything that is not one of the classes
    left out    test photos of the classes that a job was not taught: half of them, drawn by the seed

A score's threshold is the one that 95% of the job's validation images reach. Told are the area under the ROC curve
(how often a known test photo scores above an unknown image; 50% is chance), the share of known test photos that are
kept, and the share of unknown images that pass as known (false rate; less is better).

Sources of the scores: Hendrycks and Gimpel 2017 (probability), Liu et al. 2020 (energy: the logarithm of the sum of the
exponentials of the logits), Hendrycks et al. 2022 (largest logit).

Prints a table and writes the same figures to build/bench/unknown.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "container")]

from local_test import make_data  # noqa: E402  beside the package, which may not be installed

from dogbreed import artifacts, preprocessing  # noqa: E402
from dogbreed.artifacts import Bundle  # noqa: E402
from dogbreed.preprocessing import PreprocessSpec  # noqa: E402

OUT = ROOT / "build" / "bench" / "unknown.json"
KEPT = 0.95
"""Share of the validation images that reach a threshold."""

DRAWN = 240
PHOTO_TYPES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
BATCH = 16

Score = Callable[[Tensor, float], Tensor]

SCORES: Mapping[str, Score] = {
    "probability, not calibrated": lambda logits_NK, _: logits_NK.softmax(1).amax(1),
    "probability": lambda logits_NK, temperature: (logits_NK / temperature).softmax(1).amax(1),
    "largest logit": lambda logits_NK, _: logits_NK.amax(1),
    "energy": lambda logits_NK, _: logits_NK.logsumexp(1),
}


def main() -> int:
    """Teaches, scores and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, valid and test")
    parser.add_argument("--weights", type=Path, required=True, help="of the backbone, as torchvision names them")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3, help="jobs of each kind; also draws which classes are left out")
    parser.add_argument("--others", type=Path, help="folder of photos that show none of the classes")
    chosen = parser.parse_args()
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    counts: dict[str, int] = {}
    seen = None
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch) / "cache"
        for seed in range(chosen.seeds):
            for kind in ("all", "half"):
                names = sorted(entry.name for entry in (chosen.data / "train").iterdir() if entry.is_dir())
                taught = names if kind == "all" else sorted(random.Random(seed).sample(names, len(names) // 2))
                bundle = teach(Path(scratch) / f"{kind}-{seed}", cache, taught, seed, chosen)
                seen = seen or Seen(bundle, chosen)
                measured = measure(bundle, seen, chosen, taught, names)
                for unknown, logits in measured["unknown"].items():
                    counts[unknown] = len(logits)
                    for name, score in SCORES.items():
                        found[unknown, name].append(judge(score, bundle.temperature, measured, logits))
                print(f"seed {seed}, {len(taught)} classes: {bundle.metrics}", file=sys.stderr)
    rows = [
        {
            "unknown": unknown,
            "images": counts[unknown],
            "score": name,
            **{key: statistics.mean(one[key] for one in runs) for key in runs[0]},
            "jobs": runs,
        }
        for (unknown, name), runs in found.items()
    ]
    print_table(rows, chosen)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"arguments": vars(chosen), "rows": rows}, default=str, indent=2))
    return 0


def teach(scratch: Path, cache: Path, classes: Sequence[str], seed: int, chosen: argparse.Namespace) -> Bundle:
    """The bundle of a job that was taught some of the classes."""
    channels = scratch / "input" / "data"
    for split in ("train", "valid", "test"):
        (channels / "train" / split).mkdir(parents=True)
        for name in classes:
            (channels / "train" / split / name).symlink_to((chosen.data / split / name).resolve())
    (channels / "pretrained").mkdir()
    (channels / "pretrained" / chosen.weights.name).symlink_to(chosen.weights.resolve())
    (scratch / "input" / "config").mkdir()
    settings = {"model": chosen.model, "epochs": str(chosen.epochs), "seed": str(seed), "trainable": "head"}
    settings |= {"check-precision": "false", "insight": "false"}
    (scratch / "input" / "config" / "hyperparameters.json").write_text(json.dumps(settings))
    environ = {**os.environ, "SAGEMAKER_BASE_DIR": str(scratch), "DOGBREED_CACHE_DIR": str(cache)}
    environ["OMP_WAIT_POLICY"] = "PASSIVE"
    command = [sys.executable, str(ROOT / "container" / "train")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)  # noqa: S603  our own
    if done.returncode:
        sys.exit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return artifacts.load(scratch / "model")


class Seen:
    """The features of images, computed once: the backbone is the same in all jobs."""

    def __init__(self, bundle: Bundle, chosen: argparse.Namespace) -> None:
        self._backbone, self._spec, self._chosen = bundle.build().backbone, bundle.preprocessing, chosen
        self._known: dict[Path, Tensor] = {}
        self._far: dict[str, Tensor] = {}

    def photos(self, files: Sequence[Path]) -> Tensor:
        """Features [N, F] of photos."""
        new = [file for file in files if file not in self._known]
        self._known.update(zip(new, self._features(map(preprocessing.decode, new)), strict=True))
        return torch.stack([self._known[file] for file in files])

    def far(self) -> Mapping[str, Tensor]:
        """Features of what no class resembles, by kind."""
        if not self._far:
            self._far["drawn"] = self._features(drawings())
            self._far["scrambled"] = self._features(scrambled(photos(self._chosen.data / "test", None), self._spec))
            if self._chosen.others:
                self._far["others"] = self._features(map(preprocessing.decode, photos(self._chosen.others, None)))
        return self._far

    @torch.inference_mode()
    def _features(self, images: Iterable[Tensor]) -> Tensor:
        views = [self._spec.centre_view(image) for image in images]
        parts = [self._backbone(self._spec.normalise(torch.stack(part))) for part in batches(views)]
        return torch.cat(parts) if parts else torch.empty(0)


def measure(
    bundle: Bundle, seen: Seen, chosen: argparse.Namespace, taught: Sequence[str], names: Sequence[str]
) -> dict[str, dict[str, Tensor]]:
    """Logits [N, K] of known images by split, and of unknown ones by kind."""
    left_out = [name for name in names if name not in set(taught)]
    unknown = {"left out": seen.photos(photos(chosen.data / "test", left_out))} if left_out else seen.far()
    known = {split: seen.photos(photos(chosen.data / split, taught)) for split in ("valid", "test")}
    head = bundle.build().head
    with torch.inference_mode():
        return {
            "known": {split: head(features) for split, features in known.items()},
            "unknown": {kind: head(features) for kind, features in unknown.items()},
        }


def batches(views: Sequence[Tensor]) -> Iterable[Sequence[Tensor]]:
    """So many at a time as a small machine's memory holds."""
    return (views[start : start + BATCH] for start in range(0, len(views), BATCH))


def photos(folder: Path, classes: Sequence[str] | None) -> list[Path]:
    """Files below the folders of some classes; None is all that are below."""
    folders = [folder] if classes is None else [folder / name for name in classes]
    return sorted(file for one in folders for file in one.rglob("*") if file.suffix.lower() in PHOTO_TYPES)


def drawings() -> Iterable[Tensor]:
    """As many of each shape, of the size of small photos; uint8 [3, H, W]."""
    shapes = list(make_data.SHAPES)
    for number in range(DRAWN):
        image = make_data.draw(shapes[number % len(shapes)], np.random.default_rng([7, number]), 256)
        yield torch.from_numpy(np.array(image)).permute(2, 0, 1)


def scrambled(files: Sequence[Path], spec: PreprocessSpec) -> Iterable[Tensor]:
    """What the network sees of photos, with the spectrum's phases drawn anew, alike for the three colours."""
    for number, file in enumerate(files):
        view = spec.centre_view(preprocessing.decode(file)).numpy().astype(np.float64)
        yield torch.from_numpy(scramble(view, np.random.default_rng([8, number])))


def scramble(pixels_CHW: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Keeps every colour's mean and power spectrum; uint8 [C, H, W]."""
    _, height, width = pixels_CHW.shape
    # The spectrum of a real image: its phases are antisymmetric, so that the result is real again.
    phase = np.angle(np.fft.rfft2(rng.normal(size=(height, width))))
    phase[0, 0] = 0
    spectrum = np.fft.rfft2(pixels_CHW) * np.exp(1j * phase)
    made = np.fft.irfft2(spectrum, s=(height, width))
    return np.clip(np.rint(made), 0, 255).astype(np.uint8)


def judge(
    score: Score, temperature: float, measured: dict[str, dict[str, Tensor]], logits_NK: Tensor
) -> dict[str, float]:
    """How well one score parts unknown images from known test photos."""
    valid, test = (score(measured["known"][split], temperature) for split in ("valid", "test"))
    unknown = score(logits_NK, temperature)
    ordered = valid.sort().values
    threshold = ordered[int((1 - KEPT) * len(ordered))]
    above = (test[:, None] > unknown).double() + 0.5 * (test[:, None] == unknown)
    return {
        "auroc": float(above.mean()),
        "kept": float((test >= threshold).double().mean()),
        "false_rate": float((unknown >= threshold).double().mean()),
    }


def print_table(rows: Sequence[Mapping[str, object]], chosen: argparse.Namespace) -> None:
    """The table in Markdown."""
    print(f"\n{chosen.model}, heads of {chosen.epochs} epochs, mean of {chosen.seeds} jobs each\n")
    print("| unknown images | score | area under ROC | known test photos kept | unknown ones that pass |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['images']} {row['unknown']} | {row['score']} | {row['auroc']:.3f} | {row['kept']:.1%} "
            f"| {row['false_rate']:.1%} |"
        )


if __name__ == "__main__":
    sys.exit(main())
